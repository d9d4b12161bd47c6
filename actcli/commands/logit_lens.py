"""`logit-lens`: at which layer does the answer appear."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from actcli import builtin, completion
from actcli.commands.model_options import MODEL_PANEL, ModelOptions
from actcli.commands.text_options import SAMPLES_PANEL, TextOptions
from actcli.errors import nearest
from actcli.terminal.config import OUTPUT_PANEL
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, CommaSeparated, IntRanges, Repeated

if TYPE_CHECKING:
    from actcli.commands.lens_setup import LensSetup
    from actcli.reports.lens_table import LensTable
    from actcli.reports.logit_lens import LogitLensReport

_LENS = "The lens"
_STREAMS = ("resid", "mid", "attn", "mlp")
_DEFAULT_FOLDER = Path("out/logit_lens")
_DEFAULT_ANSWER, _DEFAULT_CONTRAST = "Berlin", "Paris"


class LogitLensConfig(TextOptions, ModelOptions):
    """Options of `logit-lens`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli logit-lens",
        'actcli logit-lens --init hf://openai-community/gpt2 --prompt "The Eiffel Tower is in" '
        "--answer Paris --contrast London",
        "actcli logit-lens --init runs/mine --text prompts.txt --positions last --top-k 20",
        "actcli logit-lens --from-dump activations.safetensors --no-files",
    )

    init: Annotated[str | None, Cli(panel=MODEL_PANEL)] = None
    """Model: a folder, hf://org/repo[/subfolder][@revision], or demo://facts, which is built in and
    stands here if nothing is given; with --from-dump the model that the dump names."""

    device: Annotated[
        str, Cli(envvar="ACTCLI_DEVICE", panel=MODEL_PANEL, complete=completion.devices)
    ] = "auto"
    """Where to run: auto, cpu, cuda, cuda:N or mps."""

    from_dump: Annotated[Path | None, Cli(panel=SAMPLES_PANEL)] = None
    """Read the activations of a dump (embeddings, layer_outputs, ...) instead of running the model;
    its final norm and head are still needed."""

    n_samples: Annotated[PositiveInt | None, Cli(short="-n", panel=SAMPLES_PANEL)] = None
    """Use the first texts alone."""

    answer: Annotated[Repeated[str], Cli(panel=SAMPLES_PANEL)] = ()
    """What should follow the text: its first token is the target at the last position. Once for
    all texts, or once for each. Elsewhere the target is the next token of the text."""

    contrast: Annotated[Repeated[str], Cli(panel=SAMPLES_PANEL)] = ()
    """A wrong answer to compare with: the negative control."""

    layers: Annotated[IntRanges | None, Cli(panel=_LENS)] = None
    """Layers to read, all if not given: 0 is what enters the first block, l the output of block
    l-1."""

    positions: Annotated[str, Cli(panel=_LENS)] = "all"
    """Positions to read of each text: all, last, or indices such as 0,3-5,-1."""

    top_k: Annotated[PositiveInt, Cli(short="-k", panel=_LENS)] = 10
    """How many of the likeliest tokens each record lists."""

    lens: Annotated[Literal["norm", "raw"], Cli(panel=_LENS)] = "norm"
    """norm: through the model's own final norm, at every layer; raw: without it."""

    streams: Annotated[CommaSeparated[str], Cli(panel=_LENS, complete=completion.lens_streams)] = (
        "resid",
    )
    """What to read: resid (the residual stream), mid (between attention and MLP), attn and mlp
    (what they add)."""

    translator: Annotated[Path | None, Cli(panel=_LENS)] = None
    """Learned maps before the final norm: a tuned-lens folder, or a J-lens file."""

    batch_tokens: Annotated[PositiveInt, Cli(panel=_LENS)] = 512
    """Tokens in one forward pass, padding included."""

    output_dir: Annotated[Path | None, Cli(panel=OUTPUT_PANEL)] = None
    """Folder for records, summary, pictures and page; out/logit_lens/<model>_<time>, if not
    given."""

    output: Annotated[Path | None, Cli(short="-o", panel=OUTPUT_PANEL)] = None
    """Write the summary to this .json file too."""

    files: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = True
    """Write nothing into --output-dir; the table alone."""

    colour: Annotated[
        Literal["probability", "entropy", "rank", "kl"],
        Cli(aliases=("--color",), panel=OUTPUT_PANEL),
    ] = "probability"
    """What shades the heatmap: probability of the likeliest token, entropy in bits, rank of the
    target, or KL(layer || final) in bits."""

    draw: Annotated[NonNegativeInt, Cli(panel=OUTPUT_PANEL)] = 4
    """How many texts are drawn, and shown on the page."""

    force: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """Replace files that exist."""

    @field_validator("positions")
    @classmethod
    def _check_positions(cls, value: str) -> str:
        text = value.strip()
        if text not in ("last", "all"):
            IntRanges.parse(text)
        return text

    @field_validator("streams")
    @classmethod
    def _check_streams(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [each for each in value if each not in _STREAMS]
        if unknown or not value:
            word = unknown[0] if unknown else ""
            raise ValueError(f"there is no stream {word!r}; {nearest(word, _STREAMS)}")
        return tuple(each for each in _STREAMS if each in value)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.from_dump is not None and self.given_source is not None:
            raise ValueError(
                f"--from-dump holds its own texts: leave out {self.given_source}, or run the model"
            )
        if self.output is not None and self.output.suffix != ".json":
            raise ValueError(f"--output {self.output}: expected a name ending in .json")
        if self.translator is not None and self.lens == "raw":
            raise ValueError("--translator goes through the final norm, --lens raw does not")
        if self.translator is not None and self.streams != ("resid",):
            raise ValueError("a --translator is made for the residual stream: drop --streams")
        if self.chunk is not None and self.answer:
            raise ValueError("--chunk joins texts, so there is no place for an --answer")
        return self

    def with_demo(self) -> "LogitLensConfig":
        """The same, with the built-in model and question where nothing was said."""
        if self.from_dump is not None or self.init not in (None, builtin.TEXT_MODEL):
            return self
        told = {"init": builtin.TEXT_MODEL}
        if self.given_source is not None:
            return self.model_copy(update=told)
        asked: dict[str, object] = {"prompt": (builtin.QUESTION,)}
        if not self.answer:
            asked |= {"answer": (_DEFAULT_ANSWER,), "contrast": (_DEFAULT_CONTRAST,)}
        return self.model_copy(update=told | asked)


def logit_lens(config: LogitLensConfig) -> None:
    """Read every layer of a model as if it were the last: at which one does the answer appear?

    Each layer goes through the model's own final norm and head, proven on load: the last layer's
    lens is the model's own output. Entropy and divergences are in bits.
    """
    from actcli.commands.lens_setup import prepare_lens
    from actcli.render.lens_tables import lens_tables

    output = Output.of(config)
    asked, config = config, config.with_demo()
    targets = _Targets.of(config)
    with ExitStack() as stack:
        setup = prepare_lens(config, stack)
        if asked.init is None and config.init == builtin.TEXT_MODEL:
            output.note(f"using the built-in model {config.init}; --init takes your own")
        report = _run(config, setup, targets, output)
    output.print_report(
        report, partial(lens_tables, table=setup.collector.ends, text_of=setup.text_of)
    )


@dataclass(frozen=True)
class _Targets:
    """The files that will be written."""

    folder: Path | None
    stem: str
    summary: Path | None
    force: bool

    @classmethod
    def of(cls, config: LogitLensConfig) -> Self:
        """Name the files, and refuse those that exist, before any work."""
        from actcli.render.records import check_report_target

        name = config.init or (config.from_dump.stem if config.from_dump else "model")
        stem = name.rstrip("/").rpartition("/")[2].partition("@")[0]
        now = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
        folder = config.output_dir or _DEFAULT_FOLDER / f"{stem}_{now}"
        found = cls(folder if config.files else None, f"output-{stem}", config.output, config.force)
        if config.output is not None:
            check_report_target(config.output, force=config.force)
        if found.folder is not None:
            check_report_target(found.path("-records.csv"), force=found.force)
            check_report_target(found.path(".json"), force=found.force)
        return found

    def path(self, ending: str) -> Path:
        """A file in the folder."""
        assert self.folder is not None
        return self.folder / f"{self.stem}{ending}"


def _run(
    config: LogitLensConfig, setup: "LensSetup", targets: _Targets, output: Output
) -> "LogitLensReport":
    """Read all texts, writing records as they come, then the summary, pictures and page."""
    from actcli.render.lens_files import write_drawings, write_summary

    began = time.perf_counter()
    with (
        _open_records(config, setup, targets) as write,
        output.progress(setup.n_samples, "reading") as advance,
    ):
        for table in setup.read():
            write(table)
            advance(len(set(table.sample.tolist())))
    report = setup.report(elapsed_s=time.perf_counter() - began)
    for warning in report.warnings:
        output.warn(warning)
    files = []
    if targets.folder is not None:
        drawn = write_drawings(
            setup.collector.drawn,
            report,
            targets.folder,
            stem=targets.stem,
            colour=config.colour,
            text_of=setup.text_of,
        )
        names = ("-records.csv", "-pure-next-token.csv")
        files = [*(targets.path(each) for each in names), *drawn, targets.path(".json")]
    files += [config.output] if config.output is not None else []
    report = report.model_copy(update={"files": tuple(map(str, files))})
    for path in (each for each in files if each.suffix == ".json"):
        write_summary(report, path)
    return report


@contextmanager
def _open_records(
    config: LogitLensConfig, setup: "LensSetup", targets: _Targets
) -> Iterator[Callable[["LensTable"], None]]:
    """Open the two files of records; gives what takes a table."""
    from actcli.analysis.lens_collect import copy_collapse, last_records
    from actcli.analysis.lens_milestones import Thresholds
    from actcli.render.lens_records import PureNextTokenCsv, RecordsCsv

    if targets.folder is None:
        yield lambda _table: None
        return
    options: dict[str, Any] = {
        "top_k": setup.top_k,
        "text_of": setup.text_of,
        "contrast": bool(config.contrast),
    }
    with (
        RecordsCsv(targets.path("-records.csv"), **options) as records,
        PureNextTokenCsv(targets.path("-pure-next-token.csv"), **options) as pure,
    ):

        def write(table: "LensTable") -> None:
            records.write(table)
            last = last_records(table)
            pure.write(
                last,
                copy_collapse=copy_collapse(last, setup.ids_of, text_of=setup.text_of),
                entropy_collapse=last.entropy_bits <= Thresholds().entropy_bits,
            )

        yield write
