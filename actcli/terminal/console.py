"""Where everything is printed: the answer on standard output, all else on standard error.

Texts are shown as they are: nothing in a path or a name is taken for markup. What should be
styled comes as a rich `Text` or with a style of its own.
"""

import json
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

from pydantic import BaseModel

from actcli.errors import ActcliError, CheckFailed
from actcli.terminal.config import CommandConfig

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

Report = TypeVar("Report", bound=BaseModel)

_WIDE = 4096  # columns where there is no terminal, so that no cell of a table is cut


class Output:
    """The one object through which a command speaks."""

    def __init__(self, *, json_output: bool = False, quiet: bool = False) -> None:
        self._json = json_output
        self._quiet = quiet

    @classmethod
    def of(cls, config: CommandConfig) -> Self:
        """Return the output that the user asked for."""
        return cls(json_output=config.json_output, quiet=config.quiet)

    def print_report(
        self, report: Report, tables: "Callable[[Report], Iterable[RenderableType]]"
    ) -> None:
        """Print the answer: as JSON if that was asked for, else what `tables` makes of it.

        A number that is not finite is `null` in JSON, so a report counts such values apart.
        """
        if self._json:
            print(report.model_dump_json(indent=2), flush=True)
            return
        for each in tables(report):
            self._stdout.print(each)

    def note(self, text: str) -> None:
        """Tell something good to know; silent with `--quiet` and with `--json`."""
        if not (self._quiet or self._json):
            self._stderr.print(text, style="dim")

    def warn(self, text: str) -> None:
        """Tell something that the user should act on; never silent."""
        if self._json:
            _print_json_line({"warning": {"message": text}})
        else:
            self._print_labelled("warning", text, style="yellow")

    def error(self, error: ActcliError) -> None:
        """Tell why the command ends without success."""
        if self._json:
            body = {"type": type(error).__name__, "message": str(error)}
            _print_json_line({"error": body | {"exit_code": error.exit_code}})
        else:
            label = "check failed" if isinstance(error, CheckFailed) else "error"
            self._print_labelled(label, str(error), style="red")

    @contextmanager
    def progress(self, total: int, description: str) -> Generator[Callable[[int], None]]:
        """Show a bar of `total` steps while the block runs; gives a function that adds steps.

        Only on a terminal, and not with `--quiet` or `--json`.
        """
        if self._quiet or self._json or not sys.stderr.isatty():
            yield _ignore_steps
            return
        bar = _make_bar(self._stderr)
        task = bar.add_task(description, total=total)
        with bar:
            yield lambda steps: bar.advance(task, steps)

    def _print_labelled(self, label: str, text: str, *, style: str) -> None:
        from rich.text import Text

        self._stderr.print(Text.assemble((f"{label}: ", f"bold {style}"), text))

    @cached_property
    def _stdout(self) -> "Console":
        return _make_console(sys.stdout)

    @cached_property
    def _stderr(self) -> "Console":
        return _make_console(sys.stderr)


def _make_console(stream: TextIO) -> "Console":
    from rich.console import Console

    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def _make_bar(console: "Console") -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, refresh_per_second=4)


def _print_json_line(body: dict[str, object]) -> None:
    print(json.dumps(body, ensure_ascii=False), file=sys.stderr, flush=True)


def _ignore_steps(_steps: int) -> None:
    """Stand in for a progress bar that is not shown."""
