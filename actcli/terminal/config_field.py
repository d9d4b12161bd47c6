"""A field of a config model as a parameter of the command line.

Typer sees what it needs to split the words, print help and complete. Every value but a switch
stays a text for it: pydantic alone turns words into values, so that there is one set of rules and
one wording of errors, wherever a value comes from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from actcli.terminal.config import OUTPUT_PANEL, CommandConfig
from actcli.terminal.fields import REPEATED, Cli, IntRanges

Autocompletion = Callable[[typer.Context, str], list[tuple[str, str]]]

_WORDS_FOR_TYPES = {
    int: "<int>",
    float: "<float>",
    Path: "<path>",
    IntRanges: "<0,3-5,-1>",
}


@dataclass(frozen=True)
class ConfigField:
    """A field of a config model, as the command line sees it."""

    name: str
    """Its name in the model, and in a config file."""

    info: FieldInfo
    """What pydantic knows of it."""

    @property
    def cli(self) -> Cli:
        """What its annotation says of the command line."""
        return next((item for item in self.info.metadata if isinstance(item, Cli)), Cli())

    @property
    def value_type(self) -> Any:
        """Its type, without `| None` and without `Annotated`."""
        annotation = self.info.annotation
        if NoneType in get_args(annotation):
            (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
        return _without_annotated(annotation)

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value: it is there or not."""
        return self.value_type is bool

    @property
    def is_sequence(self) -> bool:
        """Whether one word holds several values, with commas between them."""
        one_word = self.value_type is IntRanges or get_origin(self.value_type) is tuple
        return one_word and not self.is_repeated

    @property
    def is_repeated(self) -> bool:
        """Whether the option may be given several times, with one value each."""
        return REPEATED in self.info.metadata

    @property
    def choices(self) -> tuple[str, ...]:
        """What a value can be, if that is a closed set."""
        value_type = self.value_type
        item = get_args(value_type)[0] if get_origin(value_type) is tuple else value_type
        return tuple(map(str, get_args(item))) if get_origin(item) is Literal else ()

    @property
    def flag(self) -> str:
        """The long name: `--batch-size`; `--no-x` for a switch that is on by default."""
        name = self.cli.flag or "--" + self.name.replace("_", "-")
        return f"--no-{name.removeprefix('--')}" if self._switches_off else name

    @property
    def flags(self) -> tuple[str, ...]:
        """The long name, its aliases, and the short one, if it has one."""
        short = (self.cli.short,) if self.cli.short else ()
        return (self.flag, *self.cli.aliases, *short)

    @property
    def shown_name(self) -> str:
        """What messages call it: the long name, or its name in capitals if it is positional."""
        return self.name.upper() if self.cli.positional else self.flag

    @property
    def config_file_names(self) -> tuple[str, ...]:
        """The names that a config file may give it."""
        options = (self.cli.flag or self.name, *self.cli.aliases)
        names = (each.removeprefix("--").replace("-", "_") for each in options)
        return tuple(dict.fromkeys((self.name, *names)))

    @property
    def metavar(self) -> str:
        """What stands for the value in the help; nothing for a switch."""
        if self.is_switch:
            return ""
        if self.cli.metavar is not None:
            return self.cli.metavar
        if get_origin(self.value_type) is tuple and not self.is_repeated:
            return "<a,b,...>"
        return f"<{'|'.join(self.choices)}>" if self.choices else self._word_for_type

    @property
    def help(self) -> str:
        """The docstring under the field, on one line; with the choices, if the metavar has none."""
        text = " ".join((self.info.description or "").split())
        listed = self.choices if self.is_sequence else ()
        return f"{text} ({', '.join(listed)})" if listed else text

    @property
    def default_text(self) -> str | None:
        """The default as one would type it; None if there is none, and for switches."""
        default = None if self.info.is_required() else self.default
        if default is None or self.is_switch or (self.is_repeated and not default):
            return None
        return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)

    @property
    def default(self) -> Any:
        """The default value."""
        return self.info.get_default(call_default_factory=True)

    @property
    def _switches_off(self) -> bool:
        return self.is_switch and self.info.default is True

    @property
    def _word_for_type(self) -> str:
        one = get_args(self.value_type)[0] if self.is_repeated else self.value_type
        return _WORDS_FOR_TYPES.get(_without_annotated(one), "<text>")

    def typer_parameter(self, autocompletion: Autocompletion | None) -> Any:
        """Return the `typer.Option` or `typer.Argument` that stands for the field.

        None is ever required by Typer, since a config file may give the value.
        """
        required = " [required]" if self.info.is_required() else ""
        kwargs: dict[str, Any] = {
            "help": escape_markup(self.help + required),
            "rich_help_panel": self.cli.panel,
            "autocompletion": autocompletion,
            "show_default": self.default_text is not None,
            "envvar": self.cli.envvar,
        }
        if self.cli.positional:
            return typer.Argument(self.default_text, **kwargs)
        if self.is_repeated:
            words = [*map(str, self.default or ())]
            return typer.Option(words, *self.flags, metavar=self.metavar, **kwargs)
        names = (f" /{self.flag}", *self.flags[1:]) if self._switches_off else self.flags
        default = self.default if self.is_switch else self.default_text
        return typer.Option(default, *names, metavar=self.metavar, **kwargs)


def config_fields(model: type[BaseModel]) -> list[ConfigField]:
    """Return a model's fields in the order of the help: what all commands share comes last."""
    fields = [ConfigField(name, info) for name, info in model.model_fields.items()]
    return sorted(fields, key=_help_order)


def _help_order(field: ConfigField) -> tuple[bool, bool]:
    return field.cli.panel == OUTPUT_PANEL, field.name in CommandConfig.model_fields


def _without_annotated(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def escape_markup(text: str) -> str:
    """Return a text that rich shows as it stands; `rich.markup.escape` would import rich."""
    return re.sub(r"(\\*)\[(?=[a-z#/@])", r"\1\1\\[", text)
