"""From the capture engine to disk: a dump, written while the model goes on.

One background thread takes finished batches from the engine's ring and writes them; the model waits
only when the ring is empty, that is when the disk is slower than the model.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from actcli.capture.engine import CapturedBatch, CaptureEngine, split
from actcli.capture.plan import CapturePlan
from actcli.samples.source import SampleBatch, SampleSource
from actcli.store.header import TensorInfo

STORED_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


WriteRows = Callable[[str, int, memoryview], None]
"""Takes a key, the number of the first row, and the bytes of rows: `DumpWriter.write_rows`."""

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
    stored_as, n = STORED_DTYPES[plan.dtype], len(samples)
    activations = {each.key: TensorInfo(stored_as, (n, *each.row_shape)) for each in plan.sites}
    parameters = {
        key: TensorInfo(STORED_DTYPES[parameter_dtype(key, plan)], tuple(tensor.shape))
        for key, tensor in plan.parameters.items()
    }
    return activations | parameters | dict(samples.stored)


def parameter_dtype(key: str, plan: CapturePlan) -> torch.dtype:
    """Gains are stored like the activations; sinks, a handful of numbers, stay float32."""
    return torch.float32 if key == "attn_sinks" else plan.dtype


def record(
    engine: CaptureEngine,
    plan: CapturePlan,
    samples: SampleSource,
    write_rows: WriteRows,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> Recording:
    """Run the engine over all samples and write what it captures.

    Args:
        engine: made for the plan.
        plan: what is captured.
        samples: what the model reads.
        write_rows: takes the rows.
        batch_size: samples per step where nothing is captured and only the samples are stored.
        advance: called with the number of samples done since the last call.

    Raises:
        ActcliError: whatever stops the model or the writing; the background thread has ended.
    """
    recording, began = Recording(), time.perf_counter()
    for key, tensor in plan.parameters.items():
        write_rows(key, 0, as_bytes(tensor.to(parameter_dtype(key, plan)).cpu()))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dump-writer") as writer:
        pending: deque[Future[Written]] = deque()
        for write in _writes(engine, plan, samples, write_rows, batch_size=batch_size):
            pending.append(writer.submit(write))
            while pending and pending[0].done():
                _count(recording, pending.popleft(), advance)
        for each in pending:
            _count(recording, each, advance)
    recording.elapsed_s = time.perf_counter() - began
    return recording


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, without a copy."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _writes(
    engine: CaptureEngine,
    plan: CapturePlan,
    samples: SampleSource,
    write_rows: WriteRows,
    *,
    batch_size: int,
) -> Iterator[Callable[[], Written]]:
    """Give what is left to do for each batch, once the model is through with it."""
    if plan.sites:
        for captured in engine.run(samples):
            yield partial(_write_batch, captured, write_rows)
    else:
        for batch in split(samples, batch_size):
            yield partial(_write_samples, batch, write_rows)


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


def _write_batch(batch: CapturedBatch, write_rows: WriteRows) -> Written:
    try:
        batch.wait()
        for key in batch.keys:
            write_rows(key, batch.start, as_bytes(batch.rows(key)))
        count, _nothing = _write_samples(batch.samples, write_rows)
        return count, batch.non_finite()
    finally:
        batch.release()


def _write_samples(batch: SampleBatch, write_rows: WriteRows) -> Written:
    for key, rows in batch.stored.items():
        write_rows(key, batch.start, np.ascontiguousarray(rows).data)
    return len(next(iter(batch.stored.values()))), {}
