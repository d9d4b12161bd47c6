"""Which of several dictionaries is better, metric by metric, and by more than chance.

All were read on the same tokens and write to the same target, so what makes a text hard for one
makes it hard for the others: errors of differences are paired, see `actcli.analysis.sae_formulas`.
A metric without an error over samples (dead features, the decoder's own geometry, first letters)
is won by any difference.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from actcli.analysis.sae_formulas import ESTIMATES, ClusterSums, Estimate, error_of, estimate
from actcli.errors import UsageError
from actcli.reports.sae_eval import DictionaryReport, MetricDifference, RankedMetric
from actcli.reports.sae_glossary import METRICS, Metric, value_at

_ERRORS_OF_A_TIE = 2


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
    metrics = [metric for metric in METRICS.values() if _is_known(metric, reports)]
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


def _is_known(metric: Metric, reports: Sequence[DictionaryReport]) -> bool:
    known = (value_at(each, metric.path) is not None for each in reports)
    return metric.is_compared and any(known)


def _difference(metric: Metric, pair: tuple[Judged, Judged]) -> MetricDifference:
    values = [value_at(each.report, metric.path) for each in pair]
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
        values={each.sae.name: value_at(each, metric.path) for each in reports},
        winner=ahead[0] if ahead else None,
    )
