"""Activation samples as one HTML page to read features in like a book: no network, no build step.

The page itself is `feature_page.html`, with `feature_page.css` and `feature_page.js`; this module
writes the data into it.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from actcli.render.lens_tokens import escaped
from actcli.render.pages import fill_page, json_in_html, part_of_page, those_that_fit
from actcli.reports.feature_pieces import pieces_of
from actcli.reports.feature_samples import FeatureRecord, FeatureSample, SamplesSummary

_MAX_BYTES = 32 << 20
_DIGITS = 6


class FeaturePage(NamedTuple):
    """A page, and how many of the features it has."""

    html: str
    n_shown: int


def feature_page(
    records: Sequence[FeatureRecord],
    summary: SamplesSummary | None,
    *,
    title: str,
    max_bytes: int = _MAX_BYTES,
) -> FeaturePage:
    """Write the page: features to search and sort, each with its contexts, shaded by activation.

    Args:
        records: the features, the most important first.
        summary: what is said of all of them, if it is known.
        title: heading of the page, plain text.
        max_bytes: features that would make the page longer are left out, but never the first.

    Returns:
        a whole HTML document, which says itself how many were left out.
    """
    texts = (json_in_html(_feature(record)) for record in records)
    shown = those_that_fit(texts, most=max_bytes)
    data = {"about": _about(summary), "leftOut": len(records) - len(shown)}
    page = fill_page(
        "feature_page.html",
        title=html.escape(title),
        style=part_of_page("feature_page.css"),
        script=part_of_page("feature_page.js"),
        data=json_in_html(data),
        features=f"[{','.join(shown)}]",
    )
    return FeaturePage(page, len(shown))


def _about(summary: SamplesSummary | None) -> list[str]:
    if summary is None:
        return []
    about = []
    if summary.dictionary is not None:
        each = summary.dictionary
        about.append(f"{each.name} ({each.architecture}, {each.n_features:,} features)")
        about.append(f"reads {each.x}")
    if summary.source is not None:
        about.append(summary.source)
    if summary.n_tokens is not None:
        about.append(f"{summary.n_tokens:,} tokens")
    active = f"{summary.num_features_tracked:,} features"
    above = "" if summary.threshold is None else f" above {summary.threshold:g}"
    about.append(f"{summary.total_samples_seen:,} activations{above} of {active}")
    if summary.actcli_version is not None:
        about.append(f"actcli {summary.actcli_version}")
    return about


def _feature(record: FeatureRecord) -> dict[str, Any]:
    numbers = record.statistics
    histogram = numbers.histogram
    return {
        "feature": record.feature,
        "max": numbers.max_activation,
        "density": numbers.density,
        "activations": numbers.activation_count,
        "numbers": _numbers(record),
        "histogram": None
        if histogram is None
        else {"edges": list(map(_short, histogram.edges)), "counts": histogram.counts},
        "similar": [[each.feature_idx, _short(each.cosine)] for each in record.similar],
        "samples": list(map(_sample, record.top_samples)),
    }


def _numbers(record: FeatureRecord) -> list[tuple[str, str]]:
    """What is said of a feature, in words and numbers."""
    each = record.statistics
    numbers: list[tuple[str, str]] = [("largest activation", f"{each.max_activation:.5g}")]
    if each.density is not None and each.n_tokens is not None:
        numbers.append(("density", f"{each.density:.4%}"))
        numbers.append(("active tokens", f"{each.active_count or 0:,} of {each.n_tokens:,}"))
    numbers.append(("above the threshold", f"{each.activation_count:,}"))
    if each.mean_when_active is not None and each.std_when_active is not None:
        spread = f"{each.mean_when_active:.4g} ± {each.std_when_active:.4g}"
        numbers.append(("mean ± sd when active", spread))
    top = f"{each.mean_activation:.4g}"
    top += "" if each.std_activation is None else f" ± {each.std_activation:.4g}"
    numbers.append((f"mean ± sd of the top {each.num_samples}", top))
    return numbers


def _sample(sample: FeatureSample) -> dict[str, Any]:
    pieces = pieces_of(sample)
    return {
        "value": _short(sample.activation_value),
        "sample": sample.sample,
        "position": sample.position,
        "cut": (sample.context_start or 0) > 0,
        "texts": [escaped(piece.text) for piece in pieces],
        "acts": [None if each.activation is None else _short(each.activation) for each in pieces],
        "peak": next((place for place, each in enumerate(pieces) if each.is_peak), None),
    }


def _short(number: float) -> float:
    """Enough digits to read."""
    return float(f"{number:.{_DIGITS}g}")
