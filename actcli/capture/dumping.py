"""Make a dump: a model, samples and a plan that fit together, run and written."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from actcli.capture.device import default_batch_tokens
from actcli.capture.engine import CaptureEngine
from actcli.capture.estimate import peak_memory
from actcli.capture.manifest import describe_results, describe_run, device_name, dump_metadata
from actcli.capture.plan import DTYPES, CapturePlan, make_plan
from actcli.capture.record import Recording, dump_tensors, record
from actcli.capture.row_writer import WriteRows
from actcli.capture.verify import Verification, verify
from actcli.models.adapter import ModelAdapter
from actcli.reports.dump import DumpReport, PlanReport, TensorReport, VerificationReport
from actcli.samples.batching import count_tokens, plan_batches
from actcli.samples.source import Rows, SampleSource
from actcli.store.header import TensorInfo
from actcli.store.writer import DumpWriter, is_converted
from actcli.terminal.fields import IntRanges

Advance = Callable[[int], None]
"""Called with the number of samples done since the last call."""


_BUFFER_BYTES = {"cpu": 96 << 20, "mps": 96 << 20, "cuda": 1 << 30}
"""The most that one batch of captured activations takes by default; a ring holds two or three."""


@dataclass(frozen=True)
class DumpRun:
    """A model, its samples and a plan that fit together: ready to run."""

    adapter: ModelAdapter
    samples: SampleSource
    plan: CapturePlan
    batches: Sequence[Rows]
    """Which samples go through the model together."""

    device: torch.device

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of the dump, by key."""
        return dump_tensors(self.plan, self.samples)

    def record(self, write_rows: WriteRows, advance: Advance) -> Recording:
        """Run the model over the samples and hand on what it captures."""
        engine = CaptureEngine(self.adapter, self.plan, self.samples, batches=self.batches)
        return record(engine, write_rows, advance=advance)


def prepare(
    adapter: ModelAdapter,
    samples: SampleSource,
    *,
    outputs: Sequence[str],
    layers: IntRanges | None,
    positions: IntRanges | None,
    dtype: str,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    device: torch.device,
) -> DumpRun:
    """Check that everything fits together before work starts, and plan it.

    Args:
        adapter: the model; without weights it is enough for `plan_report`.
        samples: what it reads.
        outputs: site names.
        layers: layers to keep, all by default; they are stored in ascending order.
        positions: tokens to keep, all by default; negative ones count from each sample's own end.
        dtype: storage dtype: fp32, fp16 or bf16.
        batch_size: samples in a forward pass; None for a budget of tokens.
        batch_tokens: that budget; by default what suits the device.
        device: where the model runs.

    Raises:
        CaptureError: the model lacks a site, or cannot read the samples.
        UsageError: a layer or position is out of range.
    """
    adapter.check_tokens(n_tokens=samples.n_tokens, largest_token=samples.largest_token)
    chosen = layers.resolve(adapter.n_layers) if layers else range(adapter.n_layers)
    plan = make_plan(
        adapter,
        samples,
        outputs,
        layers=sorted(chosen),
        positions=_resolve_positions(positions, samples) if positions else None,
        dtype=DTYPES[dtype],
    )
    budget = batch_tokens or _default_budget(plan, samples, device)
    batches = plan_batches(samples, batch_size=batch_size, batch_tokens=budget)
    return DumpRun(adapter, samples, plan, batches, device)


def _default_budget(plan: CapturePlan, samples: SampleSource, device: torch.device) -> int:
    """What suits the device, or fewer tokens where these would fill too large a buffer."""
    bytes_per_token = max(1, plan.row_bytes // max(1, samples.n_tokens))
    return max(1, min(default_batch_tokens(device), _BUFFER_BYTES[device.type] // bytes_per_token))


def _resolve_positions(positions: IntRanges, samples: SampleSource) -> tuple[int, ...]:
    if samples.lengths is None:
        return positions.resolve(samples.n_tokens, name="position")
    return positions.from_both_ends(samples.n_tokens, name="position")


def plan_report(run: DumpRun, path: Path) -> PlanReport:
    """What the dump would be, and what it would take."""
    tensors = _tensor_reports(run)
    file_bytes = sum(each.n_bytes for each in tensors)
    return PlanReport(
        model=run.adapter.files.source.init,
        family=run.adapter.family,
        device=device_name(run.device),
        n_samples=len(run.samples),
        batch_size=max(map(len, run.batches)),
        layers=run.plan.layers,
        tensors=tensors,
        file_bytes=file_bytes,
        space_bytes=file_bytes * (2 if is_converted(path) else 1),
        free_bytes=_free_bytes(path),
        peak_memory_bytes=peak_memory(
            run.adapter, run.plan, run.samples, run.batches, device=run.device
        ),
    )


def write_dump(
    run: DumpRun,
    path: Path,
    *,
    config: Mapping[str, Any],
    n_verified: int,
    advance: Advance,
    force: bool,
) -> DumpReport:
    """Run the model and write the dump; it has its name when it is complete.

    Args:
        run: prepared, with weights.
        path: the file; its suffix picks the format.
        config: the resolved options, for the manifest; `seed` also draws the verified samples.
        n_verified: samples to run again, alone, and compare.
        advance: told of progress.
        force: whether a file of that name is replaced.

    Raises:
        ActcliError: whatever stops the model or the writing; nothing is left behind.
    """
    manifest = describe_run(config, run.adapter, run.plan, run.samples, run.batches)
    metadata = dump_metadata(run.adapter, manifest, n_samples=len(run.samples))
    with DumpWriter(path, run.tensors, metadata=metadata, force=force) as writer:
        recording = run.record(writer.write_rows, advance)
        verification = _verified(run, writer, n_verified, seed=config["seed"])
        manifest |= describe_results(recording, verification)
        writer.commit(dump_metadata(run.adapter, manifest, n_samples=len(run.samples)))
    return _dump_report(run, recording, verification, path)


def run_without_writing(run: DumpRun, *, advance: Advance) -> DumpReport:
    """Run the model and forget what it captures, to see its speed alone."""
    return _dump_report(run, run.record(_forget, advance), None, None)


def _forget(_key: str, _start: int, _rows: memoryview) -> None:
    """Take rows and write nothing."""


def _verified(run: DumpRun, writer: DumpWriter, count: int, *, seed: int) -> Verification | None:
    if not count:
        return None
    return verify(run.adapter, run.plan, run.samples, writer, n_samples=count, seed=seed)


def _dump_report(
    run: DumpRun, recording: Recording, verification: Verification | None, path: Path | None
) -> DumpReport:
    elapsed_s = max(recording.elapsed_s, 1e-9)
    return DumpReport(
        output=None if path is None else str(path),
        file_bytes=0 if path is None else path.stat().st_size,
        device=device_name(run.device),
        n_samples=recording.n_samples,
        n_batches=recording.n_batches,
        elapsed_s=recording.elapsed_s,
        samples_per_s=recording.n_samples / elapsed_s,
        tokens_per_s=count_tokens(run.samples) / elapsed_s,
        tensors=_tensor_reports(run),
        non_finite=dict(recording.non_finite),
        verification=None if verification is None else _verification_report(verification),
    )


def _verification_report(verification: Verification) -> VerificationReport:
    return VerificationReport(
        samples=verification.samples,
        max_abs_difference=dict(verification.max_abs_difference),
        agrees=verification.agrees,
    )


def _tensor_reports(run: DumpRun) -> tuple[TensorReport, ...]:
    return tuple(
        TensorReport(key=key, dtype=info.dtype, shape=info.shape, n_bytes=info.nbytes)
        for key, info in run.tensors.items()
    )


def _free_bytes(path: Path) -> int:
    there = next(each for each in path.absolute().parents if each.exists())
    return shutil.disk_usage(there).free
