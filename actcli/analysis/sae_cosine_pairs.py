"""Find all pairs of rows whose |cosine| is above a threshold, exactly, without all products.

Rows are taken in blocks; a block of pairs is judged by the cheapest product that decides it:

1. *Pruned*: the r coordinates with the largest energy alone. What they leave out is bounded by the
   lengths of the rest (see `sae_cosine_rows`); rows are sorted by that length, so a bound for a
   block is nearly that of its pairs.
2. *Full*: all coordinates, in bfloat16 where the machine is faster with it.
3. *Single*: all coordinates in float32; pairs that are certainly above are counted as they stand.
4. *Double*: the block in float64.

At 1 and 2 the pairs that may be above are computed in float64, one by one, unless there are so many
that the next product is cheaper. r is chosen by trying some on pairs of a few rows: where pruning
cannot pay, for a low threshold or rows that lie close together, the search begins with the full
product. Which way was taken never shows in the result: every decision is either made in float64 or
proven by a bound.

Tensor legend: R rows with a direction, C coordinates, P pairs, I and J rows of two blocks, G groups
of features, S rows of a sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.analysis.sae_cosine_rows import Directions, RoundedRows, fast_dtype

_BLOCK = {"cuda": 4096}
_CPU_BLOCK = 1024
_CROWDED = 1 / 256
"""Share of a block's pairs above which the next product is cheaper than single pairs."""

_CROWDED_BAND = 1 / 64
"""The same before float64."""

_SAMPLE = 512
_SHARES = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
"""Shares of the coordinates that are tried."""

_PAIR_COST = 256.0
"""Of one pair in float64, against that of one in a product over as many coordinates."""

_DIGITS = 12
"""|cosines| that agree so far are equally strong; the pair that comes first goes first."""


@dataclass
class Found:
    """What a search counted."""

    above_G: Tensor
    """Pairs above the threshold, by the later of their groups."""

    first_P: Tensor
    second_P: Tensor
    """The strongest pairs, falling: numbers of rows (see `Directions`)."""

    cosines_P: Tensor
    positive: int = 0
    """Pairs above the threshold with a positive cosine."""

    @classmethod
    def nothing(cls, n_groups: int, device: torch.device) -> "Found":
        """Return what a search has before its first block."""
        none_P = torch.empty(0, dtype=torch.int64, device=device)
        above_G = torch.zeros(n_groups, dtype=torch.int64, device=device)
        return cls(above_G, none_P, none_P, none_P.double())


class PairSearch:
    """One search over all pairs of rows."""

    def __init__(
        self,
        directions: Directions,
        *,
        threshold: float,
        most: int,
        group_D: Tensor,
        n_groups: int,
        dtype: torch.dtype | None = None,
        pruned: int | None = None,
    ) -> None:
        """Prepare the search; `directions` are put in another order.

        Args:
            directions: The rows.
            threshold: Pairs with |cosine| above it, not at it, are found.
            most: How many of the strongest are listed.
            group_D: By row of W, which group it belongs to.
            n_groups: Number of groups.
            dtype: Of products 1 and 2; None measures which is faster.
            pruned: Coordinates of product 1, 0 for none; None chooses.
        """
        self._directions, self._threshold, self._most = directions, threshold, most
        self._dtype = dtype or fast_dtype(directions.device)
        self._levels: list[RoundedRows | None] = [None]
        if len(directions) > 1:
            energy_O = directions.energy_O
            columns_O = energy_O.argsort(descending=True, stable=True)
            if pruned is None:
                pruned = _best_prefix(directions, columns_O, threshold)
            if pruned:
                self._levels = [self._prune(columns_O[:pruned]), None]
        self._group_R = group_D[directions.index_R]
        self._n_groups = n_groups
        self._single: RoundedRows | None = None
        self.found = Found.nothing(n_groups, directions.device)

    def run(self) -> Found:
        """Judge every pair once."""
        for rows, others in self._blocks():
            self._judge(rows, others)
        found = self.found
        found.cosines_P = self._directions.cosines(found.first_P, found.second_P)
        return found

    def _prune(self, columns_C: Tensor) -> RoundedRows:
        """Product 1; puts the rows in the order of what it leaves out."""
        kept = RoundedRows.of(self._directions, columns_C=columns_C, dtype=self._dtype)
        order_R = kept.tails_R.argsort(stable=True)
        self._directions.reorder(order_R)
        rest = (kept.tails_R[order_R], kept.lengths_R[order_R], kept.errors_R[order_R])
        return RoundedRows(kept.rows_RC[order_R], *rest)

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        n, step = len(self._directions), _BLOCK.get(self._directions.device.type, _CPU_BLOCK)
        for start in range(0, n, step):
            for other in range(start, n, step):
                yield slice(start, min(n, start + step)), slice(other, min(n, other + step))

    def _judge(self, rows: slice, others: slice) -> None:
        for level in range(len(self._levels)):
            rounded = self._rounded(level)
            product_IJ = _pairs_once(rounded.product(rows, others), rows, others)
            bound = _below(self._threshold - rounded.slack(rows, others), product_IJ.dtype)
            low, high = product_IJ.aminmax()
            if bound >= 0 and high.item() < bound and low.item() > -bound:
                return
            maybe_IJ = (product_IJ.abs() >= bound).logical_and_(_is_pair(rows, others, low.device))
            if int(maybe_IJ.count_nonzero()) <= _CROWDED * product_IJ.numel():
                self._judge_pairs(maybe_IJ, rows, others)
                return
        self._judge_block(rows, others)

    def _rounded(self, level: int) -> RoundedRows:
        rounded = self._levels[level]
        if rounded is None:
            rounded = self._levels[level] = RoundedRows.of(self._directions, dtype=self._dtype)
        return rounded

    def _judge_pairs(self, maybe_IJ: Tensor, rows: slice, others: slice) -> None:
        """Decide single pairs of a block in float64."""
        first_P, second_P = _numbers(maybe_IJ, rows, others)
        cosines_P = self._directions.cosines(first_P, second_P)
        above_P = cosines_P.abs() > self._threshold
        first_P, second_P, cosines_P = first_P[above_P], second_P[above_P], cosines_P[above_P]
        groups_P = torch.maximum(self._group_R[first_P], self._group_R[second_P])
        self.found.above_G += torch.bincount(groups_P, minlength=self._n_groups)
        self.found.positive += int((cosines_P > 0).count_nonzero())
        self._list(first_P, second_P, cosines_P)

    def _judge_block(self, rows: slice, others: slice) -> None:
        """Decide a block with many pairs above the threshold, or close to it."""
        if self._single is None:
            self._single = RoundedRows.of(self._directions, dtype=torch.float32)
        product_IJ = _pairs_once(self._single.product(rows, others), rows, others)
        slack, is_pair_IJ = (
            self._single.slack(rows, others),
            _is_pair(rows, others, product_IJ.device),
        )
        sizes_IJ = product_IJ.abs().double()
        certain_IJ = (sizes_IJ > self._threshold + slack) & is_pair_IJ
        band_IJ = (sizes_IJ > self._threshold - slack) & is_pair_IJ & ~certain_IJ
        strong_IJ = certain_IJ & (sizes_IJ >= self._cut(sizes_IJ, certain_IJ, slack))
        crowd = int(band_IJ.count_nonzero()) + int(strong_IJ.count_nonzero())
        if crowd > _CROWDED_BAND * product_IJ.numel():
            unit_IO, unit_JO = self._directions.unit(rows), self._directions.unit(others)
            exact_IJ = (unit_IO @ unit_JO.T).clamp_(-1, 1)
            sizes_IJ = exact_IJ.abs()
            certain_IJ = (sizes_IJ > self._threshold) & is_pair_IJ
            strong_IJ = certain_IJ & (sizes_IJ >= self._cut(sizes_IJ, certain_IJ, 10.0**-_DIGITS))
            self._count(certain_IJ, exact_IJ, rows, others)
            self._list(*_numbers(strong_IJ, rows, others), exact_IJ[strong_IJ])
            return
        self._count(certain_IJ, product_IJ, rows, others)
        first_P, second_P = _numbers(strong_IJ, rows, others)
        self._list(first_P, second_P, self._directions.cosines(first_P, second_P))
        self._judge_pairs(band_IJ, rows, others)

    def _cut(self, sizes_IJ: Tensor, certain_IJ: Tensor, slack: float) -> float:
        """Return what a pair must reach to be among the strongest."""
        best_P = sizes_IJ[certain_IJ]
        cut = self.found.cosines_P[-1].abs().item() if self._is_full() else 0.0
        if len(best_P) > self._most:
            cut = max(cut, best_P.topk(max(1, self._most)).values[-1].item() - slack)
        return cut - slack

    def _is_full(self) -> bool:
        return 0 < self._most == len(self.found.cosines_P)

    def _count(self, above_IJ: Tensor, cosines_IJ: Tensor, rows: slice, others: slice) -> None:
        """Count the pairs of a block by group, as one product with who is in which."""
        self.found.positive += int((above_IJ & (cosines_IJ > 0)).count_nonzero())
        member_RG = torch.nn.functional.one_hot(self._group_R, self._n_groups).double()
        counts_GG = member_RG[rows].T @ above_IJ.double() @ member_RG[others]
        number_G = torch.arange(self._n_groups, device=counts_GG.device)
        later_GG = torch.maximum(number_G[:, None], number_G)
        self.found.above_G.index_add_(0, later_GG.flatten(), counts_GG.flatten().long())

    def _list(self, first_P: Tensor, second_P: Tensor, cosines_P: Tensor) -> None:
        """Keep the strongest of those listed and these."""
        found, index_R = self.found, self._directions.index_R
        first_P, second_P = (
            torch.cat(each) for each in ((found.first_P, first_P), (found.second_P, second_P))
        )
        cosines_P = torch.cat([found.cosines_P, cosines_P])
        one_P, two_P = index_R[first_P], index_R[second_P]
        n_rows = int(index_R.max()) + 1
        place_P = torch.minimum(one_P, two_P) * n_rows + torch.maximum(one_P, two_P)
        order_P = place_P.argsort()
        weakness_P = -cosines_P[order_P].abs().round(decimals=_DIGITS)
        order_P = order_P[weakness_P.argsort(stable=True)][: self._most]
        found.first_P, found.second_P = first_P[order_P], second_P[order_P]
        found.cosines_P = cosines_P[order_P]


def _best_prefix(directions: Directions, columns_O: Tensor, threshold: float) -> int:
    """Return how many coordinates make the search cheapest, 0 for no pruning at all.

    Tried on all pairs of at most 512 rows, evenly spaced: the cost of a pair is its r coordinates,
    and, where they do not decide it, that of computing it in float64.
    """
    width, n = directions.width, len(directions)
    sample_S = torch.arange(0, n, -(-n // _SAMPLE), device=directions.device)
    unit_SO = directions.unit(sample_S)[:, columns_O].float()
    best, cheapest, start = 0, float(width), 0
    product_SS = unit_SO.new_zeros(len(sample_S), len(sample_S))
    lengths_S = unit_SO.new_zeros(len(sample_S))
    for share in _SHARES:
        stop = max(1, round(share * width))
        part_SC, start = unit_SO[:, start:stop], stop
        product_SS += part_SC @ part_SC.T
        lengths_S += part_SC.square().sum(1)
        tails_S = (1 - lengths_S).clamp_min_(0).sqrt()
        open_SS = product_SS.abs() + tails_S[:, None] * tails_S > threshold
        undecided = (int(open_SS.count_nonzero()) - int(open_SS.diagonal().count_nonzero())) / max(
            1, len(sample_S) * (len(sample_S) - 1)
        )
        cost = stop + min(undecided * _PAIR_COST, 1.0) * width
        if cost < cheapest:
            best, cheapest = stop, cost
    return best


def _pairs_once(product_IJ: Tensor, rows: slice, others: slice) -> Tensor:
    """Clear what is no pair, or the same pair again, in a block on the diagonal."""
    return product_IJ.triu_(1) if rows == others else product_IJ


def _is_pair(rows: slice, others: slice, device: torch.device) -> Tensor:
    """Return which elements of a block are pairs (I, J), or (1, 1) where all are."""
    if rows != others:
        return torch.ones(1, 1, dtype=torch.bool, device=device)
    n = rows.stop - rows.start
    return torch.ones(n, n, dtype=torch.bool, device=device).triu_(1)


def _below(value: float, dtype: torch.dtype) -> float:
    """Return a number of that type that is not above the value."""
    nearest = torch.tensor(value).to(dtype)
    if nearest.item() > value:
        nearest = torch.nextafter(nearest, torch.tensor(-torch.inf, dtype=dtype))
    return float(nearest.item())


def _numbers(chosen_IJ: Tensor, rows: slice, others: slice) -> tuple[Tensor, Tensor]:
    """Return the numbers of rows of the chosen pairs."""
    first_P, second_P = chosen_IJ.nonzero(as_tuple=True)
    return first_P + rows.start, second_P + others.start


def groups(prefixes: Sequence[int], n: int, device: torch.device) -> Tensor:
    """Return of each row which nested part it belongs to, from 0; beyond the last one: how many."""
    edges = torch.tensor(list(prefixes), dtype=torch.int64, device=device)
    return torch.searchsorted(edges, torch.arange(n, device=device), right=True)
