"""Write `docs/reference/` from the code: the options of every command, and the sites.

python docs/make_reference.py            write the pages
python docs/make_reference.py --check    write nothing; exit 1 if a page is not what it would write
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from actcli.cli import COMMANDS
from actcli.sites import MODULE_PREFIX, SITES
from actcli.terminal.config_command import CONFIG_FLAGS, CONFIG_HELP, Command
from actcli.terminal.config_field import ConfigField

FOLDER = Path(__file__).parent / "reference"
GENERATED = "<!-- Written by docs/make_reference.py: change the code, then run `make docs`. -->"


def main(*, check: bool) -> int:
    """Write the pages, or say which are not current; return the exit status."""
    stale = [path for path, text in pages().items() if _read(path) != text]
    if not check:
        FOLDER.mkdir(exist_ok=True)
        for path in stale:
            path.write_text(pages()[path], encoding="utf-8")
        return 0
    for path in stale:
        print(f"docs/reference/{path.name} is not current; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    made = {"cli.md": _cli_page(), "sites.md": _sites_page()}
    return {FOLDER / name: "\n".join([*lines, ""]) for name, lines in made.items()}


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _cli_page() -> Iterator[str]:
    yield from ("# The command line", "", GENERATED, "", _INTRODUCTION, "")
    yield from (_row(*cells) for cells in _EXIT_STATUS)
    for command in COMMANDS:
        yield from _command_section(command)


_INTRODUCTION = f"""\
Every command also has `-h`, `--help`, and {", ".join(f"`{flag}`" for flag in CONFIG_FLAGS)} PATH:
{CONFIG_HELP}
A key of that file is the long name of an option, with `-` or `_`.

The answer goes to standard output, everything else to standard error. The exit status says how it
went:"""

_EXIT_STATUS = (
    ("status", "meaning"),
    ("---", "---"),
    ("0", "done"),
    ("1", "it cannot be done; one message says what was found, what was expected, what to do"),
    ("2", "wrong usage: an option, or how options go together or with the input"),
    ("3", "a check that was asked for says no"),
    ("130", "interrupted"),
)


def _command_section(command: Command) -> Iterator[str]:
    yield from ("", f"## `actcli {command.name}`", "", command.help)
    for panel, fields in _by_panel(command.fields).items():
        yield from ("", f"### {panel}", "")
        yield from (_row("option", "value", "default", "meaning"), _row(*4 * ["---"]))
        yield from map(_option_row, fields)
    if command.config.examples:
        yield from ("", "### Examples", "", "```sh", *command.config.examples, "```")


def _by_panel(fields: list[ConfigField]) -> dict[str, list[ConfigField]]:
    panels: dict[str, list[ConfigField]] = {}
    for field in fields:
        panels.setdefault(field.cli.panel or "Options", []).append(field)
    return panels


def _option_row(field: ConfigField) -> str:
    names = (field.shown_name,) if field.cli.positional else field.flags
    default = "required" if field.info.is_required() else _code(field.default_text or "")
    variable = f" (environment variable `{field.cli.envvar}`)" if field.cli.envvar else ""
    return _row(", ".join(map(_code, names)), _code(field.metavar), default, field.help + variable)


def _sites_page() -> Iterator[str]:
    yield from ("# Sites", "", GENERATED, "", _SITES_INTRODUCTION, "")
    yield from (_row("site", "shape", "what is read there", "TransformerLens"), _row(*4 * ["---"]))
    for site in SITES:
        shape = f"({', '.join(site.axes)})"
        yield _row(_code(site.name), shape, site.meaning, _code(site.transformer_lens))


_SITES_INTRODUCTION = f"""\
A site is a named place in a model. Its name is the same in `--outputs`, as the key in a dump, and
in completion. `{MODULE_PREFIX}<dotted.path>` is the output of any module. A site that is read in
every layer is one tensor with a layer axis.

Axes: N samples, L layers, T tokens (for attention: queries), S keys of attention, H hidden,
A attention heads, K key/value heads, D head width, I MLP intermediate, O outputs of a head."""


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
