"""The tables of `qk-contrib`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from actcli.render.lens_tokens import brief
from actcli.render.qk_page import part_name
from actcli.reports.qk import QkPairReport, QkReadingReport, QkReport, QkSideReport, QkTableRow

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_MOST_READINGS = 4
_MOST_ROWS = 20
_MOST_HEADS = 8
_TOKEN_WIDTH = 18


def qk_tables(
    report: QkReport, *, n_readings: int, most_readings: int = _MOST_READINGS
) -> "Iterable[RenderableType]":
    """A table of pairs for each of the first queries; pairs over all queries; the ledger; files.

    Args:
        report: what is said of the run.
        n_readings: how many queries were read, over samples and layers.
        most_readings: how many queries are shown.
    """
    for reading in report.readings[:most_readings]:
        yield _pairs(report, reading)
        if reading.split_mean_abs:
            yield _residuals(reading)
    more = n_readings - min(most_readings, len(report.readings))
    if more > 0:
        yield f"...and {more:,} more {'queries' if more > 1 else 'query'}"
    if n_readings > 1:
        yield _over_queries(report, n_readings)
    for side in report.sides:
        if side.exact:
            yield _exact(side)
    yield _ledger(report)
    for path in report.files:
        yield f"Wrote {path}"


def _pairs(report: QkReport, reading: QkReadingReport) -> "Table":
    from rich.table import Table

    table = Table("#", "Pair", title=_title(report, reading))
    has_attention = any(pair.d_attn is not None for pair in reading.pairs)
    has_ci = any(pair.q_ci is not None or pair.k_ci is not None for pair in reading.pairs)
    names = ["Peak", "Head", "Centered"]
    names += ["Attention without it"] if has_attention else []
    names += ["Importance q, k"] if has_ci else []
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("At key")
    table.add_column("Visible in")
    for pair in reading.pairs[:_MOST_ROWS]:
        cells = [str(pair.place), pair_name(pair), _signed(pair.peak), str(pair.peak_head)]
        cells.append(_signed(pair.centered_peak))
        cells += [_attention(pair)] if has_attention else []
        cells += [f"{_plain(pair.q_ci)}, {_plain(pair.k_ci)}"] if has_ci else []
        table.add_row(*cells, _key(pair.peak_key, pair.peak_token), _heads(pair.visible_heads))
    return table


def pair_name(pair: QkPairReport | QkTableRow) -> str:
    """Return the pair as `q.308 → k.218`."""
    return f"q.{pair.q} → k.{pair.k}"


def _title(report: QkReport, reading: QkReadingReport) -> str:
    token = "" if reading.token is None else f" ({brief(reading.token, width=_TOKEN_WIDTH)})"
    return (
        f"{report.decomposition} · layer {reading.layer} · sample {reading.sample} · "
        f"query {reading.query}{token} · {report.mode} · by {report.rank}"
    )


def _attention(pair: QkPairReport) -> str:
    """The largest change, and where: `-31.2% H4`."""
    if pair.d_attn is None:
        return ""
    return f"{100 * pair.d_attn:+.1f}% in H{pair.d_attn_head} at {pair.d_attn_key}"


def _key(position: int, token: str | None) -> str:
    return str(position) if token is None else f"{position} {brief(token, width=_TOKEN_WIDTH)}"


def _heads(heads: Sequence[int]) -> str:
    shown = " ".join(map(str, heads[:_MOST_HEADS]))
    return f"{shown} …" if len(heads) > _MOST_HEADS else shown


def _residuals(reading: QkReadingReport) -> str:
    """What stands beside pairs of components, in mean magnitudes."""
    parts = {
        kinds: value
        for kinds, value in reading.split_mean_abs.items()
        if value > 0 and kinds != "component:component"
    }
    within = reading.split_mean_abs["component:component"]
    total = within + sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    said = [f"pairs of components {_share(within, total)}"]
    said += [f"{part_name(kinds)} {_share(value, total)}" for kinds, value in ordered]
    residual = reading.largest_residual
    rest = "" if residual is None else f"; the largest that components miss is {residual:.3g}"
    return f"Mean magnitudes: {', '.join(said)}{rest}"


def _share(value: float, total: float) -> str:
    return f"{value:.3g} ({value / total:.1%})" if total else f"{value:.3g}"


def _over_queries(report: QkReport, n_readings: int) -> "Table":
    from rich.table import Table

    title = f"Pairs over {n_readings:,} queries"
    table = Table("Layer", "Pair", title=title)
    names = ("Queries", "Mean peak", "Mean", "Largest", "One sign", "Head")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("Mean by head")
    table.add_column("Commonest key")
    for row in report.table[:_MOST_ROWS]:
        table.add_row(
            str(row.layer),
            pair_name(row),
            f"{row.count} ({row.share:.0%})",
            _signed(row.mean_peak),
            _signed(row.mean_contribution),
            _signed(row.largest_peak),
            f"{row.sign_consistency:.0%}",
            str(row.top_head),
            _means(row.head_means),
            _commonest(row),
        )
    return table


def _means(means: Sequence[float]) -> str:
    shown = " ".join(f"{mean:+.2f}" for mean in means[:_MOST_HEADS])
    return f"{shown} …" if len(means) > _MOST_HEADS else shown


def _commonest(row: QkTableRow) -> str:
    if row.peak_token_share is None:
        return ""
    name = f"#{row.peak_token_id}" if row.peak_token is None else row.peak_token
    return f"{brief(name, width=_TOKEN_WIDTH)} ({row.peak_token_share:.0%})"


def _exact(side: QkSideReport) -> str:
    return f"Layer {side.layer}: {side.module} is not decomposed; it stands as one exact component"


def _ledger(report: QkReport) -> str:
    if report.ledger_gap is None:
        return "Ledger: none, for contributions are of weights alone"
    assert report.tolerance is not None
    verdict = "adds up to" if report.ledger_gap <= report.tolerance else "DOES NOT ADD UP TO"
    return (
        f"Ledger: every part together {verdict} the model's own logits "
        f"(largest gap {report.ledger_gap:.1e}, at most {report.tolerance:.1e})"
    )


def _signed(number: float) -> str:
    return f"{number:+.3f}"


def _plain(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"
