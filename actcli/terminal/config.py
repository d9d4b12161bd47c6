"""The base of every subcommand's config model: how it behaves, and the options all have."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict

from actcli.terminal.fields import Cli

OUTPUT_PANEL = "Output"


class CommandConfig(BaseModel):
    """Options of a subcommand: one field each, and the docstring under the field is its help.

    A bool field that is True by default appears as `--no-x` alone, so its docstring says what
    `--no-x` does. Fields may be given in a TOML file by the field's or the option's name.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True
    )

    examples: ClassVar[tuple[str, ...]] = ()
    """Command lines that end the help and stand in the reference, each whole: `actcli ...`."""

    json_output: Annotated[bool, Cli(flag="--json", panel=OUTPUT_PANEL)] = False
    """Print the result as JSON on standard output, and an error as a line of JSON on standard
    error."""

    quiet: Annotated[bool, Cli(short="-q", panel=OUTPUT_PANEL)] = False
    """Show no progress and no notes; warnings and errors stay."""
