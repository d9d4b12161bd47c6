"""How a block adds to the residual stream: found by arithmetic on traced values.

A sum m = s + r * a is looked for: s the stream, a the output of some module, m what a later module
reads (or the block gives), r a factor (1, or a residual multiplier such as Granite's). Sequential
blocks have two such sums, one after the other, parallel blocks one sum with two terms. Blocks that
normalise after adding go on with the norm's output as their stream.

Tensor legend: B rows, T tokens, H hidden.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from actcli.models.block_trace import BlockTrace, Call, same_values

_ROUNDINGS = 8.0
"""How many roundings of the dtype a sum may be off, elementwise, relative to its terms."""


class Place(NamedTuple):
    """A tensor seen in a block: what goes into a call, or comes out of it."""

    call: Call
    side: str
    value: Tensor
    when: int


class Addend(NamedTuple):
    """What a module adds to the stream, and the factor by which."""

    call: Call
    factor: float


@dataclass(frozen=True)
class ResidualSums:
    """The additions of one block; None where there is no such sum."""

    attn: Addend | None = None
    mlp: Addend | None = None
    mid: Place | None = None
    """The stream between attention and MLP; parallel blocks have none."""


def find_sums(trace: BlockTrace, attn: Call | None, mlp: Sequence[Call]) -> ResidualSums:
    """Find what attention and MLP add to the stream in one block.

    Args:
        trace: all calls of the block.
        attn: the call of its attention; None if it has none.
        mlp: the calls that make up its MLP, in order.
    """
    start = trace.whole.given
    if start is None or attn is None or not mlp:
        return ResidualSums()
    streams = [start] if attn.given is None else [start, attn.given]
    for stream in streams:
        first = _find_sum(trace, stream, since=attn.begin, until=mlp[0].end)
        if first is not None:
            return _second_sum(trace, *first)
    return _parallel_sum(trace, start, attn, mlp)


def _second_sum(trace: BlockTrace, attn: Addend, mid: Place) -> ResidualSums:
    """Follow the stream after attention, through a norm that comes right after the sum."""
    normed = [
        Place(call, "output", call.out, call.end)
        for call in trace.calls
        if call.path and call.out is not None and same_values(call.given, mid.value)
    ]
    for stream in (mid, *normed):
        found = _find_sum(trace, stream.value, since=stream.when, until=trace.whole.end)
        if found is not None:
            return ResidualSums(attn, found[0], stream)
    return ResidualSums(attn, None, mid)


def _find_sum(
    trace: BlockTrace, stream: Tensor, *, since: int, until: int
) -> tuple[Addend, Place] | None:
    """The first m = stream + r * a among what is read in a span, the outermost a first."""
    for place in _readings(trace, since, until):
        for call in _givers(trace, since, place.when):
            assert call.out is not None
            factor = _factor(stream, call.out, place.value)
            if factor is not None:
                return Addend(call, factor), place
    return None


def _readings(trace: BlockTrace, since: int, until: int) -> Iterator[Place]:
    """Vectors that modules read in a span, and at its end what the block gives."""
    for call in trace.calls:
        if since < call.begin <= until and call.given is not None:
            yield Place(call, "input", call.given, call.begin)
    if trace.whole.out is not None and trace.whole.end <= until:
        yield Place(trace.whole, "output", trace.whole.out, trace.whole.end)


def _givers(trace: BlockTrace, since: int, until: int) -> list[Call]:
    found = [
        each
        for each in trace.calls
        if each.path and since < each.end < until and each.out is not None
    ]
    return sorted(found, key=lambda each: -each.end)


def _parallel_sum(
    trace: BlockTrace, start: Tensor, attn: Call, mlp: Sequence[Call]
) -> ResidualSums:
    """The sum y = x + a + b of one output of attention and one of the MLP."""
    end = trace.whole.out
    if end is None or end.shape != start.shape:
        return ResidualSums()
    for left in reversed(trace.inside(attn.path)):
        for right in reversed(mlp):
            if left.out is None or right.out is None:
                continue
            if left.out.shape == right.out.shape == end.shape:
                rest = end.double() - start.double() - left.out.double()
                scale = start.abs() + end.abs() + left.out.abs() + right.out.abs()
                if _negligible(rest - right.out.double(), scale, end.dtype):
                    return ResidualSums(Addend(left, 1.0), Addend(right, 1.0))
    return ResidualSums()


def _factor(stream: Tensor, term: Tensor, total: Tensor) -> float | None:
    """The r of total = stream + r * term; None if there is none."""
    if not stream.shape == term.shape == total.shape:
        return None
    for rows in (slice(0, 1), slice(None)):  # one vector tells most of them apart
        factor = _fitted(stream[:, rows], term[:, rows], total[:, rows])
        if factor is None:
            return None
    return factor


def _fitted(stream: Tensor, term: Tensor, total: Tensor) -> float | None:
    difference, wide = total.double() - stream.double(), term.double()
    power = float((wide * wide).sum())
    fitted = float((difference * wide).sum()) / power if power else 1.0
    scale = stream.abs() + term.abs() + total.abs()
    for factor in (1.0, float(f"{fitted:.3g}"), fitted):  # a short number, if one will do
        if factor and _negligible(difference - factor * wide, scale, total.dtype):
            return factor
    return None


def _negligible(error: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
    limit = _ROUNDINGS * torch.finfo(dtype).eps * scale.double()
    return bool((error.abs() <= limit).all())
