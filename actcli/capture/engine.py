"""The capture engine: the one place where a model runs with hooks for its users' sake.

1. One hook per site and layer copies the activation, cast to the storage dtype, straight into its
   place in a preallocated buffer (batch, layer, ...) on the model's device.
2. When the last hook of the forward has fired, the forward is stopped: nothing runs for nobody.
3. The buffers of a batch form a slot of a small ring. On CUDA a slot also has pinned host buffers,
   filled on a stream of its own while the next batch computes; no layer waits for anything.
4. The consumer takes the slots in order, and gives each back when done; an empty ring holds the
   model back, so memory is bounded by the ring whatever the number of samples.

Buffers are filled with NaN before each batch, so that what was not written shows; one float32 sum
per site and batch tells whether anything is not finite, and only then is it counted. What the model
computed at padding is replaced by 0 before that.

Axis letters: B samples of a batch, P kept positions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.hooks import hooked
from actcli.capture.plan import CapturePlan, SitePlan
from actcli.capture.positions import kept_positions, padding
from actcli.capture.ring import Ring, Slot, is_unwritten
from actcli.errors import CaptureError
from actcli.models.adapter import ModelAdapter
from actcli.samples.batching import batch_lengths, measure_batches
from actcli.samples.source import Rows, SampleBatch, SampleSource

_Places = tuple[Tensor, Tensor]


class _AllRead(Exception):
    """Raised by the last hook to end the forward pass."""


class CapturedBatch:
    """The activations of some samples, valid until `release`."""

    def __init__(self, samples: SampleBatch, slot: Slot, ring: Ring) -> None:
        self.samples = samples
        self._slot, self._ring = slot, ring

    @property
    def rows_of_samples(self) -> Rows:
        """The numbers of the samples, in the order of the batch."""
        return self.samples.rows

    def wait(self) -> None:
        """Block until the activations have arrived on the host."""
        if self._slot.arrived is not None:
            self._slot.arrived.synchronize()

    @property
    def keys(self) -> list[str]:
        """The sites that were captured."""
        return list(self._slot.host)

    def rows(self, key: str) -> Tensor:
        """The activations of one site on the host, (B, *row_shape) in the storage dtype.

        Token axes are as long as the longest sample of the batch; beyond a sample's own end they
        hold 0.
        """
        return self._slot.host[key]

    def non_finite(self) -> dict[str, int]:
        """How many values are NaN or infinite, for the sites that have any."""
        suspect = [
            key
            for key, total in zip(self._slot.host, self._slot.find_totals(), strict=True)
            if not math.isfinite(total)
        ]
        counts = {key: int(is_unwritten(self.rows(key)).sum()) for key in suspect}
        return {key: count for key, count in counts.items() if count}

    def release(self) -> None:
        """Give the buffers back to the engine."""
        self._ring.give_back(self._slot)


class CaptureEngine:
    """Runs a model over samples and hands out what its plan asks for, batch by batch."""

    def __init__(
        self,
        adapter: ModelAdapter,
        plan: CapturePlan,
        samples: SampleSource,
        *,
        batches: Sequence[Rows],
    ) -> None:
        """Allocate the ring.

        Args:
            adapter: the model, with weights.
            plan: made for this adapter and these samples.
            samples: what it reads.
            batches: which of them go through the model together (`plan_batches`).
        """
        self.plan, self.samples, self.batches = plan, samples, batches
        self._adapter = adapter
        self._sizes = measure_batches(samples, batches)
        with _memory_advice(
            adapter.device, max((each.n_samples for each in self._sizes), default=0)
        ):
            self._ring = Ring(plan, self._sizes, adapter.device)
        self._slot: Slot | None = None
        positions = torch.tensor(plan.positions or (), device=adapter.device).long()
        self._same_ends = self._ends = _Ends(positions)
        self._unread, self._reading = 0, False

    def run(self) -> Iterator[CapturedBatch]:
        """Yield the captured batches in order; each must be released by whoever takes it.

        Raises:
            CaptureError: a site did not fire, or changed its shape.
        """
        if not self.plan.sites:
            return
        self._adapter.prepare(plan.key for plan in self.plan.sites)
        with ExitStack() as hooks:
            for plan in self.plan.sites:
                for place, point in enumerate(plan.points):
                    read = partial(self._read, plan, place)
                    hooks.enter_context(hooked(self._adapter, point, read))
            for rows, (count, n_tokens) in zip(self.batches, self._sizes, strict=True):
                shapes = {
                    each.key: (count, *each.row_shape_at(n_tokens)) for each in self.plan.sites
                }
                yield self._capture(self.samples.batch(rows), shapes, n_tokens)

    def _capture(
        self, batch: SampleBatch, shapes: Mapping[str, tuple[int, ...]], n_tokens: int
    ) -> CapturedBatch:
        slot = self._ring.take()
        try:
            slot.begin(shapes)
            self._slot, self._ends = slot, self._find_ends(batch.rows, n_tokens)
            self._forward(to_device(batch.inputs, self._adapter.device), len(batch.rows))
            for plan in self.plan.sites:
                self._ends.clear_padding(plan, slot.device[plan.key])
            slot.send_to_host(self._ring.copy_stream)
        except BaseException:
            self._ring.give_back(slot)
            raise
        return CapturedBatch(batch, slot, self._ring)

    def _find_ends(self, rows: Rows, n_tokens: int) -> "_Ends":
        lengths_B = batch_lengths(self.samples, rows)
        if lengths_B is None:
            return self._same_ends
        index_BP, is_there_BP = kept_positions(self.plan.positions or (), lengths_B)
        beyond, absent = padding(lengths_B, n_tokens), (~is_there_BP).nonzero()
        arrays = dict(zip("rtspi", (*beyond, *absent, index_BP), strict=True))
        found = to_device(arrays, self._adapter.device)
        return _Ends(
            found["i"],
            padding=(found["r"], found["t"]) if beyond[0].size else None,
            absent=(found["s"], found["p"]) if absent[0].size else None,
        )

    def _forward(self, inputs: Mapping[str, Tensor], count: int) -> None:
        self._unread = sum(len(plan.points) for plan in self.plan.sites)
        self._reading = True
        try:
            with torch.inference_mode(), _memory_advice(self._adapter.device, count):
                self._adapter.forward(inputs)
        except _AllRead:
            return
        finally:
            self._reading = False
        raise CaptureError(f"{self._unread} of the sites asked for did not run in the forward pass")

    def _read(self, plan: SitePlan, place: int, acts: Tensor) -> None:
        """Copy one activation into its place; called by the hooks."""
        if not self._reading:  # who takes the batches may run the model too
            return
        assert self._slot is not None
        target = self._slot.device[plan.key]
        if plan.site.per_layer:
            target = target[:, place]
        if plan.positions is not None:
            acts = self._ends.keep_positions(acts, plan.position_axis)
        if acts.shape != target.shape:
            raise CaptureError(
                f"{plan.key} changed its shape: {list(acts.shape)}, planned {list(target.shape)}"
            )
        target.copy_(acts)
        self._unread -= 1
        if not self._unread:
            raise _AllRead


def to_device(inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Move the inputs of a batch to the model; to a GPU from pinned memory, without waiting."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()
    }


@contextmanager
def _memory_advice(device: torch.device, count: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CaptureError(
            f"{device} is out of memory with {count} samples in a batch: lower "
            f"--batch-size or --batch-tokens"
        ) from error


@dataclass(frozen=True)
class _Ends:
    """Which tokens of a batch are kept, and which are there at all."""

    positions: Tensor
    """Chosen tokens: (P,) where all samples have one length, else (B, P)."""

    padding: _Places | None = None
    """(sample, token) pairs beyond the end of a sample."""

    absent: _Places | None = None
    """(sample, kept place) pairs where a sample has no such token."""

    def keep_positions(self, acts: Tensor, axis: int) -> Tensor:
        """Return the chosen tokens along an axis of a hooked tensor."""
        chosen = self.positions.to(acts.device)
        if chosen.ndim == 1:
            return acts.index_select(axis, chosen)
        rows_B1 = torch.arange(len(chosen), device=acts.device)[:, None]
        return acts.movedim(axis, 1)[rows_B1, chosen].movedim(1, axis)

    def clear_padding(self, plan: SitePlan, acts: Tensor) -> None:
        """Put 0 where there is no token, along all token axes of a site's buffer."""
        for axis in plan.token_axes:
            places = self.padding
            if plan.positions is not None and axis == plan.position_axis - 1:
                places = self.absent
            if places is not None:
                layers = 1 if plan.site.per_layer else 0
                acts.movedim(1 + layers + axis, 1)[places] = 0
