"""Pairs of components as one HTML page that needs nothing but a browser: no network, no build step.

The page itself is `qk_page.html`; this module writes the data into it. Numbers stand there as
little-endian float32, so the page takes pairs out of the very logits that the model computed, with
its soft cap and sinks.

Tensor legend: A query heads, N pairs, P keys.
"""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.render.lens_tokens import escaped
from actcli.render.pages import fill_page, json_in_html, numbers_in_json, those_that_fit
from actcli.render.qk_figure import pair_looks
from actcli.render.qk_view import QkView
from actcli.reports.qk import QkReport

_MAX_BYTES = 4 << 20
_DASHES = {"-": "none"}
_PART_NAMES = {"component": "components", "delta": "delta", "bias": "bias"}


class QkPage(NamedTuple):
    """A page, and how much of what was given it shows."""

    html: str
    n_shown: int


def qk_page(
    views: Sequence[QkView],
    report: QkReport,
    *,
    title: str,
    n_more: int = 0,
    max_bytes: int = _MAX_BYTES,
) -> QkPage:
    """Write the page: layer, sample, query, head and pairs to choose, attention computed anew.

    Args:
        views: what it shows, all of one mode; at least one.
        report: what is said of the run.
        title: heading of the page, plain text.
        n_more: how many queries were read beside these.
        max_bytes: views that would make the page longer are left out, but never the first.

    Returns:
        a whole HTML document, which says itself how many were left out.
    """
    shown = those_that_fit((json_in_html(_view_data(view)) for view in views), most=max_bytes)
    n_left_out = n_more + len(views) - len(shown)
    page = fill_page(
        "qk_page.html",
        title=html.escape(title),
        data=json_in_html(_page_data(views, report, n_left_out=n_left_out)),
        views=f"[{','.join(shown)}]",
    )
    return QkPage(page, len(shown))


def _page_data(views: Sequence[QkView], report: QkReport, *, n_left_out: int) -> dict[str, Any]:
    from matplotlib.colors import to_hex

    most = max(len(view.names) for view in views)
    looks = pair_looks(max(most, 1))
    colours = list(dict.fromkeys(to_hex(each["color"]) for each in looks))
    dashes = list(dict.fromkeys(_dashes(each["linestyle"]) for each in looks))
    has_truth = all(view.pairs.ground_truth is not None for view in views)
    return {
        "about": _about(report),
        "warnings": list(report.warnings),
        "leftOut": n_left_out,
        "hasTruth": has_truth,
        "axis": "Contribution to the logit" if has_truth else "Weight-only contribution",
        "colours": colours,
        "dashes": dashes,
    }


def _dashes(style: Any) -> str:
    """A line style of matplotlib, as SVG writes it: in widths of 1.5 pixels."""
    if isinstance(style, str):
        return _DASHES[style]
    return " ".join(f"{2 * length:g}" for length in style[1])


def _about(report: QkReport) -> list[str]:
    about = [report.model, report.decomposition, f"{report.mode} mode", f"ranked by {report.rank}"]
    if report.ledger_gap is not None:
        about.append(f"ledger closes within {report.ledger_gap:.1e}")
    return [*about, f"actcli {report.actcli_version}"]


def _view_data(view: QkView) -> dict[str, Any]:
    pairs = view.pairs
    truth = pairs.sum * np.float32(0) if pairs.ground_truth is None else pairs.ground_truth
    return {
        "layer": pairs.layer,
        "sample": pairs.sample,
        "query": pairs.query,
        "queryToken": escaped(view.query_token),
        "tokens": list(map(escaped, view.tokens)),
        "positions": pairs.keys_P.tolist(),
        "names": view.names,
        "heads": view.n_heads,
        "busiest": _busiest(view),
        "inSum": view.is_of_components.astype(int).tolist(),
        "rows": [_row(view, pair) for pair in range(len(view.names))],
        "cap": pairs.softcap,
        "sinks": None if pairs.sinks_A is None else list(map(float, pairs.sinks_A)),
        "contrib": _floats(pairs.top_contrib),
        "sum": _floats(pairs.sum),
        "truth": _floats(truth),
        "visible": numbers_in_json(pairs.visible.astype(np.uint8)),
        "parts": _residual_parts(view),
    }


def _busiest(view: QkView) -> int:
    """The head to show first: whose attention a pair moves most, else with the largest peak."""
    change_ANP = view.pairs.d_attn
    if change_ANP is None:
        return int(view.pairs.peak_head[0])
    return int(np.abs(change_ANP).max(axis=(1, 2)).argmax())


def _row(view: QkView, pair: int) -> dict[str, Any]:
    pairs = view.pairs
    row: dict[str, Any] = {"peak": float(pairs.peak[pair]), "head": int(pairs.peak_head[pair])}
    if pairs.q_ci is not None and pairs.k_ci is not None:
        row["ci"] = f"{pairs.q_ci[pair]:.2f}, {pairs.k_ci[pair]:.2f}"
    return row


def _residual_parts(view: QkView) -> list[dict[str, str]]:
    """The parts of the logit beside pairs of components, those that are not zero throughout."""
    split = view.pairs.residual or {}
    return [
        {"name": part_name(name), "values": _floats(values_AP)}
        for name, values_AP in split.items()
        if name != "component:component" and values_AP.any()
    ]


def part_name(kinds: str) -> str:
    """Return words for a kind of pairs: `q delta → k components`."""
    q, k = kinds.split(":")
    return f"q {_PART_NAMES[q]} → k {_PART_NAMES[k]}"


def _floats(numbers: NDArray[np.float32]) -> str:
    return numbers_in_json(np.ascontiguousarray(numbers, dtype="<f4"))
