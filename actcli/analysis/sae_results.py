"""From the sums of a dictionary to its reports.

Tensor legend: D features, C clusters of samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.sae_clusters import Floats
from actcli.analysis.sae_formulas import ESTIMATES, OF_SPARSITY, ClusterSums, estimate
from actcli.analysis.sae_sums import ActivitySums, PrefixSums
from actcli.reports.base import Histogram
from actcli.reports.sae_metrics import (
    ActivationReport,
    DensityReport,
    PrefixReport,
    ReconstructionReport,
    SparsityReport,
    UtilizationReport,
)

_L0_BINS = 50
_DECADE = 4
"""Bins of log10 density in a factor of ten."""

_DENSEST = 20
_CONFIDENCE = 0.05


@dataclass(frozen=True)
class PassResult:
    """What one pass over the tokens says of one dictionary."""

    sparsity: SparsityReport
    reconstruction: ReconstructionReport
    utilization: UtilizationReport
    activation_stats: ActivationReport
    density: DensityReport
    prefixes: tuple[PrefixReport, ...]
    """Of a nested dictionary; without redundancy, which the tokens do not tell."""

    density_D: Floats
    """Share of the tokens on which each feature fires."""

    sums: ClusterSums
    warnings: tuple[str, ...]


def reconstruction_report(sums: ClusterSums) -> ReconstructionReport:
    """Return every measure of the errors, see `actcli.analysis.sae_formulas`."""
    found = {field: estimate(sums, field) for field in ESTIMATES}
    values: dict[str, Any] = {
        field: None if each is None else each.value
        for field, each in found.items()
        if field not in OF_SPARSITY
    }
    errors = {
        field: None if each is None else each.standard_error() for field, each in found.items()
    }
    return ReconstructionReport(**values, standard_errors=errors)


def sparsity_report(activity: ActivitySums, sums: ClusterSums) -> SparsityReport:
    """Return L0 and L1; mean, deviation and median of L0 are exact, from counts by L0."""
    counts = activity.tokens_by_l0
    n = int(counts.sum())
    found = np.flatnonzero(counts)
    mean = _mean_l0(activity)
    squares = float(counts[found] @ (found - mean) ** 2)
    lower = int(np.searchsorted(np.cumsum(counts), (n - 1) // 2, side="right"))
    return SparsityReport(
        mean_l0=mean,
        median_l0=lower,
        l0_std=(squares / (n - 1)) ** 0.5 if n > 1 else None,
        min_l0=int(found[0]),
        max_l0=int(found[-1]),
        mean_l1=float(sums.of("absolute").sum()) / n,
        l0_histogram=l0_histogram(counts),
    )


def _mean_l0(activity: ActivitySums) -> float:
    return int(activity.fired_D.sum()) / int(activity.tokens_by_l0.sum())


def l0_histogram(tokens_by_l0: NDArray[np.int64]) -> Histogram:
    """Return the tokens by L0, in at most 50 bins of the same whole width."""
    found = np.flatnonzero(tokens_by_l0)
    first, last = int(found[0]), int(found[-1])
    width = -(-(last - first + 1) // _L0_BINS)
    starts = np.arange(first, last + 1, width)
    counts = np.add.reduceat(tokens_by_l0[: last + 1], starts)
    edges = [*starts, int(starts[-1]) + width]
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)))


def utilization_report(fired_D: NDArray[np.int64], n: int, dense: float) -> UtilizationReport:
    """Return how many features fire at all, and how many nearly always.

    A feature of density p stays silent on n independent tokens with probability (1 - p)^n: at
    p = 1 - 0.05^(1/n) that is 5 %, so a feature that never fired is below it with 95 % confidence.
    """
    n_features = len(fired_D)
    dead = int((fired_D == 0).sum())
    above = [float((fired_D > share * n).mean() * 100) for share in (0.01, 0.1)]
    return UtilizationReport(
        dead_count=dead,
        dead_percentage=dead / n_features * 100,
        alive_count=n_features - dead,
        total_features=n_features,
        n_tokens=n,
        dead_density_bound=-float(np.expm1(np.log(_CONFIDENCE) / n)),
        dense_1_percentage=above[0],
        dense_10_percentage=above[1],
        n_dense=int((fired_D > dense * n).sum()),
        dense_threshold=dense,
        mean_density=float(fired_D.sum() / n / n_features),
    )


def activation_report(activity: ActivitySums) -> ActivationReport:
    """Return the largest and the mean of the activations other than 0."""
    n_active = int(activity.fired_D.sum())
    return ActivationReport(
        max_activation=activity.largest,
        mean_activation=activity.total / n_active if n_active else None,
        n_active=n_active,
    )


def density_report(fired_D: NDArray[np.int64], n: int) -> DensityReport:
    """Return how often features fire: four bins in a factor of ten, and the densest features."""
    alive = fired_D[fired_D > 0]
    lowest = int(np.floor(np.log10(1 / n) * _DECADE)) if len(alive) else -1
    edges = np.arange(min(lowest, -1), 1) / _DECADE
    counts, _edges = np.histogram(np.log10(alive / n), bins=edges)
    order = np.argsort(-fired_D, kind="stable")[:_DENSEST]
    return DensityReport(
        log10_density=Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts))),
        densest=tuple((int(each), int(fired_D[each]) / n) for each in order if fired_D[each]),
    )


def prefix_reports(
    prefixes: Sequence[int], sums: Sequence[PrefixSums], activity: ActivitySums, all_: ClusterSums
) -> tuple[PrefixReport, ...]:
    """Return what the first features alone do, for each nested part but the whole.

    Args:
        prefixes: Number of features of each part.
        sums: Of each part.
        activity: Of all features.
        all_: Sums of the full reconstruction: of its target.
    """
    n, width = all_.n, all_.means_CO.shape[1]
    variance = None if all_.is_constant else float(all_.about(all_.mean_O).sum())
    reports, done = [], 0
    for stop, part in zip(prefixes, sums, strict=True):
        fired = activity.fired_D[:stop]
        reports.append(
            PrefixReport(
                n_features=stop,
                fvu=part.errors / variance if variance else None,
                mse=part.errors / n / width,
                cosine_similarity=part.cosines / part.n_cosines if part.n_cosines else None,
                mean_l0=float(fired.sum()) / n,
                dead_count=int((fired[done:] == 0).sum()),
                n_new_features=stop - done,
                redundancy=None,
            )
        )
        done = stop
    return tuple(reports)
