"""Targets that are kept until the mean of all of them is known: the first ones, and a sample.

All tokens are kept as long as there is room. When there is no more, the first half of it stays, and
of the later ones every other is dropped, again and again. Which ones stay depends on their number
among the tokens alone, not on batches: those with number * golden ratio mod 1 below 1, 1/2, 1/4,
... That spreads them evenly over the tokens, and over the places within samples of any length.

Tensor legend: N tokens of a chunk, S tokens that are kept, O target width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_clusters import Runs

HELD_BYTES = 64 << 20
_LEAST = 64
"""Tokens that are kept however wide they are."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 times the golden ratio mod 1."""

_ALL = 64


class HeldTargets:
    """The first tokens of a target, and a sample of the others."""

    def __init__(self, width: int, *, held_bytes: int = HELD_BYTES) -> None:
        self._most = max(_LEAST, held_bytes // (4 * width))
        self.first = self._most // 2
        """Tokens before this one are always kept."""

        self.n = 0
        """Tokens seen."""

        self._bits = _ALL
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor]] = []

    @property
    def is_complete(self) -> bool:
        """Whether all tokens are kept."""
        return self._bits == _ALL

    def add(self, t_NO: Tensor, scales_N: Tensor, runs: Runs) -> NDArray[np.int64]:
        """Keep some tokens, for now; return the numbers of all of them.

        Args:
            t_NO: The targets.
            scales_N: What their squared distance from the mean was taken to be.
            runs: Their clusters.
        """
        numbers_N = np.arange(self.n, self.n + len(t_NO))
        self.n += len(t_NO)
        samples_N = np.repeat(runs.clusters_S * runs.width, runs.counts_S)
        self._parts.append(self._chosen(numbers_N, samples_N, t_NO, scales_N))
        while self.count > self._most and self._bits:
            self._bits -= 1
            self._parts = [self._chosen(*self._all())]
        return numbers_N

    def keeps(self, numbers_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which tokens, by number, are kept (N,)."""
        if self.is_complete:
            return np.ones(len(numbers_N), dtype=np.bool_)
        places_N = numbers_N.astype(np.uint64) * _GOLDEN
        kept_N: NDArray[np.bool_] = (numbers_N < self.first) | (
            places_N < np.uint64(1 << self._bits)
        )
        return kept_N

    def tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor]:
        """Return those kept: number (S,), first sample of their cluster, target, scale."""
        if len(self._parts) != 1:
            self._parts = [self._all()]
        return self._parts[0]

    @property
    def count(self) -> int:
        """How many are kept."""
        return sum(len(numbers_S) for numbers_S, *_rest in self._parts)

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor]:
        numbers, samples, targets, scales = zip(*self._parts, strict=True)
        return (
            np.concatenate(numbers),
            np.concatenate(samples),
            torch.cat(targets),
            torch.cat(scales),
        )

    def _chosen(
        self,
        numbers_N: NDArray[np.int64],
        samples_N: NDArray[np.int64],
        t_NO: Tensor,
        scales_N: Tensor,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor, Tensor]:
        kept_S = self.keeps(numbers_N).nonzero()[0]
        index_S = torch.from_numpy(kept_S).to(t_NO.device)
        return numbers_N[kept_S], samples_N[kept_S], t_NO[index_S], scales_N[index_S]
