"""Make a subcommand of a function that takes a config model.

The model's fields become the command's parameters, so each option is written once. The function
stays an ordinary one: a notebook calls it with a config.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typer

from actcli.errors import ActcliError
from actcli.terminal.autocomplete import CONFIG_FILE, autocompletion, typed_words
from actcli.terminal.config import CommandConfig
from actcli.terminal.config_field import ConfigField, config_fields, escape_markup
from actcli.terminal.config_values import make_config, read_config_file
from actcli.terminal.console import Output

CONFIG_FLAGS = ("--config", "-c")
CONFIG_HELP = "TOML file with these options; environment variables and the command line win."
_DOCSTRING_SECTION = re.compile(r"^(Args|Raises|Returns|Example|Examples|Note):$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A subcommand: a name, and a function of one config model."""

    name: str
    """What the user types after the program's name."""

    function: Callable[[Any], None]
    """What it does; the annotation of its parameter is the config model."""

    panel: str | None = None
    """The heading under which the program's help lists it."""

    @property
    def config(self) -> type[CommandConfig]:
        """The model that holds its options."""
        model: type[CommandConfig] = next(iter(get_type_hints(self.function).values()))
        return model

    @property
    def fields(self) -> list[ConfigField]:
        """Its options, in the order of the help."""
        return config_fields(self.config)

    @property
    def help(self) -> str:
        """What it does in words: the function's docstring down to its first section."""
        text = _DOCSTRING_SECTION.split(inspect.getdoc(self.function) or "")[0].strip()
        return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def add_command(app: typer.Typer, command: Command) -> None:
    """Make it a subcommand of `app`."""
    fields = command.fields

    def run(ctx: typer.Context, **_words: Any) -> None:
        run_command(command, ctx, fields)

    parameters = [
        _parameter("ctx", typer.Context),
        *(_field_parameter(field, fields) for field in fields),
        _parameter(CONFIG_FILE, str, _config_option()),
    ]
    parameters.sort(key=lambda each: each.name in CommandConfig.model_fields)
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010  mypy knows no such attribute
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(
        command.name,
        help=escape_markup(command.help),
        epilog=_epilog(command.config.examples),
        rich_help_panel=command.panel,
    )(run)


def run_command(command: Command, ctx: typer.Context, fields: list[ConfigField]) -> None:
    """Make the config, call the function, and turn an expected failure into a message."""
    typed = typed_words(ctx)
    path = typed.pop(CONFIG_FILE, None)
    output = Output(json_output=bool(typed.get("json_output")))
    try:
        from_file = read_config_file(Path(path), fields) if path else {}
        config = make_config(command.config, fields, typed=typed, from_file=from_file)
        output = Output.of(config)
        command.function(config)
    except ActcliError as error:
        output.error(error)
        raise typer.Exit(error.exit_code) from None


def _field_parameter(field: ConfigField, fields: list[ConfigField]) -> inspect.Parameter:
    info = field.typer_parameter(autocompletion(field, fields))
    word = list[str] if field.is_repeated else str
    return _parameter(field.name, bool if field.is_switch else word, info)


def _config_option() -> Any:
    return typer.Option(None, *CONFIG_FLAGS, metavar="<path>", help=CONFIG_HELP)


def _parameter(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _epilog(examples: tuple[str, ...]) -> str | None:
    if not examples:
        return None
    return "\n".join(["Examples:", *(f"  {escape_markup(each)}" for each in examples)])
