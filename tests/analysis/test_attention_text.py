"""Numbers of attention heads on texts against slow loops, and what of a dump they count.

Tensor legend: as in `actcli.analysis.attention_text`.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.analysis.attention import check_rows_sum_to_one
from actcli.analysis.attention_text import measure_text_heads
from actcli.analysis.attention_tokens import read_texts, stored_text_attention
from actcli.errors import DumpError
from actcli.reports.attention import TextMaps
from actcli.store.header import TensorInfo
from actcli.store.reader import open_dump
from actcli.store.writer import DumpWriter

NAMES = (
    "entropy_bits",
    "mean_distance",
    "first_mass",
    "previous_mass",
    "self_mass",
    "sink_mass",
)


def random_texts(seed, *, has_sinks=False, lengths=(5, 1, 3)):
    rng = np.random.default_rng(seed)
    weights, ids = [], []
    for length in lengths:
        drawn = rng.gamma(0.3, size=(2, 3, length, length + has_sinks))
        drawn[rng.random(drawn.shape) < 0.3] = 0
        drawn[..., 0] += 1e-3
        drawn /= drawn.sum(-1, keepdims=True)
        weights.append(drawn[..., :length].astype(np.float32))
        ids.append(rng.integers(0, 50, length).astype(np.int32))
    tokens = tuple(tuple(f"#{each}" for each in row) for row in ids)
    rows = tuple(range(len(lengths)))
    return TextMaps(tuple(weights), tuple(ids), tokens, rows, (0, 4), bool(has_sinks))


def slow_numbers(weights_of_samples, *, has_sinks):
    """Numbers of one head from its weights (T, S) of each sample: one query, one key at a time."""
    values = {name: [] for name in NAMES}
    for weights_TS in weights_of_samples:
        for query, row in enumerate(np.asarray(weights_TS, dtype=float).tolist()):
            sink = max(0.0, 1 - math.fsum(row)) if has_sinks else 0.0
            terms = [w * math.log2(w) for w in (*row, sink) if w > 0]
            values["entropy_bits"].append(-math.fsum(terms))
            moved = math.fsum(w * abs(query - key) for key, w in enumerate(row))
            values["mean_distance"].append(moved / math.fsum(row))
            values["self_mass"].append(row[query])
            values["sink_mass"].append(sink)
            if query:
                values["first_mass"].append(row[0])
                values["previous_mass"].append(row[query - 1])
    return {name: math.fsum(each) / len(each) if each else None for name, each in values.items()}


def numbers_of(head):
    return {name: getattr(head, name) for name in NAMES}


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_numbers_equal_slow_loops(seed, has_sinks):
    maps = random_texts(seed, has_sinks=has_sinks)
    report = measure_text_heads(maps, heads=[0, 2], source="x")
    places = [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert [(each.layer, each.head) for each in report.heads] == [(1, 0), (1, 2), (5, 0), (5, 2)]
    for (layer, head), each in zip(places, report.heads, strict=True):
        expected = slow_numbers(
            [weights[layer, head] for weights in maps.weights], has_sinks=has_sinks
        )
        assert numbers_of(each) == pytest.approx(expected, abs=1e-5)


def test_a_text_of_one_token_has_no_other_token_to_look_at():
    report = measure_text_heads(random_texts(0, lengths=(1,)), source="x")
    assert all(each.first_mass is each.previous_mass is None for each in report.heads)
    assert all(each.self_mass == pytest.approx(1) for each in report.heads)


def write_dump(path, maps, *, width=7, manifest=None, change=None):
    """The maps as a dump has them: padded to a width, with zeros and ids of -1."""
    n, (n_layers, n_heads) = len(maps.samples), maps.weights[0].shape[:2]
    whole = np.zeros((n, n_layers, n_heads, width, width), np.float32)
    ids, mask = np.full((n, width), -1, np.int32), np.zeros((n, width), np.uint8)
    for row, (weights, ids_T) in enumerate(zip(maps.weights, maps.token_ids, strict=True)):
        length = len(ids_T)
        whole[row, :, :, :length, :length] = weights
        ids[row, :length], mask[row, :length] = ids_T, 1
    arrays = {"attn_weights": whole, "token_ids": ids, "mask": mask}
    if change is not None:
        change(arrays)
    kinds = {np.dtype("f4"): "F32", np.dtype("i4"): "I32", np.dtype("u1"): "U8"}
    infos = {key: TensorInfo(kinds[each.dtype], each.shape) for key, each in arrays.items()}
    with DumpWriter(path, infos) as writer:
        for key, each in arrays.items():
            writer.write_rows(key, 0, memoryview(each))
        writer.commit({"manifest": json.dumps({"layers": [*maps.layers]} | (manifest or {}))})
    return path


def read(path, rows=(0, 1, 2), layers=(0, 4)):
    with open_dump(path) as found:
        return stored_text_attention(found, read_texts(found, rows), layers=layers)


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_padding_is_neither_query_nor_key(has_sinks, suffix, tmp_path):
    maps = random_texts(3, has_sinks=has_sinks)
    found = read(write_dump(tmp_path / f"a{suffix}", maps), rows=(2, 0), layers=(4,))
    check_rows_sum_to_one(found)
    assert found.has_sinks == has_sinks
    assert found.tokens == (maps.tokens[2], maps.tokens[0])
    for mine, row in zip(found.weights, (2, 0), strict=True):
        np.testing.assert_array_equal(mine, maps.weights[row][1:])
    alone = measure_text_heads(
        read(write_dump(tmp_path / f"b{suffix}", maps, width=5), (2,)), source="x"
    )
    padded = measure_text_heads(read(tmp_path / f"a{suffix}", (2,)), source="x")
    assert alone == padded


def test_the_mask_tells_where_ids_do_not(tmp_path):
    def zero_for_padding(arrays):
        np.maximum(arrays["token_ids"], 0, out=arrays["token_ids"])

    maps = random_texts(3)
    found = read(write_dump(tmp_path / "a.safetensors", maps, change=zero_for_padding))
    assert [len(each) for each in found.tokens] == [5, 1, 3]


def put(key, place, value):
    def change(arrays):
        arrays[key][place] = value

    return change


def shorten_mask(arrays):
    arrays["mask"] = np.ascontiguousarray(arrays["mask"][:, :-1])


MISFITS = {
    "padding first": (put("mask", (0, 0), 0), "padding before its end"),
    "no tokens": (put("mask", (2, slice(None)), 0), "sample 2 has no tokens"),
    "other mask": (shorten_mask, "expected the same"),
    "attends to padding": (put("attn_weights", (2, 0, 0, 1, 6), 0.4), "attend to its padding"),
    "an empty row": (put("attn_weights", (0, 1, 2, 4), 0.0), "attends to nothing"),
}


@pytest.mark.parametrize(("change", "says"), MISFITS.values(), ids=MISFITS.keys())
def test_masks_that_do_not_fit_are_refused(change, says, tmp_path):
    path = write_dump(tmp_path / "a.safetensors", random_texts(3), change=change)
    with pytest.raises(DumpError, match=says):
        read(path)


def test_a_row_that_sums_to_more_than_one_is_refused(tmp_path):
    change = put("attn_weights", (0, 1, 2, 4, 4), 1.2)
    path = write_dump(tmp_path / "a.safetensors", random_texts(3), change=change)
    with pytest.raises(DumpError, match="expected 1"):
        check_rows_sum_to_one(read(path))


@pytest.mark.parametrize("bits", [16, 13])
def test_weights_of_a_coarse_model_are_no_sinks(bits, tmp_path):
    """A bf16 or fp16 model dumped as fp32: its rows miss 1 by its own rounding."""

    def coarsen(arrays):
        codes = arrays["attn_weights"].view(np.uint32)
        codes &= np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
        if bits == 13:
            arrays["attn_weights"][:] = arrays["attn_weights"].astype(np.float16)

    maps = read(write_dump(tmp_path / "a.safetensors", random_texts(3), change=coarsen))
    assert max(float(abs(1 - each.sum(-1)).max()) for each in maps.weights) > 1e-4
    assert not maps.has_sinks
    check_rows_sum_to_one(maps)
