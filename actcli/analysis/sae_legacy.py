"""The mean over tokens of |e|^2 / X with X = |t - m|^2, whose m, the mean of all, is known last.

The first tokens of a target are kept (32 MiB: 3,640 at width 2304; all of them, where they take no
more than twice that), and their ratios are exact. For a later one X is taken to be near
A = |t - c|^2, with c the mean so far, but no less than a hundredth of the median of its chunk. Then

    1 / X = (2 - X / A) / A + (1 - X / A)^2 / X,
    X = |u|^2 - 2 u.d + |d|^2            u = t - c, d = m - c

and the first part needs only sums of |e|^2/A^2 and of |e|^2/A^2 u over all tokens, so it is exact.
The second one is small where d is; its mean is that of a sample of the later tokens, spread evenly
(another 32 MiB, see `sae_held`). What the sample leaves open is taken to be four standard errors of
that mean, and half of it, since a few tokens may hold much of it: about 1e-5 of the mean ratio for
tokens in any random order. Where it is above 1e-3 of the mean ratio (tokens whose mean moves far
after the first ones), there is no figure. Tokens at the mean itself have no ratio and are left out.

Tensor legend: N tokens of a chunk, S tokens that are kept, O target width, C clusters of samples.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_clusters import ClusterTable, Floats, Runs
from actcli.analysis.sae_held import HeldTargets
from actcli.analysis.sae_targets import TargetChunk

MOST_OPEN = 1e-3
"""Of the mean ratio: what the sample may leave open."""


class LegacyRatios(NamedTuple):
    """Their sum, and what each cluster of samples has of it."""

    total: float
    n: int
    """Tokens that have one."""

    by_cluster_C2: Floats
    """Sum and number; of tokens that were not kept about the mean so far."""

    gradient_O: Floats
    """Of the sum, by the mean."""

    open: float
    """What the sample leaves open of the sum; 0 where all are kept."""

    @property
    def is_known(self) -> bool:
        """Whether the sum is right to a thousandth of itself."""
        return self.open <= MOST_OPEN * self.total


class LegacySums:
    """The sum of the ratios of one dictionary."""

    def __init__(self, width: int, *, most: int) -> None:
        self._most = most
        self._numbers: list[NDArray[np.int64]] = []
        self._errors: list[Tensor] = []
        self._table = ClusterTable(sums=2, most=most)
        self._gradient_O = np.zeros(width)
        self._gradient_at_centres = 0.0
        self._curvature = 0.0
        self._curvature_O = np.zeros(width)
        self._curvature_at_centres = 0.0

    def add(self, errors_N: Tensor, chunk: TargetChunk, runs: Runs) -> None:
        """Sum tokens of a chunk with |e|^2 (N,)."""
        self._keep(chunk.numbers_N, errors_N, chunk.held)
        later_N = torch.from_numpy(chunk.numbers_N >= chunk.held.first).to(errors_N.device)
        if not bool(later_N.any()):
            return
        inverse_N = torch.where(later_N, _inverse(chunk.scales_N), 0)
        weights_N = errors_N * inverse_N * inverse_N
        first_N = 2 * errors_N * inverse_N - weights_N * chunk.apart_N
        self._table.add(runs, _by_run(first_N, later_N, runs))
        curvature = float(weights_N.cpu().double().sum())
        gradient_O: Floats = 2 * (weights_N @ chunk.centred_NO).cpu().double().numpy()
        centre_O = chunk.centre_O
        self._gradient_O += gradient_O
        self._gradient_at_centres += float(gradient_O @ centre_O)
        self._curvature += curvature
        self._curvature_O += curvature * centre_O
        self._curvature_at_centres += curvature * float(centre_O @ centre_O)

    def result(
        self, held: HeldTargets, mean_O: Floats, *, clusters: int, width: int
    ) -> LegacyRatios:
        """Return the ratios about the mean of all tokens (O,).

        Args:
            held: Targets of the tokens that were kept.
            mean_O: The mean.
            clusters: How many there are.
            width: Samples in each.
        """
        _numbers, errors_S = self._kept(held)
        numbers_S, samples_S, t_SO, scales_S = held.tokens()
        centred_SO = t_SO - torch.from_numpy(mean_O).to(t_SO)
        apart_S = torch.linalg.vector_norm(centred_SO, dim=-1).cpu().double().square()
        errors_S, scales_S = errors_S.cpu().double(), scales_S.cpu().double()
        ratios_S = errors_S * _inverse(apart_S)
        exact_S = held.is_complete | (numbers_S < held.first)
        chosen_S = torch.from_numpy(exact_S)
        found_C2 = _by_cluster(ratios_S, apart_S, samples_S // width, exact_S, clusters)
        gradient_O = _gradient(
            ratios_S[chosen_S], apart_S[chosen_S], centred_SO[chosen_S.to(t_SO.device)]
        )
        if held.is_complete:
            return LegacyRatios(*_total(found_C2), found_C2, gradient_O, open=0.0)
        found_C2 += self._table.first(clusters, width)
        rests_S = ratios_S * (1 - apart_S * _inverse(scales_S)).square()
        rest, error = _of_sample(rests_S[~chosen_S], held.n - held.first)
        total, n = _total(found_C2)
        total += self._correction(mean_O) + rest
        return LegacyRatios(
            total, n, found_C2, gradient_O + self._gradient_O, open=4 * error + rest / 2
        )

    def _keep(self, numbers_N: NDArray[np.int64], errors_N: Tensor, held: HeldTargets) -> None:
        kept_S = held.keeps(numbers_N).nonzero()[0]
        self._numbers.append(numbers_N[kept_S])
        self._errors.append(errors_N[torch.from_numpy(kept_S).to(errors_N.device)])
        if sum(map(len, self._numbers)) > held.count:
            numbers_S, errors_S = self._kept(held)
            self._numbers, self._errors = [numbers_S], [errors_S]

    def _kept(self, held: HeldTargets) -> tuple[NDArray[np.int64], Tensor]:
        """Drop what the target has dropped since."""
        numbers_N, errors_N = np.concatenate(self._numbers), torch.cat(self._errors)
        kept_S = held.keeps(numbers_N).nonzero()[0]
        return numbers_N[kept_S], errors_N[torch.from_numpy(kept_S).to(errors_N.device)]

    def _correction(self, mean_O: Floats) -> float:
        """What moving the centres to the mean adds to the first part."""
        first = float(self._gradient_O @ mean_O) - self._gradient_at_centres
        second = (
            self._curvature * float(mean_O @ mean_O)
            - 2 * float(self._curvature_O @ mean_O)
            + self._curvature_at_centres
        )
        return first - second


def _inverse(numbers_N: Tensor) -> Tensor:
    """1 / x, and 0 for 0."""
    return torch.where(numbers_N > 0, 1 / numbers_N, 0)


def _total(found_C2: Floats) -> tuple[float, int]:
    total, n = found_C2.sum(0)
    return float(total), int(n)


def _of_sample(rests_S: Tensor, n: int) -> tuple[float, float]:
    """Sum over n tokens, of a sample of them, and its standard error; drawn without repetition."""
    values_S = rests_S.numpy()
    count = len(values_S)
    if count < 2:
        return 0.0, np.inf
    spread = float(values_S.std(ddof=1)) * np.sqrt((1 - count / n) / count)
    return n * float(values_S.mean()), n * float(spread)


def _gradient(ratios_S: Tensor, apart_S: Tensor, centred_SO: Tensor) -> Floats:
    """2 sum |e|^2/X^2 (t - m); weights are at most 1 in float32, where others may be too large."""
    weights_S = 2 * ratios_S * _inverse(apart_S)
    largest = float(weights_S.max()) if len(weights_S) else 0.0
    shares_S = (weights_S / (largest or 1.0)).to(centred_SO)
    found_O: Floats = (shares_S @ centred_SO).cpu().double().numpy() * largest
    return found_O


def _by_cluster(
    ratios_S: Tensor,
    apart_S: Tensor,
    clusters_S: NDArray[np.int64],
    chosen_S: NDArray[np.bool_],
    clusters: int,
) -> Floats:
    """Sum and number of ratios (C, 2) of the chosen tokens."""
    there_S = chosen_S & (apart_S > 0).numpy()
    values_S = ratios_S.numpy()
    columns = [
        np.bincount(clusters_S[there_S], weights=each[there_S], minlength=clusters)
        for each in (values_S, np.ones(len(values_S)))
    ]
    return np.stack(columns, axis=1)


def _by_run(values_N: Tensor, there_N: Tensor, runs: Runs) -> Floats:
    values_2N: Floats = torch.stack([values_N, there_N.to(values_N)]).cpu().double().numpy()
    return runs.sum(values_2N)
