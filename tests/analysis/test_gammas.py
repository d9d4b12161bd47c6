"""Gammas against the existing program's printed numbers and against NumPy."""

import math

import numpy as np
import pytest

from actcli.analysis.gammas import N_BINS, natural_order, summarise_gammas
from actcli.errors import DumpError
from actcli.store.reader import in_memory, open_dump
from tests.golden import DUMPS

PREFIX = "rmsnorm_gammas/"


def golden(name):
    with open_dump(DUMPS / name) as dump:
        keys = [key for key in dump.header.tensors if key.startswith(PREFIX)]
        return summarise_gammas({key.removeprefix(PREFIX): dump.tensor(key) for key in keys})


def test_a_trained_model():
    report = golden("a_ev_mha_fp32.safetensors")
    by_name = {each.module: each for each in report.modules}
    assert (report.ones, report.total, report.all_ones) == (40, 416, False)
    assert by_name["blocks.0.mlp_norm"].ones_share == 1.0
    assert (by_name["blocks.1.mlp_norm"].ones, by_name["blocks.1.mlp_norm"].total) == (8, 32)
    final = by_name["final_ln"]
    assert (final.shape, final.dtype) == ((32,), "F32")
    assert [final.min, final.max, final.mean] == pytest.approx(
        [0.530226, 1.351191, 0.980077], abs=1e-6
    )


def test_an_untrained_model():
    report = golden("e_starved_gammas.safetensors")
    assert (report.ones, report.total, report.all_ones) == (160, 160, True)
    assert all(sum(each.histogram.counts) == 32 for each in report.modules)


def test_bf16_rounds_to_one():
    """As the existing program counts: exactly 1.0 in the stored dtype."""
    nearly = np.float32(1 + 1 / 512)
    code = np.array([0x3F80], np.uint16)  # what bf16 makes of it
    stored = {"x": in_memory("x", code, dtype="BF16"), "y": in_memory("y", np.array([nearly]))}
    report = summarise_gammas(stored)
    assert [each.ones for each in report.modules] == [1, 0]


@pytest.mark.parametrize(("tolerance", "ones"), [(0.0, 1), (0.25, 3), (0.5, 4), (9.0, 5)])
def test_the_tolerance_is_included(tolerance, ones):
    values = np.array([1.0, 0.75, 1.25, 1.5, -3.0])
    report = summarise_gammas({"x": in_memory("x", values)}, tolerance=tolerance)
    assert (report.ones, report.tolerance) == (ones, tolerance)
    assert report.all_ones == (ones == 5)


def test_numbers_of_one_norm():
    values = np.random.default_rng(0).lognormal(size=500).astype(np.float16)
    (stats,) = summarise_gammas({"x": in_memory("x", values)}).modules
    wide = values.astype(np.float64)
    assert [stats.min, stats.max, stats.mean, stats.std] == pytest.approx(
        [wide.min(), wide.max(), wide.mean(), wide.std()]
    )
    counts, edges = np.histogram(wide, N_BINS, (min(1, wide.min()), max(1, wide.max())))
    assert stats.histogram.counts == tuple(counts)
    assert stats.histogram.edges == pytest.approx(edges)


def test_nan_infinity_and_nothing():
    report = summarise_gammas(
        {
            "nan": in_memory("nan", np.array([math.nan, 1.0])),
            "inf": in_memory("inf", np.array([math.inf, 2.0])),
            "only nan": in_memory("only nan", np.array([math.nan])),
            "empty": in_memory("empty", np.empty(0)),
        }
    )
    by_name = {each.module: each for each in report.modules}
    assert (by_name["nan"].nan_count, by_name["nan"].ones, by_name["nan"].mean) == (1, 1, 1.0)
    assert (by_name["inf"].max, by_name["inf"].histogram.counts[-1]) == (math.inf, 1)
    assert by_name["only nan"].min is None
    assert (by_name["empty"].total, by_name["empty"].ones_share) == (0, 0.0)
    assert not report.all_ones
    assert not summarise_gammas({"empty": in_memory("empty", np.empty(0))}).all_ones


def test_norms_come_in_the_order_of_the_model():
    names = ["final_ln", "blocks.10.x", "blocks.2.x", "blocks.2.attn.k_norm", "norm2", "norm10", ""]
    ordered = [
        "",
        "blocks.2.attn.k_norm",
        "blocks.2.x",
        "blocks.10.x",
        "final_ln",
        "norm2",
        "norm10",
    ]
    assert sorted(names, key=natural_order) == ordered
    one = {name: in_memory(name, np.ones(1)) for name in names}
    assert [each.module for each in summarise_gammas(one).modules] == ordered


def test_integers():
    with pytest.raises(DumpError, match="'x' holds I64 values, expected"):
        summarise_gammas({"x": in_memory("x", np.ones(2, np.int64))})
