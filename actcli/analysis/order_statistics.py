"""Exact order statistics of more numbers than fit into memory, mostly in one pass.

A sample tells between which two numbers each wanted one must lie: a bracket. One pass then counts
what is below each bracket and keeps what is inside, and since the ranks are exact the answer is
exact. Where a bracket missed, or too much fell inside, `radix_select` answers: it counts the keys
by their first 16 bits, then those of the right bucket by the next 16, one pass for each 16 bits.

Numbers are compared by their keys (see `float_codes`); ranks count from 0 and include NaNs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, sqrt

import numpy as np

from actcli.analysis.float_codes import Codes, FloatFormat, Mask

Replay = Callable[[], Iterable[Codes]]
"""Gives all codes once more, in pieces."""

MOST_KEPT_BYTES = 1 << 26
"""How much a pass may keep inside its brackets."""

_STANDARD_ERRORS = 4.0
_DIGIT = 16


@dataclass(frozen=True)
class Bracket:
    """The keys from one to another, in which an order statistic is thought to lie."""

    first: int
    end: int
    """The key after the last."""

    @property
    def is_single(self) -> bool:
        """Whether it holds one key alone, so that counting is enough."""
        return self.end == self.first + 1


def whole_range(fmt: FloatFormat) -> tuple[Bracket, ...]:
    """Return one bracket around everything: then all codes are kept."""
    return (Bracket(0, 2 * fmt.sign),)


def brackets_from_samples(
    fmt: FloatFormat, clusters: Sequence[Codes], fractions: Sequence[float]
) -> tuple[Bracket, ...]:
    """Return brackets around the quantiles of the whole, judged from samples of it.

    The margin is 4 standard errors of the share s below the quantile, taken between the clusters,
    since numbers from the same place are alike: sqrt(sum_c (b_c - s n_c)²) / sum_c n_c, where b_c
    of the n_c numbers of a cluster are below; at least that of independent numbers.

    Args:
        fmt: how the floats are laid out.
        clusters: codes from several places.
        fractions: the quantiles, each in 0..1.
    """
    keys = [fmt.keys(each) for each in clusters]
    keys = [each[_is_number(fmt, each)] for each in keys]
    ordered = np.sort(np.concatenate(keys)) if keys else np.empty(0, fmt.codes)
    if not ordered.size:
        return whole_range(fmt)
    margins = [_margin(keys, ordered, each) for each in fractions]
    return _merged(
        [
            _bracket(fmt, ordered, each - margin, each + margin)
            for each, margin in zip(fractions, margins, strict=True)
        ]
    )


@dataclass
class BracketCounts:
    """What a pass learns about the codes it is given; several can be merged into one."""

    fmt: FloatFormat
    brackets: tuple[Bracket, ...]
    n: int = 0
    """Codes seen."""

    n_below: list[int] = field(init=False)
    """How many keys are below each bracket."""

    n_single: list[int] = field(init=False)
    """How many lie in it, for brackets of a single key."""

    kept: list[Codes] = field(default_factory=list)
    """The keys inside the other brackets, in any order."""

    overflowed: bool = False
    """Whether more fell inside than may be kept."""

    def __post_init__(self) -> None:
        self.n_below = [0] * len(self.brackets)
        self.n_single = [0] * len(self.brackets)
        self._kept_bytes = 0
        self._masks: tuple[Mask, Mask] = (np.empty(0, bool), np.empty(0, bool))

    def update(self, codes: Codes) -> None:
        """Count further codes, given as a flat array that may change afterwards."""
        self.n += codes.size
        if self.brackets == whole_range(self.fmt):
            self._keep(self.fmt.keys(codes))
            return
        if self._masks[0].size < codes.size:
            self._masks = (np.empty(codes.size, bool), np.empty(codes.size, bool))
        inside, below = (mask[: codes.size] for mask in self._masks)
        inside[:] = False
        for index, bracket in enumerate(self.brackets):
            self.fmt.below(codes, bracket.first, out=below)
            n_below = int(np.count_nonzero(below))
            self.n_below[index] += n_below
            if not bracket.is_single:
                inside ^= below
            self.fmt.below(codes, bracket.end, out=below)
            if bracket.is_single:
                self.n_single[index] += int(np.count_nonzero(below)) - n_below
            else:
                inside ^= below
        self._keep(self.fmt.keys(codes[inside.nonzero()[0]]))

    def merge(self, other: "BracketCounts") -> None:
        """Add what another pass over other codes, with the same brackets, has learnt."""
        assert self.brackets == other.brackets, "only counts of the same brackets add up"
        self.n += other.n
        self.overflowed |= other.overflowed
        self.n_below = [a + b for a, b in zip(self.n_below, other.n_below, strict=True)]
        self.n_single = [a + b for a, b in zip(self.n_single, other.n_single, strict=True)]
        for keys in other.kept:
            self._keep(keys)

    def select(self, ranks: Iterable[int]) -> dict[int, int] | None:
        """Return the key at each rank of all keys in order; None if a bracket missed one."""
        if self.overflowed:
            return None
        kept = np.concatenate(self.kept) if self.kept else np.empty(0, self.fmt.codes)
        places = {rank: self._place(rank, kept) for rank in set(ranks)}
        if None in places.values():
            return None
        inside = sorted({each for each in places.values() if isinstance(each, int)})
        if inside:
            kept.partition(inside)
        return {
            rank: place.first if isinstance(place, Bracket) else int(kept[place])
            for rank, place in places.items()
            if place is not None
        }

    def _place(self, rank: int, kept: Codes) -> int | Bracket | None:
        """Return the rank among the kept keys, or the single key's bracket, or None if missed."""
        start = 0
        for bracket, n_below, n_single in zip(
            self.brackets, self.n_below, self.n_single, strict=True
        ):
            end = start if bracket.is_single else _count_below(kept, bracket.end)
            if 0 <= rank - n_below < n_single:
                return bracket
            if 0 <= rank - n_below < end - start:
                return start + rank - n_below
            start = end
        return None

    def _keep(self, keys: Codes) -> None:
        self._kept_bytes += keys.nbytes
        self.overflowed |= self._kept_bytes > MOST_KEPT_BYTES
        if self.overflowed:
            self.kept.clear()
        elif keys.size:
            self.kept.append(keys)


def radix_select(fmt: FloatFormat, replay: Replay, ranks: Iterable[int]) -> dict[int, int]:
    """Return the key at each rank of all keys in order, whatever their distribution.

    Takes one pass over the codes for each 16 bits of the format, and 65,536 counters for each
    prefix of a wanted key.
    """
    found = {rank: (0, rank) for rank in ranks}  # the key's first bits, the rank among those
    for shift in range(fmt.width - _DIGIT, -1, -_DIGIT):
        prefixes = {prefix for prefix, _rank in found.values()}
        counts = _count_digits(fmt, replay, prefixes, shift)
        for rank, (prefix, left) in found.items():
            ends = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(ends, left, side="right"))
            n_before = int(ends[digit] - counts[prefix][digit])
            found[rank] = (prefix << _DIGIT | digit, left - n_before)
    return {rank: key for rank, (key, _left) in found.items()}


def _count_digits(
    fmt: FloatFormat, replay: Replay, prefixes: set[int], shift: int
) -> dict[int, "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    """Count, for each prefix, the keys that begin with it by their next 16 bits."""
    counts = {prefix: np.zeros(1 << _DIGIT, np.int64) for prefix in prefixes}
    for codes in replay():
        keys = fmt.keys(codes)
        digits = keys >> fmt.codes.type(shift)
        for prefix in prefixes:
            these = digits
            if shift + _DIGIT < fmt.width:
                these = digits[digits >> fmt.codes.type(_DIGIT) == prefix]
            last = (these & fmt.codes.type((1 << _DIGIT) - 1)).astype(np.intp)
            counts[prefix] += np.bincount(last, minlength=1 << _DIGIT)
    return counts


def quantile_ranks(n: int, fraction: float) -> tuple[int, int]:
    """Return the ranks of the two order statistics that a quantile of n numbers lies between."""
    place = floor((n - 1) * fraction)
    return place, min(place + 1, n - 1)


def interpolate(n: int, fraction: float, ordered: Mapping[int, float]) -> float:
    """Return a quantile of n numbers x_0 <= ... <= x_(n-1), from those that it lies between.

    x_i + (p - i) (x_(i+1) - x_i) with p = (n - 1) * fraction and i = floor(p), in float64: what
    numpy and torch call linear. Between a finite and an infinite number it is the infinite one.
    """
    first, second = quantile_ranks(n, fraction)
    low, high, weight = ordered[first], ordered[second], (n - 1) * fraction - first
    if low == high or weight == 0:
        return low
    if np.isinf(low) or np.isinf(high):
        return low + high
    return low * (1 - weight) + high * weight


def _is_number(fmt: FloatFormat, keys: Codes) -> Mask:
    lowest, highest = fmt.key(fmt.infinity | fmt.sign), fmt.key(fmt.infinity)
    is_number: Mask = (keys >= fmt.codes.type(lowest)) & (keys <= fmt.codes.type(highest))
    return is_number


def _margin(clusters: Sequence[Codes], ordered: Codes, fraction: float) -> float:
    value = ordered[floor((ordered.size - 1) * fraction)]
    share = int(np.searchsorted(ordered, value)) / ordered.size
    excess = [int(np.count_nonzero(each < value)) - share * each.size for each in clusters]
    clustered = sqrt(sum(each * each for each in excess)) / ordered.size
    independent = sqrt(fraction * (1 - fraction) / ordered.size)
    return _STANDARD_ERRORS * max(clustered, independent) + 1 / ordered.size


def _bracket(fmt: FloatFormat, ordered: Codes, low: float, high: float) -> Bracket:
    last = ordered.size - 1
    first = int(ordered[floor(low * last)]) if low > 0 else 0
    end = int(ordered[floor(high * last) + 1]) + 1 if high * last < last - 1 else 2 * fmt.sign
    return Bracket(first, end)


def _merged(brackets: list[Bracket]) -> tuple[Bracket, ...]:
    """Return the same ranges without overlaps, rising."""
    merged: list[Bracket] = []
    for each in sorted(brackets, key=lambda bracket: bracket.first):
        if merged and each.first < merged[-1].end:
            before = merged.pop()
            merged.append(Bracket(before.first, max(before.end, each.end)))
        else:
            merged.append(each)
    return tuple(merged)


def _count_below(keys: Codes, bound: int) -> int:
    if bound > int(np.iinfo(keys.dtype).max):
        return keys.size
    return int(np.count_nonzero(keys < keys.dtype.type(bound)))
