"""From the capture engine to disk: a dump, written while the model goes on.

One background thread takes finished batches from the engine's ring and writes them; the model waits
only when the ring is empty, that is when the disk is slower than the model.

Axis letters: N samples, B samples of a batch, P kept positions.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from actcli.capture.engine import CapturedBatch, CaptureEngine
from actcli.capture.plan import CapturePlan
from actcli.capture.positions import kept_mask
from actcli.capture.row_writer import RowWriter, WriteRows, as_integers
from actcli.samples.batching import batch_lengths
from actcli.samples.source import SampleBatch, SampleSource
from actcli.store.header import TensorInfo

STORED_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}

MASK = "mask"
"""The key under which sources store which tokens are real, (N, T)."""

Written = tuple[int, Mapping[str, int]]
"""How many samples a batch had, and how many values of each key are not finite."""


@dataclass
class Recording:
    """What was seen while recording."""

    n_samples: int = 0
    n_batches: int = 0
    elapsed_s: float = 0.0
    """Wall time from the first batch to the last written row."""

    non_finite: Counter[str] = field(default_factory=Counter)
    """NaN or infinite values stored, by key."""


def dump_tensors(plan: CapturePlan, samples: SampleSource) -> dict[str, TensorInfo]:
    """Every tensor that a dump of this plan holds, in the order in which it lists them."""
    n = len(samples)
    activations = {
        each.key: TensorInfo(STORED_DTYPES[each.dtype], (n, *each.row_shape)) for each in plan.sites
    }
    parameters = {
        key: TensorInfo(STORED_DTYPES[parameter_dtype(key, plan)], tuple(tensor.shape))
        for key, tensor in plan.parameters.items()
    }
    stored = dict(samples.stored)
    if MASK in stored and plan.positions is not None:
        stored[MASK] = replace(stored[MASK], shape=(n, len(plan.positions)))
    return activations | parameters | stored


def parameter_dtype(key: str, plan: CapturePlan) -> torch.dtype:
    """Gains are stored like the activations; sinks, a handful of numbers, stay float32."""
    return torch.float32 if key == "attn_sinks" else plan.dtype


def record(
    engine: CaptureEngine, write_rows: WriteRows, *, advance: Callable[[int], None]
) -> Recording:
    """Run the engine over its samples and write what it captures.

    Args:
        engine: knows the plan, the samples and their batches.
        write_rows: takes the rows, each at its number, in the order in which they come.
        advance: called with the number of samples done since the last call.

    Raises:
        ActcliError: whatever stops the model or the writing; the background thread has ended.
    """
    recording, began = Recording(), time.perf_counter()
    for key, tensor in engine.plan.parameters.items():
        values = as_integers(tensor.to(parameter_dtype(key, engine.plan)).cpu())
        write_rows(key, 0, values.data)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dump-writer") as thread:
        pending: deque[Future[Written]] = deque()
        for write in _writes(engine, RowWriter(write_rows)):
            pending.append(thread.submit(write))
            while pending and pending[0].done():
                _count(recording, pending.popleft(), advance)
        for each in pending:
            _count(recording, each, advance)
    recording.elapsed_s = time.perf_counter() - began
    return recording


def _writes(engine: CaptureEngine, writer: RowWriter) -> Iterator[Callable[[], Written]]:
    """Give what is left to do for each batch, once the model is through with it."""
    if engine.plan.sites:
        for captured in engine.run():
            yield partial(_write_batch, captured, engine, writer)
    else:
        for rows in engine.batches:
            yield partial(_write_samples, engine.samples.batch(rows), engine, writer)


def _count(
    recording: Recording,
    written: "Future[Written]",
    advance: Callable[[int], None],
) -> None:
    count, non_finite = written.result()
    recording.n_samples += count
    recording.n_batches += 1
    recording.non_finite.update(non_finite)
    advance(count)


def _write_batch(batch: CapturedBatch, engine: CaptureEngine, writer: RowWriter) -> Written:
    try:
        batch.wait()
        for site in engine.plan.sites:
            writer.write(
                site.key,
                batch.rows_of_samples,
                as_integers(batch.rows(site.key)),
                row_shape=site.row_shape,
            )
        count, _nothing = _write_samples(batch.samples, engine, writer)
        return count, batch.non_finite()
    finally:
        batch.release()


def _write_samples(batch: SampleBatch, engine: CaptureEngine, writer: RowWriter) -> Written:
    stored = dict(batch.stored)
    positions = engine.plan.positions
    if MASK in stored and positions is not None:
        stored[MASK] = _mask_of_positions(stored[MASK], batch, engine, positions)
    for key, values in stored.items():
        writer.write(key, batch.rows, values, row_shape=values.shape[1:])
    return len(batch.rows), {}


def _mask_of_positions(
    mask_BT: NDArray[np.uint8],
    batch: SampleBatch,
    engine: CaptureEngine,
    positions: tuple[int, ...],
) -> NDArray[np.uint8]:
    lengths_B = batch_lengths(engine.samples, batch.rows)
    if lengths_B is None:
        return mask_BT[:, list(positions)]
    return kept_mask(mask_BT, positions, lengths_B)
