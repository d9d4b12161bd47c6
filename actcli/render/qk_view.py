"""What of one (layer, sample, query) is shown: its pairs, and the words around them.

Tensor legend: A query heads, N pairs, P keys that the query sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from actcli.reports.qk import QkPairs


@dataclass(frozen=True)
class QkView:
    """The pairs of one query, with the texts of its keys."""

    run: str
    """The decomposition, in a word or two."""

    pairs: QkPairs
    query_token: str
    tokens: tuple[str, ...]
    """Texts of the keys (P)."""

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return len(self.pairs.sum)

    @property
    def n_keys(self) -> int:
        """Keys that the query sees."""
        return len(self.tokens)

    @property
    def stem(self) -> str:
        """What its files are called."""
        pairs = self.pairs
        return f"layer{pairs.layer}-sample{pairs.sample}-pos{pairs.query}-{pairs.mode}"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each pair: `q.308 → k.218`."""
        return tuple(map(self._name, range(len(self.pairs.top_pairs))))

    def _name(self, pair: int) -> str:
        q, k = self.pairs.names(pair)
        return f"q.{q} → k.{k}"

    @property
    def is_of_components(self) -> NDArray[np.bool_]:
        """Whether both parts of a pair (N) are components, so that it is in the sum line."""
        n_components = np.array([len(self.pairs.q_names) - 2, len(self.pairs.k_names) - 2])
        found_N: NDArray[np.bool_] = np.all(self.pairs.top_pairs < n_components, axis=1)
        return found_N


def mean_over_heads(values_AP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average over the heads, in float64."""
    mean: NDArray[np.float32] = values_AP.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def thinned(n_keys: int, *, most: int) -> Sequence[int]:
    """Which keys get a label, so many at most: evenly spaced, and always the last."""
    step = -(-n_keys // most)
    places = [*range(0, n_keys, step)]
    if places[-1] != n_keys - 1:
        if len(places) >= most:
            places.pop()
        places.append(n_keys - 1)
    return places
