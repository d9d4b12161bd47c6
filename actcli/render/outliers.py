"""The tables of `outliers`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table

from actcli.reports.outliers import ComparedOutliersReport, DimComparison, OutlierReport

_MOST_COMMON = 10


@dataclass(frozen=True)
class TableOptions:
    """How much the tables show."""

    topk_dims: int = 10
    """Dimensions in the table of the top dimensions."""

    one_sided_threshold: float = 0.95
    """Share of one sign from which a dimension is called one-sided."""

    max_dim_list: int = 48
    """Dimensions in the list of all that have outliers."""


def compared_tables(
    report: ComparedOutliersReport, options: TableOptions
) -> Iterable[RenderableType]:
    """All tables of both tensors, then what they share."""
    yield from outlier_tables(report.first, options)
    yield from outlier_tables(report.second, options)
    yield _comparison_table(report.comparison)
    if report.comparison.common:
        yield _common_dims_table(report.comparison)


def outlier_tables(report: OutlierReport, options: TableOptions) -> Iterable[RenderableType]:
    """Summary, dimensions, layers, tokens and magnitudes of one tensor's outliers."""
    yield _two_columns(f"Activation Outliers ({report.key})", ("Metric", "Value"), _summary(report))
    dims = report.ranked_dims()
    yield _two_columns(
        f"Outlier Dimensions ({report.key})",
        ("Metric", "Value"),
        _dimension_rows(report, dims, options),
    )
    top = dims[: options.topk_dims]
    if top:
        yield _top_dims_table(report, top, options)
    yield _layer_table(report)
    yield _first_layer_table(report)
    yield _token_table(report)
    yield _two_columns(
        f"Outlier Magnitudes ({report.key})", ("Metric", "Value"), _magnitude_rows(report)
    )


def _summary(report: OutlierReport) -> Iterable[tuple[str, str]]:
    yield "Input", report.input
    yield "Key", report.key
    yield "Threshold", f"{report.threshold:.4f}"
    fraction = report.min_layer_fraction
    if fraction is None:
        yield "Layer fraction requirement", "disabled"
    else:
        yield "Min layer fraction", f"{fraction:.2%}"
    yield "Tensor shape", str(tuple(report.shape))
    if report.layers != tuple(range(len(report.layers))):
        yield "Layers", ", ".join(map(str, report.layers))
    if report.masked_positions:
        yield "Positions masked out (padding)", f"{report.masked_positions:,}"
    yield "Elements > threshold", f"{report.element_hits:,}"
    yield from _non_finite_rows(report)
    yield "Outlier occurrences", f"{report.outlier_occurrences:,}"
    yield "Outlier occurrence rate", f"{report.outlier_occurrence_rate:.4%}"
    if report.location_outliers is not None and report.location_rate is not None:
        yield "Outlier locations", f"{report.location_outliers:,}"
        yield "Outlier location rate", f"{report.location_rate:.4%}"
        yield "Mean layer-hit fraction (outliers)", f"{report.mean_layer_hit:.2%}"
    yield from _quartile_rows(report)


def _non_finite_rows(report: OutlierReport) -> Iterable[tuple[str, str]]:
    if report.nan_count:
        yield "NaN elements (never outliers)", f"{report.nan_count:,}"
    if report.positive_infinity_count:
        yield "+infinity elements", f"{report.positive_infinity_count:,}"
    if report.negative_infinity_count:
        yield "-infinity elements", f"{report.negative_infinity_count:,}"


def _quartile_rows(report: OutlierReport) -> Iterable[tuple[str, str]]:
    if report.iqr_stats is None:
        return
    about = "" if report.iqr_exact else f", of {report.iqr_used:,} drawn"
    yield f"Q1 (25%){about}", f"{report.iqr_stats.q1:.4f}"
    yield f"Median (50%){about}", f"{report.iqr_stats.median:.4f}"
    yield f"Q3 (75%){about}", f"{report.iqr_stats.q3:.4f}"
    yield f"IQR (Q3-Q1){about}", f"{report.iqr_stats.iqr:.4f}"


def _dimension_rows(
    report: OutlierReport, dims: Sequence[int], options: TableOptions
) -> Iterable[tuple[str, str]]:
    yield "Hidden dims", f"{len(report.dim_counts):,}"
    yield "Dims with outliers", f"{len(dims):,}"
    if not dims:
        return
    top = dims[: options.topk_dims]
    share = sum(report.dim_counts[dim] for dim in top) / report.outlier_occurrences
    yield f"Top {len(top)} share", f"{share:.2%}"
    listed = dims[: options.max_dim_list]
    more = " …" if len(listed) < len(dims) else ""
    yield f"Outlier dims (first {len(listed)})", ", ".join(map(str, listed)) + more


def _top_dims_table(report: OutlierReport, dims: Sequence[int], options: TableOptions) -> Table:
    heads = ("Rank", "Dim", "Count", "% of outliers", "Pos %", "Neg %", "One-sided")
    table = _numbers_table(f"Top {len(dims)} Dimensions ({report.key})", heads)
    for rank, dim in enumerate(dims, start=1):
        count = report.dim_counts[dim]
        positive, negative = report.pos_counts[dim] / count, report.neg_counts[dim] / count
        table.add_row(
            str(rank),
            str(dim),
            f"{count:,}",
            f"{count / report.outlier_occurrences:.2%}",
            f"{positive:.2%}",
            f"{negative:.2%}",
            "yes" if max(positive, negative) >= options.one_sided_threshold else "no",
        )
    return table


def _layer_table(report: OutlierReport) -> Table:
    return _counts_table(
        f"Layer Outlier Occurrences ({report.key})",
        ("Layer", "Count", "% of outliers"),
        zip(report.layers, report.layer_counts, strict=True),
    )


def _first_layer_table(report: OutlierReport) -> Table:
    return _counts_table(
        f"First-Layer Appearance ({report.key})",
        ("Layer", "Count", "% of locations"),
        zip(report.layers, report.first_layer_counts, strict=True),
    )


def _token_table(report: OutlierReport) -> Table:
    return _counts_table(
        f"Token Position Outliers ({report.key})",
        ("Token", "Count", "% of outliers"),
        zip(report.tokens, report.token_counts, strict=True),
    )


def _counts_table(
    title: str, heads: tuple[str, str, str], counts: Iterable[tuple[int, int]]
) -> Table:
    table, rows = _numbers_table(title, heads), list(counts)
    total = sum(count for _index, count in rows)
    for index, count in rows:
        table.add_row(str(index), f"{count:,}", f"{count / total if total else 0:.2%}")
    return table


def _magnitude_rows(report: OutlierReport) -> Iterable[tuple[str, str]]:
    stats = report.outlier_mag_stats
    if not report.outlier_mag_exact:
        yield "Sample", f"{report.outlier_mag_used:,} drawn"
    yield "Min", f"{stats.min:.4f}"
    yield "Q1 (25%)", f"{stats.q1:.4f}"
    yield "Median (50%)", f"{stats.median:.4f}"
    yield "Q3 (75%)", f"{stats.q3:.4f}"
    yield "Max", f"{stats.max:.4f}"


def _comparison_table(comparison: DimComparison) -> Table:
    rows = [
        ("Key A", comparison.key_a),
        ("Key B", comparison.key_b),
        ("Dims with outliers (A)", f"{comparison.dims_a:,}"),
        ("Dims with outliers (B)", f"{comparison.dims_b:,}"),
        ("Common dims", f"{comparison.common:,}"),
        ("Jaccard (dims)", f"{comparison.jaccard:.2%}"),
    ]
    return _two_columns("Key Comparison", ("Metric", "Value"), rows)


def _common_dims_table(comparison: DimComparison) -> Table:
    table = _numbers_table("Top Common Outlier Dims (min count)", ("Rank", "Dim", "Min count"))
    for rank, each in enumerate(comparison.common_dims[:_MOST_COMMON], start=1):
        table.add_row(str(rank), str(each.dim), f"{each.min_count:,}")
    return table


def _two_columns(title: str, heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(heads[0], title=title, min_width=len(title))
    table.add_column(heads[1], justify="right")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _numbers_table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, min_width=len(title))
    for head in heads:
        table.add_column(head, justify="right")
    return table
