"""Where each feature of a dictionary is most active: the largest activations, in bounded memory.

Of each feature the `most` largest activations above a threshold are kept, with the token they come
from: what a heap of that size for each feature would hold (the Matryoshka program's, with a
threshold of 0.1 and 100 of each), but without a step for each activation. New ones that can still
count are put aside; when there are many, they and those that are kept are sorted once, by feature,
then by value, and the first of each feature stay. As there, several tokens of one context may be
among them.

Of equal activations that of the earlier token comes first, by sample, then by position. So what is
kept depends neither on batches nor on their order.

Tensor legend: N tokens, M activations, D features, B bins of a histogram.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from actcli.saes.dictionary import SparseActs

MOST, THRESHOLD = 100, 0.1
"""As in the Matryoshka program."""

HISTOGRAM_EDGES = np.concatenate([[0.0], 2.0 ** np.arange(-10.0, 15.5, 0.5)])
"""Half octaves; the first bin is for all that is smaller, the last for all that is larger."""

_PENDING = 1 << 20


@dataclass(frozen=True)
class Kept:
    """Activations, in columns."""

    feature_M: NDArray[np.int64]
    value_M: NDArray[np.float32]
    sample_M: NDArray[np.int64]
    position_M: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.feature_M)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def select(self, wanted: NDArray[Any] | slice) -> Self:
        """Return some of them: by a mask, or by their places."""
        return type(self)(**{name: column[wanted] for name, column in self.columns.items()})

    @classmethod
    def concat(cls, parts: "list[Kept]") -> "Kept":
        """Put several one after the other."""
        return cls(
            **{
                each.name: np.concatenate([getattr(part, each.name) for part in parts])
                for each in fields(cls)
            }
        )

    @classmethod
    def none(cls) -> "Kept":
        """Return an empty one."""
        whole = np.empty(0, np.int64)
        return cls(whole, np.empty(0, np.float32), whole, whole)


class FeatureSums:
    """What is known of every feature over all tokens: counts, sums in float64, histograms."""

    def __init__(self, n_features: int, *, threshold: float) -> None:
        self.threshold = threshold
        self.n_tokens = 0
        """Tokens seen, those without any activation too."""

        self.active_D = np.zeros(n_features, np.int64)
        """Tokens at which the feature is not 0."""

        self.above_D = np.zeros(n_features, np.int64)
        """Tokens at which it is above the threshold."""

        self.sum_D = np.zeros(n_features, np.float64)
        self.sum_squares_D = np.zeros(n_features, np.float64)
        self.max_D = np.full(n_features, -np.inf, np.float32)
        """-inf where it was never active."""

        self._histogram_DB = np.zeros((n_features, len(HISTOGRAM_EDGES) - 1), np.int32)

    def add(
        self, feature_M: NDArray[np.int64], value_M: NDArray[np.float32], n_tokens: int
    ) -> None:
        """Count the activations of some tokens."""
        n_features = len(self.active_D)
        doubles_M = value_M.astype(np.float64)
        self.n_tokens += n_tokens
        self.active_D += np.bincount(feature_M, minlength=n_features)
        above_M = value_M > np.float32(self.threshold)
        self.above_D += np.bincount(feature_M[above_M], minlength=n_features)
        self.sum_D += np.bincount(feature_M, doubles_M, minlength=n_features)
        self.sum_squares_D += np.bincount(feature_M, doubles_M**2, minlength=n_features)
        np.maximum.at(self.max_D, feature_M, value_M)
        bins_M = np.searchsorted(HISTOGRAM_EDGES[1:-1], doubles_M, side="right")
        np.add.at(self._histogram_DB, (feature_M, bins_M), 1)

    def mean(self, feature: int) -> float | None:
        """Mean over the tokens at which the feature is active; None if there are none."""
        count = int(self.active_D[feature])
        return float(self.sum_D[feature] / count) if count else None

    def std(self, feature: int) -> float | None:
        """Standard deviation over those tokens: sqrt(mean of squares - squared mean)."""
        count = int(self.active_D[feature])
        if not count:
            return None
        mean = self.sum_D[feature] / count
        return float(np.sqrt(max(self.sum_squares_D[feature] / count - mean**2, 0.0)))

    def histogram(self, feature: int) -> tuple[list[float], list[int]] | None:
        """Edges and counts of the activations above 0, from the first bin that has any to the last.

        Bins are half octaves. The first of all begins at 0, and the last ends at the largest value.
        """
        counts_B = self._histogram_DB[feature]
        filled = counts_B.nonzero()[0]
        if not len(filled) or self.max_D[feature] <= 0:
            return None
        first, stop = int(filled[0]), int(filled[-1]) + 1
        edges = HISTOGRAM_EDGES[first : stop + 1].tolist()
        edges[-1] = max(edges[-1], float(self.max_D[feature]))
        return edges, counts_B[first:stop].tolist()


class TopSamples:
    """The largest activations of every feature, from batches of tokens."""

    def __init__(
        self,
        n_features: int,
        *,
        most: int = MOST,
        threshold: float = THRESHOLD,
        pending: int = _PENDING,
    ) -> None:
        """Start with nothing.

        Args:
            n_features: of the dictionary.
            most: how many activations of each feature are kept.
            threshold: only activations above it are; at least 0.
            pending: activations that wait for the next sorting, at most, or as many as are kept.
        """
        assert most > 0, "there is nothing to keep"
        assert threshold >= 0, "the order of values is that of their bits from 0 on"
        self.n_features, self.most, self.threshold = n_features, most, threshold
        self.sums = FeatureSums(n_features, threshold=threshold)
        self._kept, self._waiting = Kept.none(), list[Kept]()
        self._n_waiting, self._pending = 0, pending
        self._floor_D = np.full(n_features, -np.inf, np.float32)

    def add(
        self, acts: SparseActs, samples_N: NDArray[np.int64], positions_N: NDArray[np.int64]
    ) -> None:
        """Take the active features of some tokens.

        Args:
            acts: the features; not empty of tokens without any.
            samples_N: which sample each token is of.
            positions_N: where in that sample.
        """
        feature_M = acts.features_M.cpu().numpy()
        value_M = acts.values_M.float().cpu().numpy()
        self.sums.add(feature_M, value_M, acts.n_tokens)
        counts_M = (value_M > np.float32(self.threshold)) & (value_M >= self._floor_D[feature_M])
        token_M = acts.tokens_M.cpu().numpy()[counts_M]
        new = Kept(
            feature_M[counts_M],
            value_M[counts_M],
            np.asarray(samples_N, np.int64)[token_M],
            np.asarray(positions_N, np.int64)[token_M],
        )
        self._waiting.append(new)
        self._n_waiting += len(new)
        if self._n_waiting >= max(self._pending, len(self._kept)):
            self._sort_in()

    def kept(self) -> Kept:
        """Return what is kept: by feature, then falling value, then sample and position."""
        self._sort_in()
        return self._kept

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        every = Kept.concat([self._kept, *self._waiting])
        self._waiting, self._n_waiting = [], 0
        every = every.select(_order(every))
        starts_D = np.searchsorted(every.feature_M, np.arange(self.n_features))
        rank_M = np.arange(len(every)) - starts_D[every.feature_M]
        self._kept = every.select(rank_M < self.most)
        last = rank_M == self.most - 1
        self._floor_D[every.feature_M[last]] = every.value_M[last]


def _order(every: Kept) -> NDArray[np.int64]:
    """Where each goes: by feature, falling value, sample, position.

    Positive floats are in the order of their bits, so feature and value are one whole number.
    """
    bits_M = every.value_M.view(np.uint32).astype(np.int64)
    main_M = (every.feature_M << 32) | (0xFFFFFFFF - bits_M)
    return np.lexsort((every.position_M, every.sample_M, main_M))
