"""From words and a config file to a checked config: default < file < environment < command line."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from actcli.errors import UsageError, nearest
from actcli.terminal.config_field import ConfigField

Config = TypeVar("Config", bound=BaseModel)


def read_config_file(path: Path, fields: list[ConfigField]) -> dict[str, Any]:
    """Return a TOML file's values by the names of the fields.

    Raises:
        UsageError: it cannot be read, is not TOML, or has a key that no field answers to.
    """
    names = {name: field.name for field in fields for name in field.config_file_names}
    values: dict[str, Any] = {}
    for key, value in _load_toml(path).items():
        name = names.get(key.replace("-", "_"))
        if name is None:
            raise UsageError(f"--config: {path} has an unknown key {key!r}; {nearest(key, names)}")
        if name in values:
            raise UsageError(f"--config: {path} gives {name!r} twice, under two names; keep one")
        values[name] = value
    return values


def make_config(
    model: type[Config],
    fields: list[ConfigField],
    *,
    typed: Mapping[str, Any],
    from_file: Mapping[str, Any],
) -> Config:
    """Check the values and make the config of them; what was typed wins.

    Raises:
        UsageError: a value is missing or wrong; the message names the option of each.
    """
    try:
        return model.model_validate({**from_file, **typed})
    except ValidationError as error:
        by_name = {field.name: field for field in fields}
        in_file = from_file.keys() - typed.keys()
        lines = [_explain(each, by_name, in_file=in_file) for each in error.errors()]
    raise UsageError("\n".join(lines))


def _load_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path} is not a TOML file: {error}") from error


def _explain(problem: ErrorDetails, fields: Mapping[str, ConfigField], *, in_file: set[str]) -> str:
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not problem["loc"]:
        return message
    field = fields[str(problem["loc"][0])]
    origin = f" ({field.name} in the --config file)" if field.name in in_file else ""
    if problem["type"] == "missing":
        return (
            f"{field.shown_name} is required; give it there or as {field.name} in a --config file"
        )
    if problem["type"] == "value_error":
        return f"{field.shown_name}{origin}: {message}"
    expected = message.removeprefix("Input ").partition(", unable to parse")[0]
    return f"{field.shown_name}{origin}: {expected}, but is {problem['input']!r}"
