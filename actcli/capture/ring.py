"""The buffers between a model and whoever reads what it computed.

A slot has one flat buffer for each site, large enough for the largest batch that is planned; each
batch looks at it in its own shape. So memory follows the tokens of a batch, not the product of the
most samples and the longest of them.

On the CPU whoever gives a slot back marks it as unwritten, and whoever reads it checks it: in a
dump that is the writing thread, and the thread of the model does neither.
"""

import math
import queue
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actcli.capture.plan import CapturePlan, SitePlan
from actcli.samples.batching import BatchSize

RING_SLOTS = {"cpu": 2, "mps": 2, "cuda": 3}
"""Batches in flight by device type: one being filled, one being written, on CUDA one in copy."""

UNWRITTEN_ID = -1
"""Stands for NaN in buffers of integers, which are ids: from 0 on."""

_ALIGNMENT = 4096  # bytes; lets the store write whole pages past the page cache


def ring_bytes(plan: CapturePlan, sizes: Sequence[BatchSize], device: torch.device) -> int:
    """Host memory that the ring takes."""
    slot = sum(_largest(each, sizes) * each.dtype.itemsize for each in plan.sites)
    return RING_SLOTS[device.type] * slot


def aligned_bytes(n_bytes: int, *, pin_memory: bool = False) -> Tensor:
    """Return so many bytes of host memory that begin on a page boundary."""
    raw = torch.empty(n_bytes + _ALIGNMENT, dtype=torch.uint8, pin_memory=pin_memory)
    skip = -raw.data_ptr() % _ALIGNMENT
    return raw[skip : skip + n_bytes]


def is_unwritten(values: Tensor) -> Tensor:
    """Where values are NaN or infinite; in tensors of ids, where they are none."""
    return ~values.isfinite() if values.is_floating_point() else values < 0


@dataclass
class Slot:
    """The buffers of one batch: where hooks write, and where the consumer reads."""

    device_buffers: Mapping[str, Tensor]
    """Flat, by key, on the model's device."""

    host_buffers: Mapping[str, Tensor]
    """Flat, by key; the same ones where the model is on the CPU."""

    totals: Tensor
    """One float32 per site, on the host; not finite if any value is unwritten or not finite. Not
    used on the CPU, where the reader looks for itself."""

    arrived: torch.cuda.Event | None = None
    device: dict[str, Tensor] = field(default_factory=dict)
    """The device's buffers in the shape of the batch."""

    host: dict[str, Tensor] = field(default_factory=dict)
    """The host's buffers in the shape of the batch."""

    def begin(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take the shape of a batch, all its values marked as unwritten."""
        self.device = _shaped(self.device_buffers, shapes)
        self.host = _shaped(self.host_buffers, shapes)
        if not self.is_on_host:
            _mark_unwritten(self.device.values())

    @property
    def is_on_host(self) -> bool:
        """Whether the model writes straight into host memory."""
        return self.device_buffers is self.host_buffers

    def find_totals(self) -> Tensor:
        """Return one float32 per site, not finite if any value is unwritten or not finite."""
        if self.is_on_host:
            return torch.stack([_total(view) for view in self.host.values()])
        return self.totals

    def clear(self) -> None:
        """Mark all host memory that the model writes into as unwritten."""
        if self.is_on_host:
            _mark_unwritten(self.host_buffers.values())

    def send_to_host(self, stream: torch.cuda.Stream | None) -> None:
        """Copy the batch to the host, where it is not there yet; on a stream without waiting."""
        if self.is_on_host:
            return
        totals = torch.stack([_total(view) for view in self.device.values()])
        if stream is None:
            self._copy(totals, wait=True)
            return
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            self._copy(totals, wait=False)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            self.arrived.record(stream)
        totals.record_stream(stream)

    def _copy(self, totals: Tensor, *, wait: bool) -> None:
        """Copy to the host; only with a stream and its event may that go on in the background."""
        self.totals.copy_(totals, non_blocking=not wait)
        for key, view in self.device.items():
            self.host[key].copy_(view, non_blocking=not wait)


@dataclass
class Ring:
    """The slots, and a queue of those that are free."""

    plan: CapturePlan
    sizes: Sequence[BatchSize]
    torch_device: torch.device
    copy_stream: torch.cuda.Stream | None = None
    _free: "queue.SimpleQueue[Slot]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        device = self.torch_device
        if device.type == "cuda":
            self.copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own
        for _ in range(RING_SLOTS[device.type]):
            self._free.put(self._new_slot())

    def take(self) -> Slot:
        """Wait for a free slot."""
        return self._free.get()

    def give_back(self, slot: Slot) -> None:
        """Take a slot back, from the thread that has read it."""
        slot.clear()
        self._free.put(slot)

    def _new_slot(self) -> Slot:
        host = {each.key: self._host_buffer(each) for each in self.plan.sites}
        device = host
        if self.torch_device.type != "cpu":
            device = {
                k: torch.empty_like(each, device=self.torch_device) for k, each in host.items()
            }
        totals = torch.zeros(len(host), pin_memory=self.torch_device.type == "cuda")
        slot = Slot(device, host, totals)
        slot.clear()
        return slot

    def _host_buffer(self, site: SitePlan) -> Tensor:
        """A buffer on a page boundary, pinned where a GPU copies into it."""
        n_bytes = _largest(site, self.sizes) * site.dtype.itemsize
        pinned = self.torch_device.type == "cuda"
        return aligned_bytes(n_bytes, pin_memory=pinned).view(site.dtype)


def _largest(site: SitePlan, sizes: Sequence[BatchSize]) -> int:
    """The most elements that a batch has at a site."""
    return max((count * math.prod(site.row_shape_at(tokens)) for count, tokens in sizes), default=0)


def _shaped(
    buffers: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    return {
        key: buffer[: math.prod(shapes[key])].view(shapes[key]) for key, buffer in buffers.items()
    }


def _mark_unwritten(buffers: Iterable[Tensor]) -> None:
    for buffer in buffers:
        buffer.fill_(math.nan if buffer.is_floating_point() else UNWRITTEN_ID)


def _total(values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values.sum(dtype=torch.float32)
    return values.min().float().sqrt()  # of a negative number: NaN
