"""`dump`: capture activations of a model into a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from actcli import builtin, completion
from actcli.commands.model_options import ModelOptions
from actcli.commands.text_options import SAMPLES_PANEL, TextOptions, open_text_samples
from actcli.errors import ActcliError, CheckFailed, UsageError
from actcli.sites import check_outputs
from actcli.store.header import WRITTEN_SUFFIXES
from actcli.terminal.config import OUTPUT_PANEL
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, CommaSeparated, IntRanges

if TYPE_CHECKING:
    from actcli.capture.dumping import DumpRun
    from actcli.models import FoundModel
    from actcli.reports.dump import DumpReport
    from actcli.samples.boards import BoardSamples
    from actcli.samples.source import SampleSource

_CAPTURE = "What to capture"
_BOARDS = 1024  # drawn by default
_RUN = "How to run"
_TEXT_ONLY = ("text", "jsonl", "prompt", "tokens", "max_tokens", "chunk", "full_logits")


class DumpConfig(TextOptions, ModelOptions):
    """Options of `dump`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli dump --outputs attn_norm,mlp_input",
        "actcli dump --init runs/mine --dataset data/steps --layers 0,3-5,-1 --dtype bf16",
        "actcli dump --outputs attn_weights,module:blocks.2.mlp.w_up --n-samples 64 --dry-run",
        "actcli dump --init hf://openai-community/gpt2 --text prompts.txt --outputs layer_outputs",
    )

    init: str = builtin.MODEL
    """Model: a folder, a .pt bundle, a .safetensors file beside its config.json,
    hf://org/repo[/subfolder][@revision], or demo://2048 or demo://facts, which are built in."""

    outputs: Annotated[
        CommaSeparated[str], Cli(panel=_CAPTURE, complete=completion.output_sites)
    ] = ("final_hidden",)
    """Sites to capture: TAB offers them, and docs/reference/sites.md says what each is;
    module:<dotted.path> is the output of any module."""

    layers: Annotated[IntRanges | None, Cli(panel=_CAPTURE, complete=completion.model_layers)] = (
        None
    )
    """Layers to keep of the sites that have them; all, if not given. Stored in ascending order."""

    positions: Annotated[IntRanges | None, Cli(panel=_CAPTURE)] = None
    """Tokens to keep of the sites that have them (queries of attention); all, if not given.
    Negative ones count from each sample's own end: -1 is its last token."""

    top_logits: Annotated[PositiveInt, Cli(panel=_CAPTURE)] = 10
    """How many of each token's largest logits --outputs logits stores, with their token ids."""

    full_logits: Annotated[bool, Cli(panel=_CAPTURE)] = False
    """Store the logits of the whole vocabulary."""

    dtype: Annotated[Literal["fp32", "fp16", "bf16"], Cli(panel=_CAPTURE)] = "fp32"
    """How to store activations; the model computes in its own precision."""

    dataset: Annotated[str | None, Cli(panel=SAMPLES_PANEL, metavar="<path>")] = None
    """For 2048 models a folder with steps.npy or steps-*.npy (demo://2048-steps, built in, if not
    given); for text a saved Hugging Face data set or a .parquet file, whose column is --field."""

    indices: Annotated[Path | None, Cli(panel=SAMPLES_PANEL)] = None
    """An .npy file of row numbers of a steps folder to use, in their order, instead of a draw."""

    n_samples: Annotated[PositiveInt | None, Cli(short="-n", panel=SAMPLES_PANEL)] = None
    """Boards to draw, without replacement while there are enough (1024, if not given); of texts,
    the first ones (all, if not given)."""

    seed: Annotated[NonNegativeInt, Cli(panel=SAMPLES_PANEL)] = 0
    """Seed of the draw of boards, and of the choice of samples for --verify."""

    batch_size: Annotated[PositiveInt | None, Cli(panel=_RUN)] = None
    """Samples in one forward pass; as many as --batch-tokens allows, if not given."""

    batch_tokens: Annotated[PositiveInt | None, Cli(panel=_RUN)] = None
    """Tokens in one forward pass, padding included; if not given, 2048 on a CPU and 16384 on a
    GPU, or as many as keep the buffers small. Samples of like length go together."""

    device: Annotated[str, Cli(envvar="ACTCLI_DEVICE", panel=_RUN, complete=completion.devices)] = (
        "auto"
    )
    """Where to run: auto, cpu, cuda, cuda:N or mps."""

    verify: Annotated[NonNegativeInt, Cli(panel=_RUN)] = 0
    """Run this many random samples again, alone, through the plain model, and record the largest
    difference in the dump; exit status 3 if it is more than rounding explains."""

    dry_run: Annotated[bool, Cli(panel=_RUN)] = False
    """Show keys, shapes, bytes on disk, peak memory and device, and stop; needs no weights."""

    output: Annotated[Path, Cli(short="-o", panel=OUTPUT_PANEL)] = Path("activations.safetensors")
    """File to write; its suffix (.safetensors, .pt, .npz) picks the format."""

    write: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = True
    """Run and discard the activations, to see the speed of the model alone."""

    force: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """Replace the file if it exists, once the new one is complete."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The outputs, with the largest logits in the place of all unless these are wanted."""
        if self.full_logits:
            return self.outputs
        largest = {"logits": ("logits_top", "logits_top_ids")}
        chosen = (site for each in self.outputs for site in largest.get(each, (each,)))
        return tuple(dict.fromkeys(chosen))

    @field_validator("outputs")
    @classmethod
    def _check_outputs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return check_outputs(value)
        except ActcliError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        """Know the format, and that NumPy has no bfloat16."""
        if self.output.suffix not in WRITTEN_SUFFIXES:
            known = ", ".join(WRITTEN_SUFFIXES)
            raise ValueError(f"--output {self.output}: expected a name that ends in {known}")
        if self.write and self.output.suffix == ".npz" and self.dtype == "bf16":
            raise ValueError(
                "an .npz file cannot hold bf16: use --dtype fp32 or fp16, or .safetensors"
            )
        if self.verify and not self.write:
            raise ValueError("--verify reads what was written, so it cannot go with --no-write")
        return self


def dump(config: DumpConfig) -> None:
    """Capture activations of a model into a file, row by row.

    With no options it captures the built-in model on built-in boards.
    """
    from actcli.capture.dumping import plan_report, run_without_writing, write_dump
    from actcli.render.dump import dump_tables, plan_tables

    output = Output.of(config)
    run = _prepare(config, output)
    if config.dry_run:
        output.print_report(plan_report(run, config.output), plan_tables)
        return
    with output.progress(len(run.samples), "capturing") as advance:
        if config.write:
            report = write_dump(
                run,
                config.output,
                config=config.model_dump(mode="json"),
                n_verified=config.verify,
                advance=advance,
                force=config.force,
            )
        else:
            report = run_without_writing(run, advance=advance)
    _warn_of_non_finite(report, output)
    output.print_report(report, dump_tables)
    if report.verification is not None and not report.verification.agrees:
        raise CheckFailed(
            "the dump differs from the plain model by more than rounding explains (table above); "
            "it was written all the same, with the differences in its manifest"
        )


def _prepare(config: DumpConfig, output: Output) -> "DumpRun":
    """Load and check everything before work starts."""
    from actcli.capture.device import find_device
    from actcli.capture.dumping import prepare
    from actcli.models import find_model
    from actcli.store.writer import check_target

    if config.write and not config.dry_run:
        check_target(config.output, force=config.force)
    device = find_device(config.device)
    found = find_model(config.init, config.load_options)
    samples = _open_samples(config, found, output)
    if builtin.is_builtin(config.init):
        output.note(f"using the built-in model {config.init}; --init takes your own")
    adapter = found.load(device=str(device), weights=not config.dry_run)
    adapter.n_top_logits = config.top_logits
    run = prepare(
        adapter,
        samples,
        outputs=config.sites,
        layers=config.layers,
        positions=config.positions,
        dtype=config.dtype,
        batch_size=config.batch_size,
        batch_tokens=config.batch_tokens,
        device=device,
    )
    if config.verify and not run.plan.sites:
        raise UsageError(
            "--verify: --outputs names parameters alone, so there is nothing to verify"
        )
    _warn_of_idle_options(config, run, output)
    return run


def _open_samples(config: DumpConfig, found: "FoundModel", output: Output) -> "SampleSource":
    """Open what this model reads, and refuse options for what it does not read."""
    if found.reads == "boards":
        idle = [each for each in _TEXT_ONLY if config.is_given(each)]
        if idle:
            raise UsageError(
                f"{config.init} reads 2048 boards, so --{idle[0].replace('_', '-')} has no "
                f"meaning for it: give --dataset, or another --init"
            )
        return _open_boards(config, output)
    if config.indices is not None:
        raise UsageError(f"{config.init} reads text, and --indices names rows of boards: drop it")
    texts = open_text_samples(
        config,
        found.source.path,
        n_samples=config.n_samples,
        default=builtin.TEXT if config.init == builtin.TEXT_MODEL else None,
        trust_remote_code=config.trust_remote_code,
    )
    return texts.samples


def _open_boards(config: DumpConfig, output: Output) -> "BoardSamples":
    from actcli.samples.boards import BoardSamples
    from actcli.samples.selection import draw_indices, read_indices
    from actcli.samples.steps import open_steps

    steps = open_steps(config.dataset or builtin.STEPS)
    if config.indices is not None:
        return BoardSamples(steps, read_indices(config.indices, n_rows=len(steps)))
    wanted = config.n_samples or _BOARDS
    if wanted > len(steps):
        output.warn(
            f"{wanted} samples were asked for and the data set has {len(steps)} rows: "
            f"drawing with replacement"
        )
    drawn = draw_indices(len(steps), n_samples=wanted, seed=config.seed)
    return BoardSamples(steps, drawn)


def _warn_of_idle_options(config: DumpConfig, run: "DumpRun", output: Output) -> None:
    axes = {axis for plan in run.plan.sites for axis in plan.site.axes}
    for option, value, axis in (
        ("layers", config.layers, "L"),
        ("positions", config.positions, "T"),
        ("full-logits", config.full_logits or None, "V"),
    ):
        if value is not None and axis not in axes:
            output.warn(f"--{option} has no effect: none of the --outputs has {option}")


def _warn_of_non_finite(report: "DumpReport", output: Output) -> None:
    for key, count in report.non_finite.items():
        output.warn(
            f"{key}: {count:,} stored values are NaN or infinite; "
            f"with --dtype fp16 values beyond 65504 overflow: try bf16 or fp32"
        )
