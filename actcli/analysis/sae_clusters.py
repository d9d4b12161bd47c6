"""Sums by groups of neighbouring samples, for standard errors, in bounded memory.

Tokens of one text are alike, so errors come from samples, not from tokens. Each sample begins as a
cluster of its own; when there would be more than `MOST_CLUSTERS`, neighbours merge by twos (batch
means). Which samples share a cluster depends on their number alone, not on batches.

Tensor legend: N tokens, S runs of tokens of one cluster, C clusters, K sums, O target width.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MOST_CLUSTERS = 1024

Floats = NDArray[np.float64]


class Runs(NamedTuple):
    """The tokens of a chunk, cut where the cluster changes."""

    clusters_S: NDArray[np.int64]
    """Rising, without repetition."""

    starts_S: NDArray[np.int64]
    counts_S: NDArray[np.int64]
    width: int
    """Samples that share a cluster."""

    def sum(self, values_KN: Floats) -> Floats:
        """Return the sums (S, K) over the tokens of each run."""
        return np.add.reduceat(values_KN, self.starts_S, axis=1).T

    def sum_rows(self, rows_NO: Tensor) -> Floats:
        """Return the sums (S, O) of vectors over the tokens of each run."""
        if len(self.starts_S) == 1:
            return _host(rows_NO.sum(0, keepdim=True))
        tokens_N = torch.arange(len(rows_NO), device=rows_NO.device)
        starts_S = torch.from_numpy(self.starts_S).to(rows_NO.device)
        return _host(F.embedding_bag(tokens_N, rows_NO, offsets=starts_S, mode="sum"))


class SampleClusters:
    """Numbers the samples as they come, and says which cluster each token is in."""

    def __init__(self, most: int = MOST_CLUSTERS) -> None:
        self.most = most
        self._samples = 0
        self._last: int | None = None
        self.width = 1
        """Samples that share one."""

    def runs(self, samples_N: NDArray[np.int64]) -> Runs:
        """Return the runs of the next tokens (N,), which name their samples in order."""
        changes_N = np.empty(len(samples_N), dtype=np.int64)
        changes_N[0] = self._last is None or samples_N[0] != self._last
        changes_N[1:] = samples_N[1:] != samples_N[:-1]
        ordinals_N = self._samples - 1 + np.cumsum(changes_N)
        self._samples, self._last = int(ordinals_N[-1]) + 1, int(samples_N[-1])
        while self._samples > self.most * self.width:
            self.width *= 2
        numbers_N = ordinals_N // self.width
        starts_S = np.flatnonzero(np.diff(numbers_N, prepend=-1))
        counts_S = np.diff(starts_S, append=len(numbers_N))
        return Runs(numbers_N[starts_S], starts_S, counts_S, self.width)

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return -(-self._samples // self.width)


class ClusterTable:
    """Plain sums by cluster."""

    def __init__(self, *, sums: int, most: int = MOST_CLUSTERS) -> None:
        self._width = 1
        self._sums_CK = np.zeros((most, sums))

    def add(self, runs: Runs, sums_SK: Floats) -> None:
        """Add the sums of some runs to those of their clusters."""
        self._widen(runs.width)
        self._sums_CK[runs.clusters_S] += sums_SK

    def first(self, clusters: int, width: int) -> Floats:
        """Return the sums (C, K) of the clusters that are in use, each of so many samples."""
        self._widen(width)
        return self._sums_CK[:clusters].copy()

    def _widen(self, width: int) -> None:
        while self._width < width:
            self._width *= 2
            _fold(self._sums_CK)


class VarianceTable:
    """Count, mean and sum of squared distances from it by cluster.

    Parts are merged by Chan, Golub, LeVeque (1979): squares = squares_1 + squares_2
    + |mean_1 - mean_2|^2 n_1 n_2 / (n_1 + n_2). Nothing is lost where means are large.
    """

    def __init__(self, *, width: int, most: int = MOST_CLUSTERS) -> None:
        self._width = 1
        self.counts_C = np.zeros(most)
        self.means_CO = np.zeros((most, width))
        self.squares_C = np.zeros(most)

    def add(self, runs: Runs, means_SO: Floats, squares_S: Floats) -> None:
        """Merge runs, given by their means and their squared distances from them."""
        while self._width < runs.width:
            self._width *= 2
            self._fold()
        which = runs.clusters_S
        here = (self.counts_C[which], self.means_CO[which], self.squares_C[which])
        merged = _merge(here, (runs.counts_S.astype(np.float64), means_SO, squares_S))
        self.counts_C[which], self.means_CO[which], self.squares_C[which] = merged

    def add_rows(
        self, runs: Runs, centred_NO: Tensor, apart_N: Tensor, *, centre_O: Floats
    ) -> None:
        """Merge the tokens of runs, given as differences from any vector near their means.

        Args:
            runs: Their runs.
            centred_NO: Tokens less `centre_O`.
            apart_N: Squared lengths of these.
            centre_O: The vector.
        """
        shifts_SO = runs.sum_rows(centred_NO) / runs.counts_S[:, None]
        apart_S = runs.sum(apart_N.cpu().double().numpy()[None])[:, 0]
        squares_S = apart_S - runs.counts_S * np.einsum("so,so->s", shifts_SO, shifts_SO)
        self.add(runs, centre_O + shifts_SO, np.maximum(squares_S, 0))

    def first(self, clusters: int, width: int) -> tuple[Floats, Floats]:
        """Return means (C, O) and squared distances (C,) of the clusters that are in use."""
        while self._width < width:
            self._width *= 2
            self._fold()
        return self.means_CO[:clusters].copy(), self.squares_C[:clusters].copy()

    def _fold(self) -> None:
        parts = (self.counts_C, self.means_CO, self.squares_C)
        half = len(self.counts_C) // 2
        merged = _merge(tuple(a[0::2] for a in parts), tuple(a[1::2] for a in parts))
        for own, new in zip(parts, merged, strict=True):
            own[:half], own[half:] = new, 0


def _merge(one: tuple[Floats, ...], other: tuple[Floats, ...]) -> tuple[Floats, Floats, Floats]:
    (n_C, means_CO, squares_C), (m_C, others_CO, more_C) = one, other
    total_C = n_C + m_C
    share_C = np.divide(m_C, total_C, out=np.zeros_like(total_C), where=total_C > 0)
    apart_CO = others_CO - means_CO
    between_C = np.einsum("co,co->c", apart_CO, apart_CO) * n_C * share_C
    return total_C, means_CO + apart_CO * share_C[:, None], squares_C + more_C + between_C


def _fold(sums_CK: Floats) -> None:
    half = len(sums_CK) // 2
    sums_CK[:half] = sums_CK[0::2] + sums_CK[1::2]
    sums_CK[half:] = 0


def _host(rows: Tensor) -> Floats:
    found: Floats = rows.cpu().double().numpy()
    return found
