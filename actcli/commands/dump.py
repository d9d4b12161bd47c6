"""`dump`: capture activations of a model into a file."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from actcli import builtin, completion
from actcli.errors import ActcliError, CheckFailed
from actcli.sites import check_outputs
from actcli.terminal.config import OUTPUT_PANEL, CommandConfig
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, CommaSeparated, IntRanges

if TYPE_CHECKING:
    from actcli.capture.plan import CapturePlan
    from actcli.capture.record import Recording
    from actcli.capture.verify import Verification
    from actcli.models.adapter import ModelAdapter
    from actcli.reports.dump import DumpReport, PlanReport, TensorReport
    from actcli.samples.boards import BoardSamples
    from actcli.store.header import TensorInfo

_FORMATS = (".safetensors", ".pt", ".npz")
_CAPTURE = "What to capture"
_SAMPLES = "Samples"
_RUN = "How to run"


class DumpConfig(CommandConfig):
    """Options of `dump`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli dump --outputs attn_norm,mlp_input",
        "actcli dump --init runs/mine --dataset data/steps --layers 0,3-5,-1 --dtype bf16",
        "actcli dump --outputs attn_weights,module:blocks.2.mlp.w_up --n-samples 64 --dry-run",
    )

    init: str = builtin.MODEL
    """Model: a folder, a .pt bundle, a .safetensors file beside its config.json,
    hf://org/repo[/subfolder][@revision], or demo://2048, which is built in."""

    outputs: Annotated[
        CommaSeparated[str], Cli(panel=_CAPTURE, complete=completion.output_sites)
    ] = ("final_hidden",)
    """Sites to capture; `actcli dump --outputs ?` names them all, and module:<dotted.path> is the
    output of any module."""

    layers: Annotated[IntRanges | None, Cli(panel=_CAPTURE, complete=completion.model_layers)] = (
        None
    )
    """Layers to keep of the sites that have them; all, if not given. Stored in ascending order."""

    positions: Annotated[IntRanges | None, Cli(panel=_CAPTURE)] = None
    """Tokens to keep of the sites that have them (queries of attention); all, if not given."""

    dtype: Annotated[Literal["fp32", "fp16", "bf16"], Cli(panel=_CAPTURE)] = "fp32"
    """How to store activations; the model computes in its own precision."""

    dataset: Annotated[str, Cli(panel=_SAMPLES)] = builtin.STEPS
    """Folder with steps.npy or steps-*.npy, or demo://2048-steps, which is built in."""

    indices: Annotated[Path | None, Cli(panel=_SAMPLES)] = None
    """An .npy file of row numbers to use, in their order, instead of a draw."""

    n_samples: Annotated[PositiveInt, Cli(short="-n", panel=_SAMPLES)] = 1024
    """Rows to draw, without replacement while there are enough."""

    seed: Annotated[NonNegativeInt, Cli(panel=_SAMPLES)] = 0
    """Seed of the draw, and of the choice of samples for --verify."""

    batch_size: Annotated[PositiveInt, Cli(panel=_RUN)] = 1024
    """Samples in one forward pass."""

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
        if self.output.suffix not in _FORMATS:
            raise ValueError(
                f"--output {self.output}: expected a name that ends in {', '.join(_FORMATS)}"
            )
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
    from actcli.render.dump import dump_tables, plan_tables

    output = Output.of(config)
    run = _prepare(config, output)
    if config.dry_run:
        output.print_report(_plan_report(config, run), plan_tables)
        return
    report = _write_dump(config, run, output) if config.write else _discard(config, run, output)
    _warn_of_non_finite(report, output)
    output.print_report(report, dump_tables)
    if report.verification is not None and not report.verification.agrees:
        raise CheckFailed(
            "the dump differs from the plain model by more than rounding explains (table above); "
            "it was written all the same, with the differences in its manifest"
        )


@dataclass(frozen=True)
class _Run:
    """A model, its samples and a plan that fit together."""

    adapter: "ModelAdapter"
    samples: "BoardSamples"
    plan: "CapturePlan"
    device: str
    tensors: "dict[str, TensorInfo]"
    batch_size: int


def _prepare(config: DumpConfig, output: Output) -> _Run:
    """Load and check everything before work starts."""
    from actcli.capture.device import find_device
    from actcli.capture.manifest import device_name
    from actcli.capture.plan import DTYPES, make_plan
    from actcli.capture.record import dump_tensors
    from actcli.models import load_model
    from actcli.store.writer import check_target

    if config.write and not config.dry_run:
        check_target(config.output, force=config.force)
    device = find_device(config.device)
    samples = _open_samples(config, output)
    if builtin.is_builtin(config.init):
        output.note(f"using the built-in model {config.init}; --init takes your own")
    adapter = load_model(config.init, device=str(device), weights=not config.dry_run)
    adapter.check_tokens(n_tokens=samples.n_tokens, largest_token=samples.largest_token)
    n_layers, n_tokens = adapter.n_layers, samples.n_tokens
    layers = config.layers.resolve(n_layers) if config.layers else tuple(range(n_layers))
    positions = config.positions.resolve(n_tokens, name="position") if config.positions else None
    plan = make_plan(
        adapter,
        samples,
        config.outputs,
        layers=sorted(layers),
        positions=positions,
        dtype=DTYPES[config.dtype],
    )
    tensors, batch_size = dump_tensors(plan, samples), min(config.batch_size, len(samples))
    return _Run(adapter, samples, plan, device_name(device), tensors, batch_size)


def _open_samples(config: DumpConfig, output: Output) -> "BoardSamples":
    from actcli.samples.boards import BoardSamples
    from actcli.samples.selection import draw_indices, read_indices
    from actcli.samples.steps import open_steps

    steps = open_steps(config.dataset)
    if config.indices is not None:
        return BoardSamples(steps, read_indices(config.indices, n_rows=len(steps)))
    if config.n_samples > len(steps):
        output.warn(
            f"{config.n_samples} samples were asked for and the data set has {len(steps)} rows: "
            f"drawing with replacement"
        )
    return BoardSamples(
        steps, draw_indices(len(steps), n_samples=config.n_samples, seed=config.seed)
    )


def _write_dump(config: DumpConfig, run: _Run, output: Output) -> "DumpReport":
    from actcli.capture.manifest import describe_results, describe_run, dump_metadata
    from actcli.capture.verify import verify
    from actcli.store.writer import DumpWriter

    manifest = describe_run(config.model_dump(mode="json"), run.adapter, run.plan, run.samples)
    n = len(run.samples)
    metadata = dump_metadata(run.adapter, manifest, n_samples=n, outputs=config.outputs)
    with DumpWriter(config.output, run.tensors, metadata=metadata, force=config.force) as writer:
        recording = _record(run, writer.write_rows, output)
        verification = config.verify and verify(
            run.adapter,
            run.plan,
            run.samples,
            writer,
            n_samples=config.verify,
            seed=config.seed,
        )
        results = describe_results(recording, verification or None)
        writer.commit(
            dump_metadata(run.adapter, manifest | results, n_samples=n, outputs=config.outputs)
        )
    return _dump_report(run, recording, verification or None, config.output)


def _discard(config: DumpConfig, run: _Run, output: Output) -> "DumpReport":
    del config
    return _dump_report(run, _record(run, _forget, output), None, None)


def _forget(_key: str, _start: int, _rows: memoryview) -> None:
    """Take rows and write nothing."""


def _record(
    run: _Run, write_rows: Callable[[str, int, memoryview], None], output: Output
) -> "Recording":
    from actcli.capture.engine import CaptureEngine
    from actcli.capture.record import record

    engine = CaptureEngine(run.adapter, run.plan, batch_size=run.batch_size)
    with output.progress(len(run.samples), "capturing") as advance:
        return record(
            engine,
            run.plan,
            run.samples,
            write_rows,
            batch_size=run.batch_size,
            advance=advance,
        )


def _dump_report(
    run: _Run,
    recording: "Recording",
    verification: "Verification | None",
    path: Path | None,
) -> "DumpReport":
    from actcli.reports.dump import DumpReport, VerificationReport

    rate = recording.n_samples / max(recording.elapsed_s, 1e-9)
    return DumpReport(
        output=None if path is None else str(path),
        file_bytes=0 if path is None else path.stat().st_size,
        device=run.device,
        n_samples=recording.n_samples,
        n_batches=recording.n_batches,
        elapsed_s=recording.elapsed_s,
        samples_per_s=rate,
        tokens_per_s=rate * run.samples.n_tokens,
        tensors=_tensor_reports(run),
        non_finite=dict(recording.non_finite),
        verification=verification
        and VerificationReport(
            samples=verification.samples,
            max_abs_difference=dict(verification.max_abs_difference),
            agrees=verification.agrees,
        ),
    )


def _plan_report(config: DumpConfig, run: _Run) -> "PlanReport":
    from actcli.capture.device import find_device
    from actcli.capture.estimate import peak_memory
    from actcli.reports.dump import PlanReport

    tensors = _tensor_reports(run)
    return PlanReport(
        model=config.init,
        family=run.adapter.family,
        device=run.device,
        n_samples=len(run.samples),
        batch_size=run.batch_size,
        layers=run.plan.layers,
        tensors=tensors,
        file_bytes=sum(each.n_bytes for each in tensors),
        free_bytes=_free_bytes(config.output),
        peak_memory_bytes=peak_memory(
            run.adapter, run.plan, run.samples, run.batch_size, device=find_device(config.device)
        ),
    )


def _free_bytes(path: Path) -> int:
    there = next(each for each in path.absolute().parents if each.exists())
    return shutil.disk_usage(there).free


def _tensor_reports(run: _Run) -> "tuple[TensorReport, ...]":
    from actcli.reports.dump import TensorReport

    return tuple(
        TensorReport(key=key, dtype=info.dtype, shape=info.shape, n_bytes=info.nbytes)
        for key, info in run.tensors.items()
    )


def _warn_of_non_finite(report: "DumpReport", output: Output) -> None:
    for key, count in report.non_finite.items():
        output.warn(
            f"{key}: {count:,} stored values are NaN or infinite; "
            f"with --dtype fp16 values beyond 65504 overflow: try bf16 or fp32"
        )
