"""`qk-contrib`: which pair of components makes this head attend there."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from actcli import builtin, completion
from actcli.commands.model_options import MODEL_PANEL, ModelOptions
from actcli.commands.text_options import SAMPLES_PANEL, TextOptions
from actcli.terminal.config import OUTPUT_PANEL
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, CommaSeparated, IntRanges

_LEDGER = "The ledger"
_DEFAULT_FOLDER = Path("out/qk_contrib")
_DEFAULT_LAYERS = IntRanges.parse("5")
"""Where the built-in model looks from the end of that prompt at the country."""

_ONLY_STATIC, _ONLY_BINARY = ("offsets", "alive"), ("ci_threshold", "gauge")


class QkContribConfig(TextOptions, ModelOptions):
    """Options of `qk-contrib`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli qk-contrib",
        "actcli qk-contrib --decomp spd:runs/s-55ea3f9b --layers 1 --text prompts.txt "
        "--queries all",
        'actcli qk-contrib --init hf://openai-community/gpt2 --decomp svd:64 --prompt "A B A" '
        "--layers 5",
        "actcli qk-contrib --pairs 3:5,delta:3 --rank centered --no-files",
    )

    init: Annotated[str | None, Cli(panel=MODEL_PANEL)] = None
    """Model: a folder, hf://org/repo[/subfolder][@revision] or demo://facts; if not given, the one
    that the decomposition names or holds."""

    decomp: Annotated[str | None, Cli(panel=MODEL_PANEL, metavar="<kind:place>")] = None
    """Components of Q and K: spd:FOLDER, file:FACTORS.safetensors, svd[:RANK] or svd-head[:RANK] of
    the model's own weights, or demo://facts-spd, which is built in and stands here if neither this
    nor --init is given; with --init alone, svd."""

    target: Annotated[str | None, Cli(panel=MODEL_PANEL, metavar="<path>")] = None
    """Folder of the model that an spd: run decomposed, in place of the one that it names."""

    layout: Annotated[Literal["x@V@U", "U@V@x"] | None, Cli(panel=MODEL_PANEL)] = None
    """Which way round the square factors of a file: are, where it does not say."""

    harvest: Annotated[Path | None, Cli(panel=MODEL_PANEL)] = None
    """Harvest database of an spd: run (signs, mean importances), where it is not beside it."""

    model_dtype: Annotated[Literal["fp32", "fp16", "bf16"] | None, Cli(panel=MODEL_PANEL)] = "fp32"
    """What the model computes in: in 16 bits its own logits are rounded, and no sum can close."""

    device: Annotated[
        str, Cli(envvar="ACTCLI_DEVICE", panel=MODEL_PANEL, complete=completion.devices)
    ] = "auto"
    """Where to run the model: auto, cpu, cuda, cuda:N or mps."""

    samples: Annotated[IntRanges | None, Cli(panel=SAMPLES_PANEL)] = None
    """Which of the texts to read, by number from 0; all if not given."""

    layers: Annotated[IntRanges | None, Cli(panel=_LEDGER)] = None
    """Layers to read; all that are decomposed, if not given."""

    queries: Annotated[str, Cli(panel=_LEDGER)] = "last"
    """Positions that attend: last, all, or indices such as 5,8-10,-1 in each text."""

    mode: Annotated[Literal["weighted", "binary", "static"], Cli(panel=_LEDGER)] = "weighted"
    """weighted: what pairs add to the logits of a text; binary: weights between components with a
    causal importance above --ci-threshold; static: weights alone, over --offsets."""

    rank: Annotated[Literal["peak", "centered", "attn", "mean-abs"], Cli(panel=_LEDGER)] = "peak"
    """What makes a pair strong: largest contribution, the same without what is equal for all keys,
    first-order effect on the attention, or mean size."""

    top_n: Annotated[PositiveInt, Cli(panel=_LEDGER)] = 20
    """How many of the strongest pairs to show."""

    pairs: Annotated[CommaSeparated[str], Cli(panel=_LEDGER)] = ()
    """Follow these pairs instead, query component : key component, such as 308:218,delta:3."""

    ci_threshold: Annotated[float, Field(ge=0), Cli(panel=_LEDGER)] = 0.01
    """binary: a component is on where its causal importance is above this."""

    gauge: Annotated[Literal["unit", "raw"], Cli(panel=_LEDGER)] = "unit"
    """binary: unit scales components so that what they read has length 1; raw takes them as they
    are stored."""

    alive: Annotated[float, Field(ge=0), Cli(panel=_LEDGER)] = 0.001
    """static: only components with a mean causal importance above this, where that is known."""

    offsets: Annotated[IntRanges, Cli(panel=_LEDGER)] = IntRanges.parse("0-32")
    """static: query position minus key position, from 0."""

    export: Annotated[Path | None, Cli(panel=OUTPUT_PANEL)] = None
    """Write the components of these layers to this .safetensors file too, for file:FACTORS."""

    output_dir: Annotated[Path | None, Cli(panel=OUTPUT_PANEL)] = None
    """Folder for records, arrays, pictures and page; out/qk_contrib/<name>_<time>, if not given."""

    output: Annotated[Path | None, Cli(short="-o", panel=OUTPUT_PANEL)] = None
    """Write the summary to this file too: .json, or .csv for the table over samples and queries."""

    files: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = True
    """Write nothing into --output-dir; the tables alone."""

    draw: Annotated[NonNegativeInt, Cli(panel=OUTPUT_PANEL)] = 4
    """How many pictures to draw at most; records and page have the rest."""

    force: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """Replace files that exist."""

    @field_validator("queries")
    @classmethod
    def _check_queries(cls, value: str) -> str:
        text = value.strip()
        if text not in ("last", "all"):
            IntRanges.parse(text)
        return text

    @field_validator("offsets")
    @classmethod
    def _check_offsets(cls, value: IntRanges) -> IntRanges:
        if len(value.ranges) != 1 or value.ranges[0].first != 0 or value.ranges[0].last < 0:
            raise ValueError(f"found {value}; expected one range from 0, such as 0-32")
        return value

    @field_validator("pairs")
    @classmethod
    def _check_pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pair in value:
            q, colon, k = pair.partition(":")
            if not (colon and _is_part(q) and _is_part(k)):
                raise ValueError(
                    f"found the pair {pair!r}; expected query part : key part, each the number of "
                    f"a component, delta or bias, such as 308:218 or delta:3"
                )
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.output is not None and self.output.suffix not in (".json", ".csv"):
            raise ValueError(f"--output {self.output}: expected a name ending in .json or .csv")
        if self.export is not None and self.export.suffix != ".safetensors":
            raise ValueError(f"--export {self.export}: expected a name ending in .safetensors")
        for name, kind in (("target", "spd:"), ("harvest", "spd:"), ("layout", "file:")):
            if self.is_given(name) and not (self.decomp or "").startswith(kind):
                raise ValueError(f"--{name} is for --decomp {kind}...: it has no effect here")
        if self.target is not None and self.init is not None:
            raise ValueError("--init and --target both say which model was decomposed: give one")
        self._check_mode()
        return self

    def _check_mode(self) -> None:
        for names, mode in ((_ONLY_STATIC, "static"), (_ONLY_BINARY, "binary")):
            idle = [name for name in names if self.is_given(name)]
            if idle and self.mode != mode:
                option = idle[0].replace("_", "-")
                raise ValueError(f"--{option} has no effect without --mode {mode}")
        if self.mode == "static":
            textual = [name for name in ("queries", "samples") if self.is_given(name)]
            given = self.given_source or (f"--{textual[0]}" if textual else None)
            if given is not None:
                raise ValueError(f"{given} is about texts, and --mode static reads none: drop it")
        if self.pairs and self.is_given("top_n"):
            raise ValueError("--pairs says which pairs to show, --top-n how many: give one of them")
        if self.mode != "weighted" and self.rank == "attn":
            raise ValueError(
                f"--rank attn is about the attention of a text, which --mode {self.mode} leaves "
                f"out: use peak, centered or mean-abs"
            )

    @property
    def stem(self) -> str:
        """What the folder is called: `svd-8`, or the run's own name."""
        name = (self.decomp or "svd").rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
        return "".join(each if each.isalnum() or each in "-_." else "-" for each in name)

    def with_demo(self) -> "QkContribConfig":
        """The same, with the built-in model, components and text where nothing was said."""
        told: dict[str, object] = {}
        if self.init is None and self.decomp is None and self.given_source is None:
            told["layers"] = self.layers or _DEFAULT_LAYERS
        if self.decomp is None:
            told["decomp"] = builtin.DECOMPOSITION if self.init is None else "svd"
        is_demo = self.init == builtin.TEXT_MODEL or builtin.is_builtin(
            str(told.get("decomp", self.decomp))
        )
        if is_demo and self.given_source is None and self.mode != "static":
            told["prompt"] = (builtin.QUESTION,)
        return self.model_copy(update=told)


def _is_part(word: str) -> bool:
    return word in ("delta", "bias", "exact") or (word.isascii() and word.isdigit())


def qk_contrib(config: QkContribConfig) -> None:
    """Split the attention logits of a query into pairs of components of Q and K.

    With what the components miss (delta) and the biases the pairs add up to the model's own
    logits; the largest gap is printed, and one above the tolerance is an error.
    """
    from actcli.commands.qk_files import QkTargets
    from actcli.commands.qk_run import run_static, run_texts
    from actcli.commands.qk_setup import prepare

    output = Output.of(config)
    asked, config = config, config.with_demo()
    targets = QkTargets.of(config, folder=_folder(config))
    setup = prepare(config)
    if asked.decomp is None:
        output.note(f"using {setup.decomposition.name} of {setup.init}; --decomp takes your own")
    setup.export()
    if config.mode == "static":
        run_static(setup, targets, output)
    else:
        run_texts(setup, targets, output)


def _folder(config: QkContribConfig) -> Path | None:
    if not config.files:
        return None
    now = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    return config.output_dir or _DEFAULT_FOLDER / f"{config.stem}_{now}"
