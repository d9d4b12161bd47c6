"""The capture engine: the one place where a model runs with hooks for its users' sake.

1. One hook per site and layer copies the activation, cast to the storage dtype, straight into its
   place in a preallocated buffer (batch, layer, ...) on the model's device.
2. When the last hook of the forward has fired, the forward is stopped: nothing runs for nobody.
3. The buffers of a batch form a slot of a small ring. On CUDA a slot also has pinned host buffers,
   filled on a stream of its own while the next batch computes; no layer waits for anything.
4. The consumer takes the slots in order, and gives each back when done; an empty ring holds the
   model back, so memory is bounded by the ring whatever the number of samples.

Buffers are filled with NaN before each batch, so that what was not written shows; one float32 sum
per site and batch tells whether anything is not finite, and only then is it counted.
"""

import math
import queue
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.plan import CapturePlan, SitePlan, hooked
from actcli.errors import CaptureError
from actcli.models.adapter import ModelAdapter
from actcli.samples.source import SampleBatch, SampleSource

RING_SLOTS = {"cpu": 2, "mps": 2, "cuda": 3}
"""Batches in flight by device type: one being filled, one being written, on CUDA one in copy."""

_ALIGNMENT = 4096  # bytes; lets the store write whole pages past the page cache


class _AllRead(Exception):
    """Raised by the last hook to end the forward pass."""


class CapturedBatch:
    """The activations of consecutive samples, valid until `release`."""

    def __init__(self, samples: SampleBatch, count: int, slot: "_Slot", ring: "_Ring") -> None:
        self.samples, self.count = samples, count
        self._slot, self._ring = slot, ring

    @property
    def start(self) -> int:
        """Number of the first sample."""
        return self.samples.start

    def wait(self) -> None:
        """Block until the activations have arrived on the host."""
        if self._slot.arrived is not None:
            self._slot.arrived.synchronize()

    @property
    def keys(self) -> list[str]:
        """The sites that were captured."""
        return list(self._slot.host)

    def rows(self, key: str) -> Tensor:
        """The activations of one site on the host, (count, *row_shape) in the storage dtype."""
        return self._slot.host[key][: self.count]

    def non_finite(self) -> dict[str, int]:
        """How many values are NaN or infinite, for the sites that have any."""
        suspect = [
            key
            for key, total in zip(self._slot.host, self._slot.totals, strict=True)
            if not math.isfinite(total)
        ]
        counts = {key: int((~self.rows(key).isfinite()).sum()) for key in suspect}
        return {key: count for key, count in counts.items() if count}

    def release(self) -> None:
        """Give the buffers back to the engine."""
        self._ring.give_back(self._slot)


class CaptureEngine:
    """Runs a model over samples and hands out what its plan asks for, batch by batch."""

    def __init__(self, adapter: ModelAdapter, plan: CapturePlan, *, batch_size: int) -> None:
        """Allocate the ring.

        Args:
            adapter: the model, with weights.
            plan: made for this adapter.
            batch_size: samples per forward pass.
        """
        self._adapter, self._plan, self._batch_size = adapter, plan, batch_size
        with _memory_advice(adapter.device, batch_size):
            self._ring = _Ring(plan, batch_size, adapter.device)
        self._slot: _Slot | None = None
        self._count = self._unread = 0

    def run(self, samples: SampleSource) -> Iterator[CapturedBatch]:
        """Yield the captured batches in order; each must be released by whoever takes it.

        Raises:
            CaptureError: a site did not fire, or changed its shape.
        """
        if not self._plan.sites:
            return
        self._adapter.prepare(plan.key for plan in self._plan.sites)
        with ExitStack() as hooks:
            for plan in self._plan.sites:
                for place, point in enumerate(plan.points):
                    read = partial(self._read, plan, place)
                    hooks.enter_context(hooked(self._adapter, point, read))
            for batch in split(samples, self._batch_size):
                yield self._capture(batch)

    def _capture(self, batch: SampleBatch) -> CapturedBatch:
        slot = self._ring.take()
        try:
            count = next(iter(batch.inputs.values())).shape[0]
            slot.poison(count)
            self._slot, self._count = slot, count
            self._forward(to_device(batch.inputs, self._adapter.device))
            slot.send_to_host(count, self._ring.copy_stream)
        except BaseException:
            self._ring.give_back(slot)
            raise
        return CapturedBatch(batch, count, slot, self._ring)

    def _forward(self, inputs: Mapping[str, Tensor]) -> None:
        self._unread = sum(len(plan.points) for plan in self._plan.sites)
        try:
            with torch.inference_mode(), _memory_advice(self._adapter.device, self._count):
                self._adapter.forward(inputs)
        except _AllRead:
            return
        raise CaptureError(f"{self._unread} of the sites asked for did not run in the forward pass")

    def _read(self, plan: SitePlan, place: int, acts: Tensor) -> None:
        """Copy one activation into its place; called by the hooks."""
        assert self._slot is not None
        target = self._slot.device[plan.key][: self._count]
        if plan.site.per_layer:
            target = target[:, place]
        if plan.positions is not None:
            chosen = self._ring.positions
            acts = acts.index_select(plan.position_axis, chosen)
        if acts.shape != target.shape:
            raise CaptureError(
                f"{plan.key} changed its shape: {list(acts.shape)}, planned {list(target.shape)}"
            )
        target.copy_(acts)
        self._unread -= 1
        if not self._unread:
            raise _AllRead


def split(samples: SampleSource, batch_size: int) -> Iterator[SampleBatch]:
    """Go through the samples in batches."""
    for start in range(0, len(samples), batch_size):
        yield samples.batch(start, min(start + batch_size, len(samples)))


def to_device(inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Move the inputs of a batch to the model; to a GPU from pinned memory, without waiting."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()
    }


def ring_bytes(plan: CapturePlan, batch_size: int, device: torch.device) -> int:
    """Host memory that the ring takes."""
    return RING_SLOTS[device.type] * batch_size * plan.row_bytes


@contextmanager
def _memory_advice(device: torch.device, count: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CaptureError(
            f"{device} is out of memory with {count} samples in a batch: lower --batch-size"
        ) from error


@dataclass
class _Slot:
    """The buffers of one batch: where hooks write, and where the consumer reads."""

    device: dict[str, Tensor]
    host: dict[str, Tensor]
    totals: Tensor
    """One float32 sum per site, on the host; not finite if any value is not."""

    arrived: torch.cuda.Event | None = None

    def poison(self, count: int) -> None:
        for buffer in self.device.values():
            buffer[:count].fill_(math.nan)

    def send_to_host(self, count: int, stream: torch.cuda.Stream | None) -> None:
        totals = torch.stack(
            [buffer[:count].sum(dtype=torch.float32) for buffer in self.device.values()]
        )
        if stream is None:
            self._copy(count, totals, wait=True)
            return
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self._copy(count, totals, wait=False)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            self.arrived.record(stream)
        totals.record_stream(stream)

    def _copy(self, count: int, totals: Tensor, *, wait: bool) -> None:
        """Copy to the host; only with a stream and its event may that go on in the background."""
        self.totals.copy_(totals, non_blocking=not wait)
        for key, buffer in self.device.items():
            if self.host[key] is not buffer:
                self.host[key][:count].copy_(buffer[:count], non_blocking=not wait)


@dataclass
class _Ring:
    """The slots, and a queue of those that are free."""

    plan: CapturePlan
    batch_size: int
    torch_device: torch.device
    copy_stream: torch.cuda.Stream | None = None
    _free: "queue.SimpleQueue[_Slot]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        device = self.torch_device
        if device.type == "cuda":
            self.copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own
        self.positions = torch.tensor(self.plan.positions or (), device=self.torch_device).long()
        for _ in range(RING_SLOTS[self.torch_device.type]):
            self._free.put(self._new_slot())

    def take(self) -> _Slot:
        """Wait for a free slot."""
        return self._free.get()

    def give_back(self, slot: _Slot) -> None:
        self._free.put(slot)

    def _new_slot(self) -> _Slot:
        on_host = self.torch_device.type == "cpu"
        host = {each.key: self._host_buffer(each) for each in self.plan.sites}
        device = host if on_host else {key: self._on_device(each) for key, each in host.items()}
        totals = torch.zeros(len(host), pin_memory=self.torch_device.type == "cuda")
        return _Slot(device, host, totals)

    def _on_device(self, buffer: Tensor) -> Tensor:
        return torch.empty_like(buffer, device=self.torch_device)

    def _host_buffer(self, site: SitePlan) -> Tensor:
        """A buffer on a page boundary, pinned where a GPU copies into it."""
        shape, dtype = (self.batch_size, *site.row_shape), self.plan.dtype
        n_bytes = math.prod(shape) * dtype.itemsize
        raw = torch.empty(
            n_bytes + _ALIGNMENT,
            dtype=torch.uint8,
            pin_memory=self.torch_device.type == "cuda",
        )
        skip = -raw.data_ptr() % _ALIGNMENT
        return raw[skip : skip + n_bytes].view(dtype).view(shape)
