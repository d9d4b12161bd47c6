"""What the shell offers for a value, from a field's completer or its choices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from actcli.terminal.config_field import Autocompletion, ConfigField, escape_markup
from actcli.terminal.config_values import read_config_file
from actcli.terminal.fields import Completer

CONFIG_FILE = "config_file"
"""The parameter that holds the path of the config file."""


def autocompletion(field: ConfigField, fields: list[ConfigField]) -> Autocompletion | None:
    """Return Typer's completion callback for a field; None leaves paths to the shell.

    Where one word holds several values, it goes on after the last comma, and offers none twice.
    """
    completer = field.cli.complete or (_offer(field.choices) if field.choices else None)
    if completer is None:
        return None

    def offers(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        done, comma, last = (
            incomplete.rpartition(",") if field.is_sequence else ("", "", incomplete)
        )
        try:
            found = [_with_help(each) for each in completer(words_so_far(ctx, fields), last)]
        except Exception:  # noqa: BLE001  a traceback would land in the user's prompt
            return []
        taken = done.split(",")
        return [(done + comma + value, text) for value, text in found if value not in taken]

    return offers


def words_so_far(ctx: typer.Context, fields: list[ConfigField]) -> dict[str, Any]:
    """Return the values before the cursor by field name: defaults, config file, typed words.

    While an option awaits its value, Typer leaves the positional words in `ctx.args`.
    """
    defaults = {each.name: each.default for each in fields if not each.info.is_required()}
    path = ctx.params.get(CONFIG_FILE)
    from_file = read_config_file(Path(path), fields) if path else {}
    waiting = (each.name for each in fields if each.cli.positional)
    waited = dict(zip(waiting, ctx.args, strict=False))
    return {**defaults, **from_file, **typed_words(ctx), **waited}


def typed_words(ctx: typer.Context) -> dict[str, Any]:
    """Return the parameters that the command line or the environment gave."""
    return {name: word for name, word in ctx.params.items() if _was_given(ctx, name)}


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _offer(choices: tuple[str, ...]) -> Completer:
    def choose(_words: Mapping[str, Any], _incomplete: str) -> tuple[str, ...]:
        return choices

    return choose


def _with_help(offer: str | tuple[str, str]) -> tuple[str, str]:
    value, text = (offer, "") if isinstance(offer, str) else offer
    return value, escape_markup(text)  # zsh and fish show it, after Typer has read it as markup
