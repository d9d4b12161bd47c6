"""Pairs over many queries: how often, how strong, which sign, which head, which token.

Only pairs that were among the strongest of some query are kept, so memory grows with those.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actcli.reports.qk import QkPairs, QkTableRow

_Key = tuple[int, str, str]


@dataclass
class _Sums:
    """One pair so far."""

    heads_A: NDArray[np.float64]
    count: int = 0
    positive: int = 0
    negative: int = 0
    peaks: float = 0.0
    means: float = 0.0
    largest: float = 0.0
    top_heads: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)

    def merge(self, other: "_Sums") -> None:
        """Add what another has."""
        self.heads_A = self.heads_A + other.heads_A
        self.count += other.count
        self.positive += other.positive
        self.negative += other.negative
        self.peaks += other.peaks
        self.means += other.means
        self.largest = max(self.largest, other.largest, key=lambda each: (abs(each), each))
        self.top_heads.update(other.top_heads)
        self.tokens.update(other.tokens)


@dataclass
class QkTable:
    """Pairs over (sample, query), by layer; tables of several parts of the work can be merged."""

    _pairs: dict[_Key, _Sums] = field(default_factory=dict)
    _queries: Counter[int] = field(default_factory=Counter)

    def add(self, pairs: QkPairs, token_ids: Sequence[int] | None = None) -> None:
        """Take in one query.

        Args:
            pairs: what was read.
            token_ids: of the whole text; without them no tokens are counted.
        """
        self._queries[pairs.layer] += 1
        for place in range(len(pairs.top_pairs)):
            key = (pairs.layer, *pairs.names(place))
            self._take(key, _sums_of(pairs, place, token_ids))

    def merge(self, other: "QkTable") -> None:
        """Add what another table has."""
        self._queries.update(other._queries)
        for key, sums in other._pairs.items():
            self._take(key, sums)

    def rows(self, *, most: int | None = None) -> tuple[QkTableRow, ...]:
        """Rows by layer; the commonest pairs first, then by |mean peak|, then by name."""
        rows = [self._row(key, sums) for key, sums in self._pairs.items()]
        rows.sort(key=lambda row: (row.layer, -row.count, -abs(row.mean_peak), row.q, row.k))
        return tuple(rows[:most])

    def _take(self, key: _Key, sums: _Sums) -> None:
        if key not in self._pairs:
            self._pairs[key] = _Sums(np.zeros_like(sums.heads_A))
        self._pairs[key].merge(sums)

    def _row(self, key: _Key, sums: _Sums) -> QkTableRow:
        layer, q, k = key
        token, times = _commonest(sums.tokens)
        return QkTableRow(
            layer=layer,
            q=q,
            k=k,
            count=sums.count,
            share=sums.count / self._queries[layer],
            mean_peak=sums.peaks / sums.count,
            mean_contribution=sums.means / sums.count,
            largest_peak=sums.largest,
            sign_consistency=abs(sums.positive - sums.negative) / sums.count,
            head_means=tuple((sums.heads_A / sums.count).tolist()),
            top_head=_commonest(sums.top_heads)[0] or 0,
            peak_token_id=token,
            peak_token_share=times / sums.count if sums.tokens else None,
        )


def _sums_of(pairs: QkPairs, place: int, token_ids: Sequence[int] | None) -> _Sums:
    series_AP = pairs.top_contrib[:, place].astype(np.float64)
    where_A1 = np.abs(series_AP).argmax(axis=1)[:, None]
    peak = float(pairs.peak[place])
    key = int(pairs.peak_key[place])
    return _Sums(
        heads_A=np.take_along_axis(series_AP, where_A1, axis=1)[:, 0],
        count=1,
        positive=int(peak > 0),
        negative=int(peak < 0),
        peaks=peak,
        means=float(series_AP.mean()),
        largest=peak,
        top_heads=Counter([int(pairs.peak_head[place])]),
        tokens=Counter([] if token_ids is None else [int(token_ids[key])]),
    )


def _commonest(counts: Counter[int]) -> tuple[int | None, int]:
    """The commonest number and how often; the smallest of equally common ones."""
    return min(counts.items(), key=lambda item: (-item[1], item[0]), default=(None, 0))
