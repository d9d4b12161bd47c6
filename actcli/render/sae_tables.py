"""The tables of `sae-eval`: metrics with dictionaries as columns, prefixes, pairs, verdicts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actcli.render.sae_rows import Row, metric_rows
from actcli.render.sae_text import difference_line, number, suggestions, token_line
from actcli.reports.sae_eval import DictionaryReport, EvaluationReport, MetricDifference

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

_MOST_PAIRS = 5
_UNLIMITED = 10_000
_BEST = "bold green"


def sae_tables(
    report: EvaluationReport, *, files: Sequence[str] = ()
) -> "Iterable[RenderableType]":
    """What was read; the metrics; prefixes; the strongest pairs of decoder rows; differences.

    Args:
        report: what is said of the run.
        files: the names of the files that were written.
    """
    yield f"Tokens: {token_line(report.tokens)}"
    for each in report.dictionaries:
        yield _description(each)
    yield _Metrics(report)
    if report.upstream:
        yield _upstream(report)
    yield from _details(report)
    for each in report.dictionaries:
        yield from (f"{each.sae.name}: {line}" for line in suggestions(each))
    if report.not_compared is not None:
        yield f"Not compared: {report.not_compared}"
    yield from _compared(report)
    for path in files:
        yield f"Wrote {path}"


def _details(report: EvaluationReport) -> "Iterator[RenderableType]":
    for each in report.dictionaries:
        if each.prefixes:
            yield _prefixes(each)
        if each.absorption.pairs:
            yield _pairs_title(each)
            yield _pairs(each)


def _description(report: DictionaryReport) -> str:
    sae = report.sae
    return (
        f"{sae.name}: {sae.kind} of {sae.n_features:,} feature{'s' * (sae.n_features != 1)} "
        f"({sae.format}, {sae.architecture}, "
        f"{sae.dtype}), reads {sae.x} ({sae.d_in}), target {sae.y} ({sae.d_out}), {sae.path}"
    )


@dataclass(frozen=True)
class _Metrics:
    """The table of metrics; definitions stand below it where it would not fit beside them."""

    report: EvaluationReport

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RenderableType]":
        from rich.measure import Measurement

        whole = _metrics(self.report, definitions=True)
        if Measurement.get(console, options.update(width=_UNLIMITED), whole).maximum <= (
            options.max_width
        ):
            yield whole
            return
        yield _metrics(self.report, definitions=False)
        yield from _definitions(self.report)


def _definitions(report: EvaluationReport) -> "Iterator[Text]":
    from rich.text import Text

    for row in _known_rows(report):
        yield Text(f"{row.label}: {row.definition}")


def _known_rows(report: EvaluationReport) -> Iterator[Row]:
    """Those that have a value of some dictionary."""
    for row in metric_rows(report):
        if any(row.read(each) is not None for each in report.dictionaries):
            yield row


def _metrics(report: EvaluationReport, *, definitions: bool) -> "Table":
    from rich.table import Table

    table = Table("Metric", title="Metrics")
    for each in report.dictionaries:
        table.add_column(each.sae.name, justify="right")
    pair = len(report.dictionaries) == 2 and bool(report.differences)
    if pair:
        first, second = (each.sae.name for each in report.dictionaries)
        table.add_column(f"{first} - {second}", justify="right")
    if definitions:
        table.add_column("Definition")
    for row in _known_rows(report):
        cells: list[str | Text] = [_cell(row, each, report) for each in report.dictionaries]
        if pair:
            cells.append(_difference(row, report))
        table.add_row(row.label, *cells, *([row.definition] if definitions else []))
    return table


def _cell(row: Row, dictionary: DictionaryReport, report: EvaluationReport) -> "Text":
    from rich.text import Text

    text = number(row.read(dictionary)) if row.form is None else row.form(dictionary)
    ranked = next((each for each in report.metrics if each.metric == row.metric), None)
    wins = ranked is not None and ranked.winner == dictionary.sae.name
    return Text(f"{text} *", style=_BEST) if wins else Text(text)


def _difference(row: Row, report: EvaluationReport) -> str:
    found = next((each for each in report.differences if each.metric == row.metric), None)
    return "" if found is None or found.difference is None else _signed(found, row.sign)


def _signed(difference: MetricDifference, sign: int) -> str:
    assert difference.difference is not None
    error = "" if difference.standard_error is None else f" ± {difference.standard_error:.2g}"
    tie = " (tie)" if difference.is_tie and difference.better != "none" else ""
    return f"{sign * difference.difference:+.4g}{error}{tie}"


def _upstream(report: EvaluationReport) -> "Table":
    """The figures of `--compat upstream`."""
    from rich.table import Table

    table = Table("Metric", title="As the Matryoshka program computes them")
    for name in report.upstream:
        table.add_column(name, justify="right")
    first = next(iter(report.upstream.values()))
    for group, figures in first.items():
        for name in figures:
            cells = (each[group][name] for each in report.upstream.values())
            table.add_row(f"{group}.{name}", *(_as_stored(each) for each in cells))
    return table


def _as_stored(value: float | None) -> str:
    return str(value) if isinstance(value, int) else number(value)


def _prefixes(report: DictionaryReport) -> "Table":
    from rich.table import Table

    table = Table(title=f"Prefixes of {report.sae.name}: its first features alone")
    threshold = report.absorption.threshold
    for name in ("Features", "FVU (standard)", "MSE", "Cosine", "L0", "New dead"):
        table.add_column(name, justify="right")
    table.add_column(f"Pairs > {threshold:g}", justify="right")
    for each in report.prefixes:
        table.add_row(
            f"{each.n_features:,}",
            number(each.fvu),
            number(each.mse),
            number(each.cosine_similarity),
            f"{each.mean_l0:.2f}",
            f"{each.dead_count:,} of {each.n_new_features:,}",
            number(each.redundancy),
        )
    return table


def _pairs_title(report: DictionaryReport) -> "Text":
    from rich.text import Text

    absorption = report.absorption
    return Text(
        f"Strongest decoder pairs of {report.sae.name}: {absorption.unordered_pairs:,} of "
        f"{absorption.total_unordered_pairs:,} with |cosine| > {absorption.threshold:g}",
        style="italic",
    )


def _pairs(report: DictionaryReport) -> "Table":
    from rich.table import Table

    absorption, table = report.absorption, Table()
    for name in ("Feature", "Feature", "Cosine"):
        table.add_column(name, justify="right")
    nested = absorption.pairs[0].prefixes is not None
    if nested:
        table.add_column("Prefixes, from 1", justify="right")
    for each in absorption.pairs[:_MOST_PAIRS]:
        cells = [str(each.first), str(each.second), f"{each.cosine:+.4f}"]
        cells += [", ".join(str(part + 1) for part in each.prefixes or ())] if nested else []
        table.add_row(*cells)
    return table


def _compared(report: EvaluationReport) -> Iterator[str]:
    """What the stars mean, and the differences, which the table has of a pair alone."""
    names = [each.sae.name for each in report.dictionaries]
    if len(names) < 2 or not report.metrics:
        return
    yield _stars(report)
    if len(names) > 2:
        for each in report.differences:
            if each.metric == "reconstruction.fvu":
                yield f"{each.label}: {difference_line(each)}"


def _stars(report: EvaluationReport) -> str:
    """Who is ahead in how many lines of the table, where one can be."""
    shown = {row.metric for row in metric_rows(report)}
    winners = [
        each.winner for each in report.metrics if each.metric in shown and each.better != "none"
    ]
    names = [each.sae.name for each in report.dictionaries]
    counts = [(name, winners.count(name)) for name in names if name in winners]
    said = ", ".join(f"{name} in {n}" for name, n in counts) or "none"
    return (
        f"* ahead of all others, by two standard errors where there are any: {said} of "
        f"{len(winners)} metrics in which one can be better"
    )
