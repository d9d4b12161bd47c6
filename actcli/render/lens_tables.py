"""The tables of `logit-lens`."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from actcli.render.lens_grid import LensGrid, grid_of
from actcli.render.lens_tokens import brief, marked
from actcli.render.lens_words import lens_note, milestones_of
from actcli.reports.lens_table import LensTable
from actcli.reports.logit_lens import LogitLensReport, MeanReport, SampleReport, SelfTestReport

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_MOST_SAMPLES = 5
_TOKEN_WIDTH = 24
_SHORT = {
    "L_copy": "a copy of the prompt",
    "L_copy_H": "entropy ≤ 1 bit",
    "L_semantic": "answer on top",
    "first_rank_le_5": "rank ≤ 5",
    "first_rank_le_10": "rank ≤ 10",
    "first_kl_below_0.5": "KL ≤ 0.5",
    "first_kl_below_1.0": "KL ≤ 1",
}


def lens_tables(
    report: LogitLensReport,
    table: LensTable,
    *,
    text_of: Callable[[int], str],
    most_samples: int = _MOST_SAMPLES,
) -> "Iterable[RenderableType]":
    """A table for each of the first samples, at its last position; means; checks; files.

    Args:
        report: what is said of the run.
        table: records of the residual stream at the last positions, at least those of the samples
            that are shown.
        text_of: a token's text.
        most_samples: how many samples are shown.
    """
    shown = [each for each in report.samples if (table.sample == each.sample).any()]
    for sample in shown[:most_samples]:
        yield from _sample_tables(report, sample, table, text_of)
    more = report.n_samples - len(shown[:most_samples])
    if more:
        yield f"...and {more:,} more sample{'s' if more > 1 else ''}"
    if report.n_samples > 1 and report.layers:
        yield _means(report)
    yield _self_test(report.self_test)
    if report.raw_norm_check is not None:
        risk = report.raw_norm_check.risk
        yield f"Raw against norm lens: {risk} risk that what is seen is the norm's doing"
    for path in report.files:
        yield f"Wrote {path}"


def _sample_tables(
    report: LogitLensReport,
    sample: SampleReport,
    table: LensTable,
    text_of: Callable[[int], str],
) -> "Iterable[RenderableType]":
    at_end = table.select((table.sample == sample.sample) & (table.pos == sample.pos))
    for stream in report.streams:
        if len(at_end.of_stream(stream)):
            grid = grid_of(at_end, sample=sample.sample, stream=stream)
            yield _layers(grid, _title(report, sample, stream), text_of)
    yield _milestones(sample)


def _title(report: LogitLensReport, sample: SampleReport, stream: str) -> str:
    prompt = "token ids" if sample.prompt is None else brief(sample.prompt, width=72)
    parts = [f"Logit Lens, sample {sample.sample}", prompt]
    if sample.answer is not None:
        parts.append(f"answer {marked(sample.answer.text)}")
    if len(report.streams) > 1:
        parts.append(stream)
    return " · ".join([*parts, *filter(None, [lens_note(report.lens)])])


def _layers(grid: LensGrid, title: str, text_of: Callable[[int], str]) -> "Table":
    from rich.table import Table

    table = Table("Layer", "Place", "Top-1", title=title)
    has_target = bool((grid.table.rank_target > 0).any())
    answer = ("Rank of answer", "p(answer)") if has_target else ()
    for name in ("p", "Entropy (bits)", *answer, "KL to final (bits)"):
        table.add_column(name, justify="right")
    columns = [
        map(str, grid.layers),
        grid.places,
        [brief(text_of(token), width=_TOKEN_WIDTH) for token in grid.table.top1_id.tolist()],
        map(_p, grid.table.top_p[:, 0].tolist()),
        map(_bits, grid.table.entropy_bits.tolist()),
    ]
    if has_target:
        columns += [
            map(_rank, grid.table.rank_target.tolist()),
            map(_p, grid.table.p_target.tolist()),
        ]
    columns.append(map(_bits, grid.table.kl_to_final_bits.tolist()))
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _means(report: LogitLensReport) -> "Table":
    from rich.table import Table

    table = Table("Layer", "Place", title=f"Means over {report.n_records:,} records")
    numbers = ("Entropy (bits)", "KL to final (bits)", "p(target)", "Target first", "Top-1 agrees")
    for name in numbers:
        table.add_column(name, justify="right")
    for each in report.layers:
        table.add_row(
            str(each.layer),
            each.place,
            _bits(_mean(each.entropy_bits)),
            _bits(_mean(each.kl_to_final_bits)),
            _p(_mean(each.p_target)),
            "" if each.rank_1_share is None else f"{each.rank_1_share:.1%}",
            f"{each.top1_agree_share:.1%}",
        )
    return table


def _mean(report: MeanReport | None) -> float:
    return np.nan if report is None else report.mean


def _milestones(sample: SampleReport) -> str:
    layers = milestones_of(sample)
    found = [
        f"{words}: {'never' if layers[name] is None else layers[name]}"
        for name, words in _SHORT.items()
        if name in layers
    ]
    return f"First layer with {'; '.join(found)}"


def _self_test(report: SelfTestReport | None) -> str:
    if report is None:
        return "Self-test: none, for the states come from a dump"
    verdict = "agrees" if report.largest_difference <= report.tolerance else "DOES NOT AGREE"
    return (
        f"Self-test: the last layer {verdict} with the model's logits "
        f"(largest difference {report.largest_difference:.1e} standard deviations, "
        f"at most {report.tolerance:.0e})"
    )


def _p(p: float) -> str:
    if np.isnan(p):
        return ""
    return f"{p:.1e}" if 0 < p < 5e-4 else f"{p:.3f}"


def _bits(bits: float) -> str:
    return "" if np.isnan(bits) else f"{bits + 0.0:.3f}"


def _rank(rank: int) -> str:
    return f"{rank:,}" if rank > 0 else ""
