"""An evaluation of sparse dictionaries as one HTML page: no network, no build step.

The page itself is `sae_page.html`, with a style and a script of its own; this module writes the
numbers of the report into it, those that it draws and those that its tables show.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actcli.render.lens_tokens import escaped
from actcli.render.pages import fill_page, json_in_html, part_of_page
from actcli.render.records import write_file
from actcli.render.sae_figures_data import (
    COLOURS,
    DENSITY_HEIGHT,
    DENSITY_LABEL,
    FVU_LABEL,
    L0_HEIGHT,
    L0_LABEL,
    MEAN_L0_LABEL,
    SIZE_LABEL,
    density_steps,
    l0_limit,
    l0_steps,
    prefix_curves,
    prefix_points,
    whole_point,
)
from actcli.render.sae_page_words import UPSTREAM_GROUP, typeset, upstream_metrics
from actcli.reports.sae_eval import DictionaryReport, EvaluationReport, MetricDifference
from actcli.reports.sae_glossary import FVU_DEFINITIONS, GROUPS, METRICS, Metric, value_at
from actcli.reports.sae_metrics import UtilizationReport
from actcli.reports.sae_weights import CosineReport, Percentiles

_TITLE = "Evaluation of sparse dictionaries"
_PARTS_WITH_ERRORS = ("reconstruction", "sparsity")


def write_page(report: EvaluationReport, path: Path) -> None:
    """Write the page of an evaluation, of any number of dictionaries.

    Raises:
        ActcliError: the file cannot be written.
    """
    write_file(path, sae_page(report).encode())


def sae_page(report: EvaluationReport) -> str:
    """Return a whole HTML document: tables of all numbers, and what they are drawn as."""
    names = [escaped(each.sae.name) for each in report.dictionaries]
    title = f"{names[0]}: evaluation" if len(names) == 1 else _TITLE
    return fill_page(
        "sae_page.html",
        title=html.escape(title),
        style=part_of_page("sae_page.css"),
        script=part_of_page("sae_page.js"),
        charts=part_of_page("sae_page_charts.js"),
        data=json_in_html(_page_data(report)),
    )


def dead_words(found: UtilizationReport) -> str:
    """Say how many features never fired, and what that allows to say of them."""
    fired = f"{found.alive_count:,} of {found.total_features:,} features fired"
    if not found.dead_count:
        return f"{fired} on {found.n_tokens:,} tokens: none is dead."
    one = found.dead_count == 1
    never = "1 never did" if one else f"{found.dead_count:,} never did"
    bound = f"{'its' if one else 'their'} density is below {100 * found.dead_density_bound:.2g} %"
    return f"{fired}; {never} on {found.n_tokens:,} tokens: {bound}, with 95 % confidence."


def _page_data(report: EvaluationReport) -> dict[str, Any]:
    limit = l0_limit(report.dictionaries)
    not_compared = [] if report.not_compared is None else [report.not_compared]
    return {
        "about": _about(report),
        "warnings": [escaped(each) for each in (*report.warnings, *not_compared)],
        "verdict": _verdict(report),
        "tokens": _token_facts(report),
        "colours": COLOURS,
        "labels": {
            "l0": (L0_LABEL, L0_HEIGHT),
            "density": (DENSITY_LABEL, DENSITY_HEIGHT),
            "tradeOff": (MEAN_L0_LABEL, FVU_LABEL),
            "size": SIZE_LABEL,
        },
        "limit": limit,
        "groups": [*_groups(report)],
        "goesBy": _goes_by(report),
        "differences": [_difference(each) for each in report.differences],
        "dictionaries": [_dictionary(each, limit=limit) for each in report.dictionaries],
    }


def _about(report: EvaluationReport) -> list[str]:
    tokens = report.tokens
    return [
        escaped(tokens.source),
        f"{tokens.n_tokens:,} tokens of {tokens.n_samples:,} samples",
        f"{report.elapsed_s:.1f} s",
        f"actcli {report.actcli_version}",
    ]


def _token_facts(report: EvaluationReport) -> str:
    tokens = report.tokens
    excluded = f"{tokens.n_excluded:,} tokens were left out"
    rules = "; ".join(map(escaped, tokens.rules)) or "no rule"
    return f"{excluded} ({rules}). Token set {tokens.sha256[:12]}."


def _verdict(report: EvaluationReport) -> str:
    """Who is ahead of all others, and in how many metrics."""
    asked = [each for each in report.metrics if each.better != "none"]
    if not asked:
        return ""
    wins = {each.sae.name: 0 for each in report.dictionaries}
    for metric in asked:
        if metric.winner is not None:
            wins[metric.winner] += 1
    parts = [f"{escaped(name)} in {n}" for name, n in wins.items() if n]
    if not parts:
        return f"In none of {len(asked)} metrics is one ahead of all others by two standard errors."
    said = (
        f"Ahead of all others by two standard errors, of {len(asked)} metrics: {', '.join(parts)}"
    )
    n_open = len(asked) - sum(wins.values())
    return f"{said}; none in {n_open}." if n_open else f"{said}."


def _goes_by(report: EvaluationReport) -> str | None:
    """What winners in FVU go by, where it is not the row called so."""
    definition = report.dictionaries[0].reconstruction.fvu_definition
    return None if definition == "standard" else typeset(FVU_DEFINITIONS[definition].label)


def _groups(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    for name, metrics in GROUPS.items():
        rows = [_row(each, report) for each in metrics]
        known = [row for row in rows if any(value is not None for value in row["values"])]
        if known:
            yield {"name": name, "rows": known}
    if report.upstream:
        rows = [_upstream_row(each, report) for each in upstream_metrics()]
        yield {"name": UPSTREAM_GROUP, "rows": rows}


def _upstream_row(metric: Metric, report: EvaluationReport) -> dict[str, Any]:
    part, _, field = metric.path.partition(".")
    found = [report.upstream.get(each.sae.name, {}) for each in report.dictionaries]
    return {
        **_named(metric),
        "path": f"upstream.{metric.path}",
        "winner": None,
        "values": [each.get(part, {}).get(field) for each in found],
        "errors": [None] * len(found),
    }


def _row(metric: Metric, report: EvaluationReport) -> dict[str, Any]:
    ranked = next((each for each in report.metrics if each.metric == metric.path), None)
    winner = None if ranked is None else ranked.winner
    values = [value_at(each, metric.path) for each in report.dictionaries]
    errors = [_error_of(each, metric.path) for each in report.dictionaries]
    return {
        **_named(metric),
        "winner": None if winner is None else _place(report, winner),
        "values": values,
        "errors": [None if v is None else e for v, e in zip(values, errors, strict=True)],
    }


def _named(metric: Metric) -> dict[str, Any]:
    return {
        "path": metric.path,
        "label": metric.label,
        "words": typeset(metric.words),
        "better": metric.better,
        "kind": metric.kind,
    }


def _place(report: EvaluationReport, name: str) -> int:
    return [each.sae.name for each in report.dictionaries].index(name)


def _error_of(report: DictionaryReport, path: str) -> float | None:
    part, _, field = path.partition(".")
    return report.reconstruction.standard_errors.get(field) if part in _PARTS_WITH_ERRORS else None


def _difference(each: MetricDifference) -> dict[str, Any]:
    return {
        "metric": escaped(each.label),
        "first": escaped(each.first),
        "second": escaped(each.second),
        "better": each.better,
        "difference": each.difference,
        "error": each.standard_error,
        "winner": None if each.winner is None else escaped(each.winner),
        "tie": each.is_tie,
    }


def _dictionary(report: DictionaryReport, *, limit: float) -> dict[str, Any]:
    return {
        "name": escaped(report.sae.name),
        "facts": _facts(report),
        "sha256": report.sae.sha256,
        "path": escaped(report.sae.path),
        "notes": [escaped(each) for each in report.sae.notes],
        "warnings": [escaped(each) for each in report.warnings],
        "dead": dead_words(report.feature_utilization),
        "l0": l0_steps(report, limit=limit),
        "meanL0": report.sparsity.mean_l0,
        "maxL0": report.sparsity.max_l0,
        "density": density_steps(report),
        "densest": report.density.densest,
        "point": whole_point(report),
        "parts": prefix_points(report),
        "curves": prefix_curves(report),
        "prefixes": [each.model_dump() for each in report.prefixes],
        "threshold": report.absorption.threshold,
        "nPairs": report.absorption.unordered_pairs,
        "pairs": [
            [each.first, each.second, each.cosine, each.prefixes]
            for each in report.absorption.pairs
        ],
        "spreads": [*_spreads(report)],
    }


def _facts(report: DictionaryReport) -> dict[str, str]:
    sae = report.sae
    widths = f"{sae.d_in:,}" if sae.d_in == sae.d_out else f"{sae.d_in:,} → {sae.d_out:,}"
    places = sae.x if sae.x == sae.y else f"{sae.x} → {sae.y}"
    facts = {
        "format": f"{sae.format}, {sae.architecture}",
        "kind": "transcoder" if sae.kind == "transcoder" else "SAE",
        "reads → writes": places,
        "width": widths,
        "features": f"{sae.n_features:,}",
        "nested parts": ", ".join(f"{size:,}" for size in sae.prefixes) or "–",
        "stored as": sae.dtype,
    }
    return {name: escaped(each) for name, each in facts.items()}


def _spreads(report: DictionaryReport) -> Iterator[dict[str, Any]]:
    for field in CosineReport.model_fields:
        found = getattr(report.cosines, field)
        if isinstance(found, Percentiles):
            yield {"label": METRICS[f"cosines.{field}.mean"].label, **found.model_dump()}
