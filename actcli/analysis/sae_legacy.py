"""The mean over tokens of |e|^2 / |t - m|^2, whose m, the mean of all tokens, is known last.

The first tokens of a target are kept (64 MiB: 7,281 at width 2304), and their ratios are exact. A
later chunk is expanded about c, the mean up to then. With u = t - c and d = m - c,

    1 / |u - d|^2 = 1 / |u|^2 * (1 + 2 u.d / |u|^2 - |d|^2 / |u|^2 + 4 (u.d)^2 / |u|^4 + ...)

and all but the last of these terms need only sums of |e|^2/|u|^2, of 2 |e|^2/|u|^4 u and of
|e|^2/|u|^4. What is left out is about 4 cos(u, d)^2 |d|^2 / |u|^2 of a ratio. For tokens in any
random order |d|^2 / |u|^2 is about 1 / tokens so far, and the mean ratio was found to be right to
1e-6 of it; where the mean drifts over the tokens by as much as they spread, to 1 %. Tokens at the
mean itself have no ratio and are left out.

Tensor legend: N tokens, O target width, C clusters of samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actcli.analysis.sae_clusters import ClusterTable, Floats, Runs
from actcli.analysis.sae_targets import TargetChunk


class LegacyRatios(NamedTuple):
    """Their sum, and what each cluster of samples has of it."""

    total: float
    n: int
    """Tokens that have one."""

    by_cluster_C2: Floats
    """Sum and number; of tokens that were not kept about the mean so far."""

    gradient_O: Floats
    """Of the sum, by the mean."""


class LegacySums:
    """The sum of the ratios of one dictionary."""

    def __init__(self, width: int, *, most: int) -> None:
        self._most = most
        self._held: list[tuple[Tensor, Runs]] = []
        self._table = ClusterTable(sums=2, most=most)
        self._gradient_O = np.zeros(width)
        self._gradient_at_centres = 0.0
        self._curvature = 0.0
        self._curvature_O = np.zeros(width)
        self._curvature_at_centres = 0.0

    def add(self, errors_N: Tensor, chunk: TargetChunk, runs: Runs) -> None:
        """Sum tokens of a chunk with |e|^2 (N,)."""
        if chunk.is_held:
            self._held.append((errors_N, runs))
            return
        there_N = chunk.apart_N > 0
        ratios_N = torch.where(there_N, errors_N / chunk.apart_N, 0)
        self._table.add(runs, _by_run(ratios_N, there_N, runs))
        weights_N = torch.where(there_N, ratios_N / chunk.apart_N, 0)
        gradient_O = _gradient(ratios_N, chunk.apart_N, chunk.centred_NO)
        curvature = float(weights_N.cpu().double().sum())
        centre_O = chunk.centre_O
        self._gradient_O += gradient_O
        self._gradient_at_centres += float(gradient_O @ centre_O)
        self._curvature += curvature
        self._curvature_O += curvature * centre_O
        self._curvature_at_centres += curvature * float(centre_O @ centre_O)

    def result(
        self, held: Sequence[Tensor], mean_O: Floats, *, clusters: int, width: int
    ) -> LegacyRatios:
        """Return the ratios about the mean of all tokens (O,).

        Args:
            held: Targets of the tokens that were kept, chunk by chunk.
            mean_O: The mean.
            clusters: How many there are.
            width: Samples in each.
        """
        exact = ClusterTable(sums=2, most=self._most)
        gradient_O = self._gradient_O.copy()
        for t_NO, (errors_N, runs) in zip(held, self._held, strict=True):
            centred_NO = t_NO - torch.from_numpy(mean_O).to(t_NO)
            apart_N = centred_NO.square().sum(-1)
            there_N = apart_N > 0
            ratios_N = torch.where(there_N, errors_N / apart_N, 0)
            exact.add(runs, _by_run(ratios_N, there_N, runs))
            gradient_O += _gradient(ratios_N, apart_N, centred_NO)
        found_C2 = exact.first(clusters, width) + self._table.first(clusters, width)
        total, n = found_C2.sum(0)
        total = float(total) + self._correction(mean_O)
        return LegacyRatios(total, int(n), found_C2, gradient_O)

    def _correction(self, mean_O: Floats) -> float:
        first = float(self._gradient_O @ mean_O) - self._gradient_at_centres
        second = (
            self._curvature * float(mean_O @ mean_O)
            - 2 * float(self._curvature_O @ mean_O)
            + self._curvature_at_centres
        )
        return first - second


def _gradient(ratios_N: Tensor, apart_N: Tensor, centred_NO: Tensor) -> Floats:
    """2 sum |e|^2/|u|^4 u."""
    weights_N = torch.where(apart_N > 0, 2 * ratios_N / apart_N, 0)
    found_O: Floats = (weights_N @ centred_NO).cpu().double().numpy()
    return found_O


def _by_run(ratios_N: Tensor, there_N: Tensor, runs: Runs) -> Floats:
    values_2N: Floats = torch.stack([ratios_N, there_N.to(ratios_N)]).cpu().double().numpy()
    return runs.sum(values_2N)
