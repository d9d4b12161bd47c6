"""The tables of `outliers`: titles, rows and numbers as the existing program prints them."""

import io

import numpy as np
import pytest
from rich.console import Console

from actcli.analysis.outlier_statistics import Sampling
from actcli.analysis.outliers import count_outliers
from actcli.render.outliers import TableOptions, compared_tables, outlier_tables
from actcli.reports.outliers import ComparedOutliersReport, DimComparison
from actcli.store.reader import in_memory, open_dump
from tests.golden import DUMPS


def golden(key="attn_norm", **options):
    with open_dump(DUMPS / "a_ev_mha_fp32.safetensors") as dump:
        return count_outliers(dump.tensor(key), source="runs/[bold]x[/y]", **options)


def printed(tables):
    """Return each line's cells, without the frames."""
    console = Console(file=io.StringIO(), width=300, markup=False, emoji=False)
    for each in tables:
        console.print(each)
    text = console.file.getvalue()
    rows = [line.replace("┃", "│").strip("│ ").split("│") for line in text.splitlines()]
    return [" | ".join(cell.strip() for cell in cells) for cells in rows if len(cells[0]) > 0]


def test_the_numbers():
    lines = printed(outlier_tables(golden(), TableOptions()))
    for line in (
        "Activation Outliers (attn_norm)",
        "Metric | Value",
        "Input | runs/[bold]x[/y]",
        "Key | attn_norm",
        "Threshold | 6.0000",
        "Min layer fraction | 25.00%",
        "Tensor shape | (6, 6, 16, 32)",
        "Elements > threshold | 534",
        "Outlier occurrences | 469",
        "Outlier occurrence rate | 2.5445%",
        "Outlier locations | 141",
        "Outlier location rate | 4.5898%",
        "Mean layer-hit fraction (outliers) | 55.44%",
        "Q1 (25%) | -0.6661",
        "Median (50%) | 0.0449",
        "Q3 (75%) | 0.7450",
        "IQR (Q3-Q1) | 1.4111",
        "Outlier Dimensions (attn_norm)",
        "Hidden dims | 32",
        "Dims with outliers | 4",
        "Top 4 share | 100.00%",
        "Outlier dims (first 4) | 3, 17, 24, 9",
        "Top 4 Dimensions (attn_norm)",
        "Rank | Dim | Count | % of outliers | Pos % | Neg % | One-sided",
        "1 | 3 | 250 | 53.30% | 100.00% | 0.00% | yes",
        "2 | 17 | 102 | 21.75% | 9.80% | 90.20% | no",
        "Layer Outlier Occurrences (attn_norm)",
        "Layer | Count | % of outliers",
        "2 | 104 | 22.17%",
        "First-Layer Appearance (attn_norm)",
        "Layer | Count | % of locations",
        "0 | 69 | 48.94%",
        "Token Position Outliers (attn_norm)",
        "Token | Count | % of outliers",
        "15 | 42 | 8.96%",
        "Outlier Magnitudes (attn_norm)",
        "Min | 6.0002",
        "Q1 (25%) | 6.7670",
        "Max | 16.0405",
    ):
        assert line in lines, line
    assert not any(
        "NaN" in line or "infinity" in line or line.startswith("Layers") for line in lines
    )


def test_how_much_is_shown():
    options = TableOptions(topk_dims=2, one_sided_threshold=0.9, max_dim_list=3)
    lines = printed(outlier_tables(golden(), options))
    assert "Top 2 share | 75.05%" in lines
    assert "Outlier dims (first 3) | 3, 17, 24 …" in lines
    assert "2 | 17 | 102 | 21.75% | 9.80% | 90.20% | yes" in lines
    assert not any(line.startswith("3 | 24 | 61") for line in lines)


def test_without_the_layer_rule_and_of_a_sample():
    sampling = Sampling(elements=1000, outliers=20)
    report = golden(min_layer_fraction=None, sampling=sampling, layers=[1, 2])
    lines = printed(outlier_tables(report, TableOptions()))
    assert "Layer fraction requirement | disabled" in lines
    assert "Layers | 1, 2" in lines
    assert not any(line.startswith("Outlier location") for line in lines)
    assert any(line.startswith("Median (50%), of 1,000 drawn | ") for line in lines)
    assert "Sample | 20 drawn" in lines


def test_nothing_found():
    lines = printed(outlier_tables(golden(threshold=1e9), TableOptions()))
    assert "Dims with outliers | 0" in lines
    assert "0 | 0 | 0.00%" in lines
    assert not any(line.startswith("Top") for line in lines)
    report = golden(threshold=1e9, sampling=Sampling(elements=0))
    assert not any(
        line.startswith("Q3") for line in printed(outlier_tables(report, TableOptions()))[:20]
    )


def test_values_that_are_not_finite_are_shown():
    acts = np.array([np.nan, np.inf, -np.inf, -np.inf]).reshape(1, 1, 1, 4)
    lines = printed(outlier_tables(count_outliers(in_memory("x", acts)), TableOptions()))
    assert "NaN elements (never outliers) | 1" in lines
    assert "+infinity elements | 1" in lines
    assert "-infinity elements | 2" in lines


@pytest.mark.parametrize("threshold", [6.0, 1e9])
def test_comparison(threshold):
    first, second = golden(threshold=threshold), golden("mlp_input", threshold=threshold)
    report = ComparedOutliersReport(
        first=first, second=second, comparison=DimComparison.of(first, second)
    )
    lines = printed(compared_tables(report, TableOptions()))
    assert lines.count("Metric | Value") == 7
    assert "Key Comparison" in lines
    assert "Key B | mlp_input" in lines
    if threshold == 6.0:
        assert "Jaccard (dims) | 100.00%" in lines
        assert "Top Common Outlier Dims (min count)" in lines
        assert lines[-5:-1] == ["1 | 17 | 58", "2 | 3 | 51", "3 | 9 | 30", "4 | 24 | 14"]
    else:
        assert "Jaccard (dims) | 0.00%" in lines
        assert not any(line.startswith("Top Common") for line in lines)


def test_dimensions_with_equal_counts_come_in_order():
    acts = np.zeros((2, 1, 1, 6))
    acts[:, 0, 0, [4, 1, 5]] = 9.0
    acts[0, 0, 0, 2] = 9.0
    report = count_outliers(in_memory("x", acts))
    assert report.ranked_dims() == [1, 4, 5, 2]
    other = count_outliers(in_memory("y", acts[:1]))
    comparison = DimComparison.of(report, other)
    assert [each.dim for each in comparison.common_dims] == [1, 2, 4, 5]
    assert (comparison.dims_a, comparison.jaccard) == (4, 1.0)
