"""Numbers of attention heads against slow loops, and the golden attention weights.

Tensor legend: as in `actcli.analysis.attention`.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.analysis.attention import check_rows_sum_to_one, measure_heads
from actcli.analysis.attention_maps import (
    attention_layers,
    read_boards,
    stored_attention,
)
from actcli.analysis.attention_recomputed import recomputed_attention
from actcli.commands.dump import DumpConfig, dump
from actcli.errors import DumpError
from actcli.models import load_model
from actcli.reports.attention import AttentionMaps
from actcli.store.reader import open_dump
from tests.golden import DATA, DUMPS, GOLDEN, MODELS


def random_maps(seed, *, has_sinks, n_boards=2, side=4):
    rng = np.random.default_rng(seed)
    cells = side * side
    weights = rng.gamma(0.3, size=(n_boards, 2, 3, cells, cells + has_sinks))
    weights[rng.random(weights.shape) < 0.3] = 0
    weights[..., 0] += 1e-3
    weights /= weights.sum(-1, keepdims=True)
    boards = rng.integers(0, 4, (n_boards, cells)).astype(np.uint8)
    return AttentionMaps(
        weights[..., :cells].astype(np.float32),
        boards,
        tuple(range(n_boards)),
        (0, 4),
        has_sinks=bool(has_sinks),
    )


def slow_numbers(maps, layer, head):
    """One query, one key at a time."""
    side, totals, count = maps.side, dict.fromkeys(NAMES, 0.0), 0
    for board, by_layer in zip(maps.boards_BT.tolist(), maps.weights_BLATS, strict=True):
        for query, weights in enumerate(by_layer[layer, head].astype(float)):
            sink = max(0.0, 1 - math.fsum(weights)) if maps.has_sinks else 0.0
            here = divmod(query, side)
            for key, weight in enumerate(weights):
                there = divmod(key, side)
                steps = abs(here[0] - there[0]) + abs(here[1] - there[1])
                totals["mean_distance"] += weight * steps / math.fsum(weights)
                totals["entropy_bits"] -= weight * math.log2(weight) if weight else 0.0
                totals["self_mass"] += weight * (key == query)
                totals["row_mass"] += weight * (key != query and here[0] == there[0])
                totals["column_mass"] += weight * (key != query and here[1] == there[1])
                totals["corner_mass"] += weight * ({*there} <= {0, side - 1})
                alike = key != query and board[key] == board[query] and board[query] > 0
                totals["equal_mass"] += weight * alike
                totals["empty_mass"] += weight * (board[key] == 0)
            totals["sink_mass"] += sink
            totals["entropy_bits"] -= sink * math.log2(sink) if sink else 0.0
            count += 1
    return {name: total / count for name, total in totals.items()}


NAMES = (
    "entropy_bits",
    "mean_distance",
    "self_mass",
    "row_mass",
    "column_mass",
    "corner_mass",
    "equal_mass",
    "empty_mass",
    "sink_mass",
)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_numbers_equal_slow_loops(seed, has_sinks):
    maps = random_maps(seed, has_sinks=has_sinks)
    report = measure_heads(maps, source="x")
    assert [(each.layer, each.head) for each in report.heads] == [
        (layer, head) for layer in (1, 5) for head in range(3)
    ]
    for place, each in enumerate(report.heads):
        found = {name: getattr(each, name) for name in NAMES}
        assert found == pytest.approx(slow_numbers(maps, place // 3, place % 3), abs=1e-5)


def test_only_the_heads_asked_for():
    report = measure_heads(random_maps(0, has_sinks=True), heads=[2], source="x")
    assert [each.head for each in report.heads] == [2, 2]


@pytest.mark.parametrize("has_sinks", [False, True])
def test_rows_that_are_no_distribution_are_refused(has_sinks):
    maps = random_maps(1, has_sinks=has_sinks)
    check_rows_sum_to_one(maps)
    for spoil in (1.2, np.nan, -1.0):
        spoiled = random_maps(1, has_sinks=has_sinks)
        spoiled.weights_BLATS[1, 0, 2, 5] *= spoil
        with pytest.raises(DumpError, match="attention weights"):
            check_rows_sum_to_one(spoiled)


def test_a_row_that_is_short_needs_a_sink():
    maps = random_maps(1, has_sinks=False)
    maps.weights_BLATS[1, 0, 2, 5] *= 0.5
    with pytest.raises(DumpError, match=r"sum to 0\.5"):
        check_rows_sum_to_one(maps)


@pytest.mark.parametrize("model", ["a_ev_mha", "b_ev_gqa", "d_sink_gqa"])
def test_recomputed_attention_equals_the_golden_weights(model):
    """What the existing program's forward pass used, sinks in its head order."""
    golden = np.load(GOLDEN / "attn" / f"{model}.npz")
    with open_dump(DUMPS / f"{model}_fp32.safetensors") as found:
        boards = read_boards(found, [0, 1])
        maps = recomputed_attention(
            found, [0, 1], boards, load_model(str(MODELS / model)), layers=[0, 1]
        )
    for layer in (0, 1):
        np.testing.assert_allclose(
            maps.weights_BLATS[:, layer], golden[f"layer{layer}/true"], rtol=0, atol=1e-6
        )
        if maps.has_sinks:
            sinks = golden[f"layer{layer}/true_sink"]
            np.testing.assert_allclose(maps.sinks_BLAT[:, layer], sinks, rtol=0, atol=1e-6)
            assert not np.allclose(sinks, golden[f"layer{layer}/upstream_sink"], atol=1e-2)
    assert maps.has_sinks == (model == "d_sink_gqa")


def dumped(path: Path, model, **options):
    dump(
        DumpConfig(
            init=str(MODELS / model),
            dataset=str(DATA / "steps_single"),
            n_samples=5,
            device="cpu",
            quiet=True,
            output=path,
            **options,
        )
    )
    return open_dump(path)


@pytest.mark.parametrize("model", ["b_ev_gqa", "d_sink_gqa"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_stored_weights_equal_recomputed_ones(model, suffix, tmp_path):
    outputs, adapter = "attn_weights,attn_norm", load_model(str(MODELS / model))
    with dumped(tmp_path / f"a{suffix}", model, outputs=outputs, layers="1,3") as found:
        assert attention_layers(found) == [1, 3]
        boards = read_boards(found, [4, 0])
        stored = stored_attention(found, [4, 0], boards, layers=[3])
        computed = recomputed_attention(found, [4, 0], boards, adapter, layers=[3])
    np.testing.assert_allclose(stored.weights_BLATS, computed.weights_BLATS, atol=1e-6)
    assert stored.has_sinks == computed.has_sinks == (model == "d_sink_gqa")


def test_half_precision_weights_are_no_sinks(tmp_path):
    with dumped(tmp_path / "a.pt", "b_ev_gqa", outputs="attn_weights", dtype="bf16") as found:
        maps = stored_attention(found, [0], read_boards(found, [0]), layers=[0, 1, 2, 3])
    assert not maps.has_sinks


def test_dumps_without_attention_are_refused(tmp_path):
    with (
        dumped(tmp_path / "a.pt", "b_ev_gqa", outputs="pooled") as found,
        pytest.raises(DumpError, match="neither 'attn_weights' nor 'attn_norm'"),
    ):
        attention_layers(found)
    with (
        dumped(tmp_path / "b.pt", "b_ev_gqa", outputs="attn_norm", positions="0") as found,
        pytest.raises(DumpError, match="dump all of them"),
    ):
        attention_layers(found)
