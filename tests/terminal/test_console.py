import contextlib
import io
import json
import os
import pty
import re
import sys

import pytest
from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from actcli.errors import CheckFailed, DumpError
from actcli.terminal.console import Output

LONG = "a_rather_long_name_" * 20


class Report(BaseModel):
    name: str = LONG
    value: float = float("nan")
    non_finite: int = 1


def tables(report):
    table = Table("name", "value", title="[red]the[/red] report")
    table.add_row(report.name, "[bold]x[/y] :smile:")
    yield table
    yield Text("done", style="bold red")


@pytest.fixture
def on_terminal(monkeypatch):
    """Run something with a real terminal as its standard error; return what was shown there."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")

    def run(action):
        ours, theirs = pty.openpty()
        with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            action()
        return _read_to_end(ours)

    return run


def _read_to_end(file_number):
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(file_number, "rb", buffering=0) as stream:
        while True:  # Linux ends a terminal that nobody writes to with an error
            shown += stream.read(4096)
    return shown.decode()


def test_a_table_in_a_pipe_is_whole_and_plain(capsys):
    Output().print_report(Report(), tables)
    shown = capsys.readouterr()
    assert LONG in shown.out
    assert "[bold]x[/y] :smile:" in shown.out
    assert "[red]the[/red] report" in shown.out
    assert "\x1b" not in shown.out
    assert shown.err == ""


def test_json_is_the_report_and_nothing_else(capsys):
    Output(json_output=True).print_report(Report(), tables)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"name": LONG, "value": None, "non_finite": 1}
    assert shown.err == ""


@pytest.mark.parametrize(
    ("quiet", "json_output", "note"),
    [(False, False, "reading [x]/a.npz\n"), (True, False, ""), (False, True, ""), (True, True, "")],
)
def test_notes_go_to_standard_error_and_can_be_silenced(capsys, quiet, json_output, note):
    Output(quiet=quiet, json_output=json_output).note("reading [x]/a.npz")
    assert capsys.readouterr() == ("", note)


def test_warnings_are_never_silent(capsys):
    Output(quiet=True).warn("3 values are [nan]")
    assert capsys.readouterr() == ("", "warning: 3 values are [nan]\n")
    Output(quiet=True, json_output=True).warn("3 values are [nan]")
    shown = capsys.readouterr()
    assert json.loads(shown.err) == {"warning": {"message": "3 values are [nan]"}}


def test_errors_as_text_and_as_json(capsys):
    Output().error(DumpError("no [red]dump[/red]"))
    Output().error(CheckFailed("all are 1.0"))
    assert capsys.readouterr().err == "error: no [red]dump[/red]\ncheck failed: all are 1.0\n"
    Output(json_output=True).error(CheckFailed("two\nlines"))
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert json.loads(shown.err) == {
        "error": {"type": "CheckFailed", "message": "two\nlines", "exit_code": 3}
    }


def show_progress(**options):
    with Output(**options).progress(8, "reading [x]") as advance:
        advance(3)
        advance(5)


def fail_in_progress():
    with Output().progress(8, "reading") as advance:
        advance(1)
        raise DumpError("broken")


def test_progress_is_shown_on_a_terminal(on_terminal):
    shown = on_terminal(show_progress)
    assert "reading [x]" in shown
    assert "8/8" in shown


@pytest.mark.parametrize("option", ["quiet", "json_output"])
def test_progress_is_off_when_quiet_or_json(on_terminal, option):
    assert on_terminal(lambda: show_progress(**{option: True})) == ""


def test_progress_is_off_where_standard_error_is_no_terminal(capsys):
    show_progress()
    assert capsys.readouterr() == ("", "")


def test_an_error_in_the_work_passes_through_progress():
    with pytest.raises(DumpError, match="broken"):
        fail_in_progress()


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_respected_on_a_terminal(on_terminal, monkeypatch, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)
    shown = on_terminal(lambda: Output().warn("careful"))
    assert bool(re.search(r"\x1b\[[0-9;]*33m", shown)) is coloured


def test_prints_to_the_standard_output_of_the_moment(monkeypatch):
    stream = io.StringIO()
    output = Output()
    monkeypatch.setattr(sys, "stdout", stream)
    output.print_report(Report(name="late"), tables)
    assert "late" in stream.getvalue()
