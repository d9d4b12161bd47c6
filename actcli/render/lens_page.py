"""The logit lens as one HTML page that needs nothing but a browser: no network, no build step.

The page itself is `lens_page.html`; this module writes the data into it. Numbers stand there as
little-endian float32 and int32, so what the page shows are the records, bit by bit.

Tensor legend: G layers, T positions, M metrics, k largest.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.render.lens_grid import METRICS, LensGrid, grid_of
from actcli.render.lens_tokens import escaped
from actcli.render.lens_words import STREAM_TITLES, lens_note, milestone_words, milestones_of
from actcli.render.pages import fill_page, json_in_html, numbers_in_json
from actcli.reports.lens_table import STREAMS, LensTable, place_name
from actcli.reports.logit_lens import AnswerReport, ControlReport, LogitLensReport, SampleReport

_COLOURS = "viridis"
_MAX_BYTES = 32 << 20


class LensPage(NamedTuple):
    """A page, and which samples it has."""

    html: str
    samples: tuple[int, ...]
    left_out: tuple[int, ...]
    """Samples for which there was no room."""


def lens_page(
    table: LensTable,
    report: LogitLensReport,
    *,
    text_of: Callable[[int], str],
    title: str,
    max_bytes: int = _MAX_BYTES,
) -> LensPage:
    """Write the page: samples and streams to choose, layers × positions to look at.

    Args:
        table: records of the samples to show; at each layer of a stream the same positions.
        report: what is said of model, lens and samples.
        text_of: a token's text.
        title: heading of the page, plain text.
        max_bytes: samples that would make the page longer are left out, but never the first.

    Returns:
        a whole HTML document, which says itself what was left out.
    """
    metrics = [name for name in METRICS if _has_numbers(table, name)]
    samples = np.unique(table.sample).tolist()
    described = {each.sample: each for each in report.samples}
    shown: list[str] = []
    room = max_bytes
    for sample in samples:
        text = json_in_html(_sample_data(table, sample, described.get(sample), metrics))
        room -= len(text)
        if shown and room < 0:
            break
        shown.append(text)
    kept, left_out = tuple(samples[: len(shown)]), tuple(samples[len(shown) :])
    tokens = _tokens(table.select(np.isin(table.sample, kept)), report, text_of)
    data = _page_data(report, metrics, tokens, n_left_out=len(left_out))
    page = fill_page(
        "lens_page.html",
        title=html.escape(title),
        data=json_in_html(data),
        samples=f"[{','.join(shown)}]",
    )
    return LensPage(page, kept, left_out)


def _has_numbers(table: LensTable, name: str) -> bool:
    metric = METRICS[name]
    values_R = metric.values(table)
    return bool((values_R > 0).any() if metric.is_rank else (~np.isnan(values_R)).any())


def _page_data(
    report: LogitLensReport, metrics: Iterable[str], tokens: dict[int, str], *, n_left_out: int
) -> dict[str, Any]:
    import matplotlib as mpl

    return {
        "about": _about(report),
        "note": lens_note(report.lens),
        "warnings": report.warnings,
        "leftOut": n_left_out,
        "tokens": tokens,
        "metrics": [
            {
                "name": name,
                "title": METRICS[name].title,
                "low": METRICS[name].bright_when_low,
                "most": METRICS[name].most,
                "rank": METRICS[name].is_rank,
                "marks": name == "agree",
            }
            for name in metrics
        ],
        "colours": numbers_in_json(mpl.colormaps[_COLOURS](range(256), bytes=True)[:, :3]),
    }


def _about(report: LogitLensReport) -> list[str]:
    model, lens, test = report.model, report.lens, report.self_test
    about = [
        f"{model.init} ({model.model_class}, {model.n_layers} layers, {model.dtype})",
        f"{lens.lens} lens ({lens.method})",
        f"top {report.top_k}",
        f"actcli {report.actcli_version}",
    ]
    if test is not None:
        about.insert(2, f"last layer against the model's logits: {test.largest_difference:.1e} sd")
    return about


def _sample_data(
    table: LensTable, sample: int, report: SampleReport | None, metrics: Sequence[str]
) -> dict[str, Any]:
    records = table.select(table.sample == sample)
    streams = [STREAMS[number] for number in np.unique(records.stream).tolist()]
    grids = [grid_of(records, sample=sample, stream=stream) for stream in streams]
    said = {} if report is None else _said(report)
    return {"sample": sample, **said, "streams": [_grid_data(each, metrics) for each in grids]}


def _grid_data(grid: LensGrid, metrics: Sequence[str]) -> dict[str, Any]:
    numbers_MGT = np.stack([grid.metric(name) for name in metrics])
    return {
        "stream": grid.stream,
        "title": STREAM_TITLES[grid.stream],
        "places": grid.places,
        "positions": grid.positions,
        "tokenIds": grid.token_ids,
        "targetIds": grid.target_ids,
        "k": grid.table.top_ids.shape[1],
        "numbers": numbers_in_json(numbers_MGT.astype("<f4")),
        "topIds": numbers_in_json(grid.table.top_ids.astype("<i4")),
        "topP": numbers_in_json(grid.table.top_p.astype("<f4")),
    }


def _said(report: SampleReport) -> dict[str, Any]:
    contrast = report.control.contrast if report.control else None
    return {
        "prompt": report.prompt,
        "answer": _word(report.answer),
        "contrast": _word(contrast),
        "pos": report.pos,
        "finalTop": [{"id": each.id, "p": each.p} for each in report.final_top],
        "milestones": _milestones(report),
        "control": _control(report.control),
    }


def _word(answer: AnswerReport | None) -> dict[str, Any] | None:
    return None if answer is None else {"id": answer.id, "text": escaped(answer.text)}


def _milestones(report: SampleReport) -> list[dict[str, Any]]:
    fractions = report.milestones.depth_fractions
    return [
        {
            "name": name,
            "words": milestone_words(name),
            "place": None if layer is None else place_name("resid", layer),
            "layer": layer,
            "depth": fractions.get(name),
        }
        for name, layer in milestones_of(report).items()
    ]


def _control(control: ControlReport | None) -> str | None:
    if control is None:
        return None
    place = place_name("resid", control.largest_margin_layer)
    return (
        f"p(contrast) - p(answer) is at most {control.largest_margin:+.3f}, at {place}; "
        f"{control.final_margin:+.3f} at the end"
    )


def _tokens(
    table: LensTable, report: LogitLensReport, text_of: Callable[[int], str]
) -> dict[int, str]:
    """The texts of all tokens that the page names."""
    ids: list[NDArray[Any]] = [table.top_ids.ravel(), table.token_id, table.target_id]
    ids += [np.array(_ids_said(each), dtype=np.int64) for each in report.samples]
    known = np.unique(np.concatenate(ids))
    return {token: escaped(text_of(token)) for token in known[known >= 0].tolist()}


def _ids_said(report: SampleReport) -> list[int]:
    followed = [report.answer, report.control.contrast if report.control else None]
    likely = [each.id for each in report.final_top]
    return [*likely, *(each.id for each in followed if each is not None)]
