"""Which of several dictionaries is better, metric by metric, and by more than chance.

All were read on the same tokens and write to the same target, so what makes a text hard for one
makes it hard for the others: errors of differences are paired, see `actcli.analysis.sae_formulas`.
A metric without an error over samples (dead features, the decoder's own geometry, first letters)
is won by any difference.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from actcli.analysis.sae_formulas import ESTIMATES, ClusterSums, Estimate, error_of, estimate
from actcli.errors import UsageError
from actcli.reports.sae_eval import DictionaryReport, Direction, MetricDifference, RankedMetric

_ERRORS_OF_A_TIE = 2


class Metric(NamedTuple):
    """A number of a report that dictionaries are compared by."""

    path: str
    """In `DictionaryReport`."""

    label: str
    better: Direction

    def of(self, report: DictionaryReport) -> float | None:
        """Return its value; None where it is undefined, or was not measured."""
        found: Any = report
        for name in self.path.split("."):
            found = None if found is None else getattr(found, name)
        return None if found is None or not math.isfinite(found) else float(found)


METRICS = (
    Metric("reconstruction.fvu", "FVU", "lower"),
    Metric("reconstruction.explained_variance", "explained variance", "higher"),
    Metric("reconstruction.explained_variance_centered", "EV, centred error", "higher"),
    Metric("reconstruction.explained_variance_legacy", "EV, legacy", "higher"),
    Metric("reconstruction.fvu_scalar_mean", "FVU, one mean", "lower"),
    Metric("reconstruction.fvu_about_zero", "FVU about zero", "lower"),
    Metric("reconstruction.mse", "MSE", "lower"),
    Metric("reconstruction.mae", "MAE", "lower"),
    Metric("reconstruction.cosine_similarity", "cosine", "higher"),
    Metric("reconstruction.cosine_flat", "cosine, flat", "higher"),
    Metric("reconstruction.l2_ratio", "L2 ratio", "none"),
    Metric("reconstruction.relative_reconstruction_bias", "reconstruction bias", "none"),
    Metric("sparsity.mean_l0", "L0", "none"),
    Metric("sparsity.mean_l1", "L1", "none"),
    Metric("feature_utilization.dead_percentage", "dead features, %", "lower"),
    Metric("feature_utilization.dense_1_percentage", "features above 1 %, %", "none"),
    Metric("feature_utilization.dense_10_percentage", "features above 10 %, %", "none"),
    Metric("absorption.score", "decoder redundancy", "lower"),
    Metric("cosines.max_decoder_cosine.mean", "nearest decoder row, cosine", "lower"),
    Metric("cosines.encoder_decoder_cosine.mean", "encoder-decoder cosine", "none"),
    Metric("first_letter_absorption.mean_absorption_fraction", "absorption", "lower"),
    Metric("loss.ce_recovered", "CE recovered", "higher"),
    Metric("loss.kl_recovered", "KL recovered", "higher"),
)
"""Neither more nor fewer active features are better as such: fewer cost reconstruction."""


class Judged(NamedTuple):
    """A dictionary, and all that its numbers were made of."""

    report: DictionaryReport
    sums: ClusterSums
    losses: Mapping[str, Estimate] = {}
    """By field of `LossReport`, where they were measured."""

    def estimate(self, metric: Metric) -> Estimate | None:
        """Return the metric with its error over samples; None where it has none."""
        part, _dot, field = metric.path.partition(".")
        if part == "loss":
            return self.losses.get(field)
        if part in ("reconstruction", "sparsity") and field in ESTIMATES:
            return estimate(self.sums, field)
        return None


class Comparison(NamedTuple):
    """All dictionaries, metric by metric and two by two."""

    metrics: tuple[RankedMetric, ...]
    differences: tuple[MetricDifference, ...]


def compare(judged: Sequence[Judged]) -> Comparison:
    """Compare dictionaries by every metric that at least one of them has.

    Args:
        judged: Two or more, whose names differ, from the same `DictionaryPass`.

    Raises:
        UsageError: they have different targets, or were read on different tokens.
    """
    _check(judged)
    reports = [each.report for each in judged]
    metrics = [metric for metric in METRICS if any(metric.of(each) is not None for each in reports)]
    differences = [
        _difference(metric, pair) for metric in metrics for pair in combinations(judged, 2)
    ]
    ranked = [_rank(metric, reports, differences) for metric in metrics]
    return Comparison(tuple(ranked), tuple(differences))


def _check(judged: Sequence[Judged]) -> None:
    first, sums = judged[0].report, judged[0].sums
    for other, own, _losses in judged[1:]:
        pair = f"{first.sae.name} and {other.sae.name}"
        if (first.sae.y, first.sae.d_out) != (other.sae.y, other.sae.d_out):
            raise UsageError(
                f"{pair} have different targets: {first.sae.y} of width {first.sae.d_out}, and"
                f" {other.sae.y} of width {other.sae.d_out}; compare dictionaries that write the"
                " same activation"
            )
        tokens = (first.tokens.sha256, first.tokens.n_tokens)
        same = tokens == (other.tokens.sha256, other.tokens.n_tokens)
        if not same or len(own.n_C) != len(sums.n_C) or (own.n_C != sums.n_C).any():
            raise UsageError(
                f"{pair} were read on different tokens ({first.tokens.n_tokens:,} and"
                f" {other.tokens.n_tokens:,}): evaluate them in one run, with the same rules"
            )


def _difference(metric: Metric, pair: tuple[Judged, Judged]) -> MetricDifference:
    values = [metric.of(each.report) for each in pair]
    names = [each.report.sae.name for each in pair]
    difference = None if values[0] is None or values[1] is None else values[0] - values[1]
    error = None if difference is None else _paired_error(metric, pair)
    is_tie = difference is not None and (
        difference == 0 or (error is not None and abs(difference) < _ERRORS_OF_A_TIE * error)
    )
    winner = None
    if difference is not None and not is_tie and metric.better != "none":
        winner = names[0 if (difference < 0) == (metric.better == "lower") else 1]
    return MetricDifference(
        metric=metric.path,
        label=metric.label,
        better=metric.better,
        first=names[0],
        second=names[1],
        difference=difference,
        standard_error=error,
        winner=winner,
        is_tie=is_tie,
    )


def _paired_error(metric: Metric, pair: tuple[Judged, Judged]) -> float | None:
    one, other = (each.estimate(metric) for each in pair)
    if one is None or other is None:
        return None
    return error_of(one.psi_C - other.psi_C)


def _rank(
    metric: Metric, reports: Sequence[DictionaryReport], differences: Sequence[MetricDifference]
) -> RankedMetric:
    wins = [each.winner for each in differences if each.metric == metric.path]
    ahead = [each.sae.name for each in reports if wins.count(each.sae.name) == len(reports) - 1]
    return RankedMetric(
        metric=metric.path,
        label=metric.label,
        better=metric.better,
        values={each.sae.name: metric.of(each) for each in reports},
        winner=ahead[0] if ahead else None,
    )
