"""The largest cosine of each row with any other: signed, and in magnitude.

Every pair counts here, so all products are made, each pair once. Where bfloat16 is faster, they are
made in it, and only the pairs that may be a row's largest (by the bound of `sae_cosine_rows`) are
computed again in float64; a block where those are many is made again in float32. Otherwise all are
made in float32. Either way the maxima are those of float64 within 1e-6.

Tensor legend: R rows with a direction, O width, P pairs, I and J rows of two blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.analysis.sae_cosine_rows import Directions, RoundedRows, fast_dtype

_BLOCK = 1024
_CROWDED = 1 / 64
"""Share of a block's pairs above which a product in float32 is cheaper than single pairs."""


@dataclass(frozen=True)
class Maxima:
    """For each row, over all others; -1 and 0 where there is no other."""

    signed_R: Tensor
    """float64."""

    absolute_R: Tensor
    mean_absolute: float | None
    """Over all pairs; None where it was not asked for."""


def row_maxima(
    directions: Directions, *, mean: bool = False, dtype: torch.dtype | None = None
) -> Maxima:
    """Return the largest cosines of all rows.

    Args:
        directions: The rows.
        mean: Whether the mean of all |cosines| is wanted too: that takes float32 for all products.
        dtype: Of the products; None measures which is faster.
    """
    search = _Search(directions)
    if mean or (dtype or fast_dtype(directions.device)) == torch.float32:
        return search.plainly()
    return search.by_candidates()


class _Search:
    def __init__(self, directions: Directions) -> None:
        self._directions = directions
        self._signed_R = directions.norms_D.new_full((len(directions),), -1.0)
        self._absolute_R = torch.zeros_like(self._signed_R)
        self._single: RoundedRows | None = None

    def plainly(self) -> Maxima:
        """All products in float32; the sum of their magnitudes in float64."""
        total, n = 0.0, len(self._directions)
        for rows, others in self._blocks():
            total += self._take_block(rows, others)
        mean = total / (n * (n - 1) / 2) if n > 1 else None
        return Maxima(self._signed_R.clamp(-1, 1), self._absolute_R.clamp(-1, 1), mean)

    def by_candidates(self) -> Maxima:
        """All products in bfloat16, those that may be largest in float64."""
        rounded = RoundedRows.of(self._directions, dtype=torch.bfloat16)
        candidates = _Candidates(rounded)
        for rows, others in self._blocks():
            if not candidates.add(rows, others):
                self._take_block(rows, others)
        first_P, second_P = candidates.pairs()
        cosines_P = self._directions.cosines(first_P, second_P)
        for index_P in (first_P, second_P):
            self._signed_R.scatter_reduce_(0, index_P, cosines_P, "amax")
            self._absolute_R.scatter_reduce_(0, index_P, cosines_P.abs(), "amax")
        return Maxima(self._signed_R.clamp(-1, 1), self._absolute_R.clamp(-1, 1), None)

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        n = len(self._directions)
        for start in range(0, n, _BLOCK):
            for other in range(start, n, _BLOCK):
                yield slice(start, min(n, start + _BLOCK)), slice(other, min(n, other + _BLOCK))

    def _take_block(self, rows: slice, others: slice) -> float:
        """Take the maxima of a block made in float32; return its sum of |cosines|, pairs once."""
        if self._single is None:
            self._single = RoundedRows.of(self._directions, dtype=torch.float32)
        cosines_IJ = self._single.product(rows, others)
        total = _without_diagonal(cosines_IJ, rows, others, 0.0).abs()
        found = total.sum(dtype=torch.float64).item() / (2 if rows == others else 1)
        _raise(self._absolute_R, total, rows, others)
        _raise(self._signed_R, _without_diagonal(cosines_IJ, rows, others, -1.0), rows, others)
        return found


class _Candidates:
    """Pairs that may be the largest of one of their rows, judged in bfloat16.

    A product s is off by at most a + |s|/255: a for rounded factors and sums, the rest for the
    product stored in bfloat16 (2^-8 of what it was). So a pair may be the largest of a row only if
    s + a + |s|/255 >= h - a - |h|/255, with h the largest product of that row so far.
    """

    def __init__(self, rounded: RoundedRows) -> None:
        self._rounded = rounded
        n = len(rounded.rows_RC)
        self._off = rounded.slack(slice(0, n), slice(0, n), stored=False) if n else 0.0
        device = rounded.rows_RC.device
        self._high_R = torch.full((n,), -1.0, dtype=torch.bfloat16, device=device)
        self._large_R = torch.zeros(n, dtype=torch.bfloat16, device=device)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, rows: slice, others: slice) -> bool:
        """Take a block; return whether it had few candidates, and was taken."""
        product_IJ = self._rounded.product(rows, others)
        sizes_IJ = _without_diagonal(product_IJ, rows, others, 0.0).abs()
        product_IJ = _without_diagonal(product_IJ, rows, others, -1.0)
        _raise(self._high_R, product_IJ, rows, others)
        _raise(self._large_R, sizes_IJ, rows, others)
        high_R, large_R = _cut(self._high_R, self._off), _cut(self._large_R, self._off)
        maybe_IJ = product_IJ >= torch.minimum(high_R[rows, None], high_R[others])
        maybe_IJ |= sizes_IJ >= torch.minimum(large_R[rows, None], large_R[others])
        if rows == others:
            maybe_IJ.triu_(1)
        first_P, second_P = maybe_IJ.nonzero(as_tuple=True)
        if len(first_P) > _CROWDED * product_IJ.numel():
            return False
        values_P = product_IJ[first_P, second_P]
        self._kept.append((first_P + rows.start, second_P + others.start, values_P))
        return True

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return those that still may be, now that all products are known."""
        if not self._kept:
            none_P = torch.empty(0, dtype=torch.int64, device=self._high_R.device)
            return none_P, none_P
        first_P, second_P, values_P = (torch.cat(each) for each in zip(*self._kept, strict=True))
        high_R, large_R = _cut(self._high_R, self._off), _cut(self._large_R, self._off)
        maybe_P = values_P >= torch.minimum(high_R[first_P], high_R[second_P])
        maybe_P |= values_P.abs() >= torch.minimum(large_R[first_P], large_R[second_P])
        return first_P[maybe_P], second_P[maybe_P]


def _cut(largest_R: Tensor, off: float) -> Tensor:
    """Return what a product must reach to be, perhaps, larger than the largest one; rounded down.

    s + |s|/255 >= h - |h|/255 - 2a =: c means s >= c 255/256 for c >= 0, c 255/254 below. Another
    1/128 of its size is taken off for storing the cut in bfloat16.
    """
    largest_R = largest_R.float()
    cut_R = largest_R - largest_R.abs() / 255 - 2 * off
    cut_R = torch.where(cut_R >= 0, cut_R * (255 / 256), cut_R * (255 / 254))
    return (cut_R - cut_R.abs() / 128).to(torch.bfloat16)


def _without_diagonal(block_IJ: Tensor, rows: slice, others: slice, value: float) -> Tensor:
    """Put a value where a row meets itself."""
    return block_IJ.fill_diagonal_(value) if rows == others else block_IJ


def _raise(largest_R: Tensor, block_IJ: Tensor, rows: slice, others: slice) -> None:
    """Raise the largest values of rows and columns of a block."""
    largest_R[rows] = torch.maximum(largest_R[rows], block_IJ.amax(1).to(largest_R.dtype))
    if rows != others:
        largest_R[others] = torch.maximum(largest_R[others], block_IJ.amax(0).to(largest_R.dtype))
