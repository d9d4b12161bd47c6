"""A small program of one command with an option of every kind, to test the machinery with.

Run as `python -m tests.terminal.toy`; its command prints its config as JSON.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import typer
from pydantic import BaseModel, PositiveFloat, PositiveInt, field_validator, model_validator
from rich.table import Table

from actcli.errors import CheckFailed, DumpError
from actcli.terminal.config import CommandConfig
from actcli.terminal.config_command import Command, add_command
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, CommaSeparated, IntRanges, Repeated


def offer_keys(words: Mapping[str, Any], _incomplete: str) -> Iterable[str | tuple[str, str]]:
    if str(words["input"]) == "broken":
        raise DumpError("no completion from this")
    place = words["input"] if str(words["source"]) == "nothing" else words["source"]
    return [(f"{place}_{each}", "a [key]") for each in "ab"]


class WorkConfig(CommandConfig):
    """Options of the toy's command."""

    examples: ClassVar[tuple[str, ...]] = ("toy work a.npz --key 'x[red]'", "toy work b --json")

    source: Annotated[Path, Cli(positional=True)] = Path("nothing")
    """What to work on."""

    input: Annotated[Path, Cli(short="-i")] = Path("acts")
    """Which file to read."""

    key: Annotated[str | None, Cli(short="-k", complete=offer_keys)] = None
    """Which [tensor] to take."""

    keys: Annotated[CommaSeparated[str], Cli(complete=offer_keys)] = ("x", "y")
    """Several of them."""

    words: Annotated[Repeated[str], Cli(flag="--word", complete=offer_keys)] = ()
    """Texts; several are several options."""

    sizes: Annotated[Repeated[PositiveInt], Cli(flag="--size")] = (3, 4)
    """Numbers, likewise."""

    threshold: Annotated[PositiveFloat, Cli(short="-t", envvar="TOY_THRESHOLD")] = 6.0
    """What counts as far
    from zero."""

    layers: IntRanges | None = None
    """Which layers."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """How to store."""

    colours: CommaSeparated[Literal["red", "green"]] = ("red",)
    """Which colours."""

    n_samples: Annotated[PositiveInt | None, Cli(short="-n", panel="Samples")] = 3
    """How many samples."""

    write: bool = True
    """Write nothing."""

    end: str = ""
    """How to end: well, fail, check, interrupt or crash."""

    @field_validator("key")
    @classmethod
    def refuse_blanks(cls, key: str | None) -> str | None:
        if key is not None and " " in key:
            raise ValueError(f"{key!r} has a blank; expected a name without")
        return key

    @model_validator(mode="after")
    def refuse_a_pair(self) -> Self:
        if self.dtype == "bf16" and self.source.suffix == ".npz":
            raise ValueError(".npz cannot hold bf16")
        return self


class Answer(BaseModel):
    """What the command answers."""

    config: dict[str, Any]
    """The options it ran with."""


def work(config: WorkConfig) -> None:
    """Do a little [work].

    In two
    paragraphs.

    Raises:
        DumpError: it was asked to fail.
    """
    out = Output.of(config)
    out.note(f"reading {config.input}")
    ends = {
        "fail": DumpError("no [bold]tensor[/bold] 'x' in a[/]b; did you mean 'y'?"),
        "interrupt": KeyboardInterrupt(),
        "crash": ZeroDivisionError("a bug"),
    }
    if config.end in ends:
        raise ends[config.end]
    out.print_report(Answer(config=config.model_dump(mode="json")), tables)
    if config.end == "check":
        raise CheckFailed("all gammas are 1.0")


def tables(answer: Answer) -> Iterable[Table]:
    table = Table("option", "value", title="[red]options[/red]")
    for name, value in answer.config.items():
        table.add_row(name, str(value))
    yield table


app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def toy() -> None:
    """Try the machinery."""


add_command(app, Command("work", work, panel="Capture"))

if __name__ == "__main__":
    app(prog_name="toy")
