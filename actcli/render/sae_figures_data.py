"""What plots and page of an evaluation draw: steps of histograms, points of FVU against L0.

All heights are shares per unit, so that histograms with other bins can lie over one another.
FVU is the standard one throughout, since nested parts have no other.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from actcli.reports.base import Histogram
from actcli.reports.sae_eval import DictionaryReport
from actcli.reports.sae_glossary import METRICS

L0_LABEL = "L0: active features of a token"
L0_HEIGHT = "share of tokens per unit of L0"
DENSITY_LABEL = "log10 of the share of tokens on which it fires"
DENSITY_HEIGHT = "share of features per decade"
FVU_LABEL = "FVU (standard definition)"
MEAN_L0_LABEL = METRICS["sparsity.mean_l0"].label
SIZE_LABEL = "features of the nested part"
REDUNDANCY_LABEL = METRICS["absorption.score"].label

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b5559b",
    "#8c6d1f",
    "#3fa0dd",
    "#6b6b6b",
    "#c2403d",
)
"""One a dictionary; after the last the first again."""

_MOST_STEPS = 72
_SHOWN_SHARE = 0.999


class Steps(NamedTuple):
    """A histogram: one height between an edge and the next."""

    edges: tuple[float, ...]
    heights: tuple[float, ...]


class Point(NamedTuple):
    """A dictionary, or a nested part of it."""

    l0: float
    fvu: float
    l0_error: float | None
    """Standard errors; None where there is none."""

    fvu_error: float | None


class PrefixCurve(NamedTuple):
    """One number of the nested parts, against how many features they have."""

    label: str
    sizes: tuple[int, ...]
    values: tuple[float | None, ...]


def l0_limit(dictionaries: Sequence[DictionaryReport]) -> float:
    """Return where the L0 axis ends: right of 99.9 % of each dictionary's tokens."""
    return max(_quantile_edge(each.sparsity.l0_histogram) for each in dictionaries)


def l0_steps(dictionary: DictionaryReport, *, limit: float) -> Steps:
    """Return the share of tokens per unit of L0, below a limit, in at most 72 steps."""
    histogram = dictionary.sparsity.l0_histogram
    total = sum(histogram.counts)
    edges, counts = np.array(histogram.edges), np.array(histogram.counts)
    shown = max(int(np.searchsorted(edges, limit)), 1)
    every = -(-shown // _MOST_STEPS)
    starts = np.arange(0, min(shown, len(counts)), every)
    stops = np.minimum(starts + every, len(counts))
    sums = [counts[start:stop].sum() for start, stop in zip(starts, stops, strict=True)]
    widths = edges[stops] - edges[starts]
    return _steps([*edges[starts], edges[stops[-1]]], np.array(sums) / widths / max(total, 1))


def density_steps(dictionary: DictionaryReport) -> Steps | None:
    """Return the share of all features per decade of density, empty ends cut off.

    None where no feature fired.
    """
    histogram = dictionary.density.log10_density
    edges, counts = np.array(histogram.edges), np.array(histogram.counts)
    (filled,) = counts.nonzero()
    if not len(filled):
        return None
    first, stop = filled[0], filled[-1] + 1
    heights = counts[first:stop] / np.diff(edges)[first:stop]
    total = dictionary.feature_utilization.total_features
    return _steps(edges[first : stop + 1], heights / total)


def whole_point(dictionary: DictionaryReport) -> Point | None:
    """Return the dictionary as a point; None where its FVU is not defined."""
    fvu, errors = dictionary.reconstruction.fvu, dictionary.reconstruction.standard_errors
    if fvu is None:
        return None
    l0 = dictionary.sparsity.mean_l0
    return Point(l0, fvu, errors.get("mean_l0"), errors.get("fvu"))


def prefix_points(dictionary: DictionaryReport) -> list[Point]:
    """Return its nested parts as points, those whose FVU is defined."""
    return [
        Point(each.mean_l0, each.fvu, None, None)
        for each in dictionary.prefixes
        if each.fvu is not None
    ]


def prefix_curves(dictionary: DictionaryReport) -> list[PrefixCurve]:
    """Return FVU, L0 and redundancy of the nested parts; [] where there are none."""
    parts = dictionary.prefixes
    if not parts:
        return []
    sizes = tuple(each.n_features for each in parts)
    return [
        PrefixCurve(FVU_LABEL, sizes, tuple(each.fvu for each in parts)),
        PrefixCurve(MEAN_L0_LABEL, sizes, tuple(each.mean_l0 for each in parts)),
        PrefixCurve(REDUNDANCY_LABEL, sizes, tuple(each.redundancy for each in parts)),
    ]


def _quantile_edge(histogram: Histogram) -> float:
    counts = np.array(histogram.counts)
    if not counts.sum():
        return float(histogram.edges[-1]) if histogram.edges else 1.0
    share = counts.cumsum() / counts.sum()
    return float(histogram.edges[int(np.searchsorted(share, _SHOWN_SHARE)) + 1])


def _steps(edges: Iterable[float], heights: Iterable[float]) -> Steps:
    return Steps(tuple(map(float, edges)), tuple(map(float, heights)))
