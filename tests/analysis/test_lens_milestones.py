"""Milestones of hand-made records, and of random ones against a slow loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.analysis.lens_milestones import (
    Thresholds,
    at_position,
    find_milestones,
    is_word,
    measure_control,
    stands_in,
)
from actcli.errors import UsageError
from actcli.reports.lens_table import LensTable
from actcli.reports.logit_lens import AnswerReport

CITY = AnswerReport(text="Paris", id=9)
TEXTS = {1: " .", 2: " capital", 3: "of", 4: "Germany", 5: "\n", 9: "Berlin", 11: "$"}


def records(top1, p1, *, p2=None, layers=None, sample=0, pos=4, **columns):
    """A table of one text: top-1 id and probability by layer; all else by column, or neutral."""
    count = len(top1)
    p2 = np.zeros(count) if p2 is None else p2
    neutral = {
        "sample": np.full(count, sample),
        "stream": np.zeros(count, np.int8),
        "layer": np.arange(count) if layers is None else np.array(layers),
        "pos": np.full(count, pos),
        "rank_target": np.full(count, 50),
        "rank_contrast": np.full(count, 50),
        "entropy_bits": np.full(count, 5.0, np.float32),
        "kl_to_final_bits": np.full(count, 5.0, np.float32),
        "top_ids": np.stack([top1, np.full(count, 77)], axis=1),
        "top_p": np.stack([p1, p2], axis=1).astype(np.float32),
    }
    others = {name: np.zeros(count, np.float32) for name in LensTable.__dataclass_fields__}
    return LensTable(
        **(others | neutral | {name: np.array(each) for name, each in columns.items()})
    )


def milestones(table, prompt=(1, 2, 3, 4), **options):
    return find_milestones(table, prompt, token_texts=TEXTS, n_layers=8, **options)


def test_a_collapse_by_hand():
    table = records(
        [2, 2, 4, 4, 9, 9],
        [0.3, 0.97, 0.99, 0.6, 0.6, 0.9],
        rank_target=[40, 10, 6, 5, 1, 1],
        entropy_bits=[6.0, 1.5, 1.0, 2.0, 1.2, 0.3],
        kl_to_final_bits=[9.0, 3.0, 1.0, 0.7, 0.5, 0.0],
    )
    found = milestones(table)
    assert found.layers == {
        "L_copy": 1,
        "L_copy_soft_1": 1,
        "L_copy_soft_2": None,
        "L_copy_soft_3": None,
        "L_copy_H": 2,
        "L_semantic": 4,
        "L_semantic_run2": 4,
        "first_rank_le_1": 4,
        "first_rank_le_5": 3,
        "first_rank_le_10": 1,
        "first_kl_below_0.5": 4,
        "first_kl_below_1.0": 2,
    }
    assert found.delta_layers == 3
    assert found.depth_fractions["L_semantic"] == 0.5
    assert found.depth_fractions["L_copy_soft_2"] is None


@pytest.mark.parametrize(
    ("top1", "p1", "p2", "wanted"),
    [
        (2, 0.96, 0.0, 0),
        (2, 0.95, 0.0, None),  # not more than the threshold
        (9, 0.99, 0.0, None),  # not in the prompt
        (1, 0.99, 0.0, None),  # punctuation
        (2, 0.99, 0.9, None),  # no margin
    ],
)
def test_a_copy_is_sure_and_a_word_of_the_prompt(top1, p1, p2, wanted):
    assert milestones(records([top1], [p1], p2=[p2])).layers["L_copy"] == wanted


def test_thresholds_are_parameters():
    table = records([2], [0.6], p2=[0.35], entropy_bits=[1.8])
    loose = Thresholds(copy_p=0.5, copy_margin=0.2, soft_p=0.55, entropy_bits=2.0)
    found = milestones(table, thresholds=loose).layers
    assert (found["L_copy"], found["L_copy_soft_1"], found["L_copy_H"]) == (0, 0, 0)
    strict = Thresholds(copy_p=0.5, copy_margin=0.3, soft_p=0.7)
    found = milestones(table, thresholds=strict).layers
    assert (found["L_copy"], found["L_copy_soft_1"], found["L_copy_H"]) == (None, None, None)


def test_a_soft_copy_is_a_window_of_layers_in_the_order_of_the_prompt():
    table = records([4, 2, 3, 4], [0.9, 0.9, 0.4, 0.6], layers=[2, 3, 4, 5])
    found = milestones(table).layers
    assert [found[f"L_copy_soft_{width}"] for width in (1, 2, 3)] == [2, 5, 5]
    backwards = milestones(records([4, 3, 2], [0.9] * 3)).layers
    assert [backwards[f"L_copy_soft_{width}"] for width in (1, 2, 3)] == [0, None, None]


def test_rank_1_once_is_not_confirmed():
    found = milestones(records([9] * 4, [0.2] * 4, rank_target=[3, 1, 2, 1])).layers
    assert found["L_semantic"] == 1
    assert found["L_semantic_run2"] is None


def test_without_a_target_there_is_no_rank():
    found = milestones(records([2] * 2, [0.99] * 2, rank_target=[0, 0]))
    assert found.layers["L_semantic"] is None
    assert found.layers["first_rank_le_10"] is None
    assert found.delta_layers is None
    assert found.layers["L_copy"] == 0


def test_with_one_recorded_token_the_rest_stands_for_the_second():
    table = records([2], [0.6], rest_mass=[0.4])
    one = table.select(slice(None))
    one = LensTable(**(one.columns | {"top_ids": one.top_ids[:, :1], "top_p": one.top_p[:, :1]}))
    at = {margin: Thresholds(copy_p=0.5, copy_margin=margin) for margin in (0.15, 0.25)}
    assert milestones(one, thresholds=at[0.15]).layers["L_copy"] == 0
    assert milestones(one, thresholds=at[0.25]).layers["L_copy"] is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(TEXTS)), st.sampled_from([0.4, 0.51, 0.96]), st.integers(0, 12)
        ),
        min_size=1,
        max_size=9,
    ),
    st.lists(st.sampled_from(sorted(TEXTS)), min_size=1, max_size=6),
)
def test_milestones_equal_a_slow_loop(layers, prompt):
    top1, p1, ranks = ([*each] for each in zip(*layers, strict=True))
    found = milestones(records(top1, p1, rank_target=ranks), prompt=prompt).layers
    prompt_text = "," + ",".join(map(str, prompt)) + ","
    held = {name: [] for name in found}
    for layer, (token, p, rank) in enumerate(layers):
        held["L_copy"] += [layer] * (token in prompt and p > 0.95 and token not in (1, 5, 11))
        for width in (1, 2, 3):
            window = top1[max(0, layer - width + 1) : layer + 1]
            inside = "," + ",".join(map(str, window)) + "," in prompt_text
            held[f"L_copy_soft_{width}"] += [layer] * (len(window) == width and p > 0.5 and inside)
        for most in (1, 5, 10):
            held[f"first_rank_le_{most}"] += [layer] * (1 <= rank <= most)
        held["L_semantic"] += [layer] * (rank == 1)
        held["L_semantic_run2"] += [layer] * (rank == 1 and ranks[layer + 1 : layer + 2] == [1])
    assert found == {name: each[0] if each else None for name, each in held.items()}


def test_the_control_follows_the_wrong_answer():
    table = records(
        [9] * 4,
        [0.2] * 4,
        p_target=[0.1, 0.2, 0.3, 0.9],
        p_contrast=[0.1, 0.6, 0.2, 0.05],
        rank_contrast=[7, 1, 2, 3],
    )
    control = measure_control(table, CITY)
    assert control.contrast == CITY
    assert control.largest_margin == pytest.approx(0.4)
    assert control.largest_margin_layer == 1
    assert control.final_margin == pytest.approx(-0.85)
    assert control.layers["L_semantic"] == 1
    assert control.layers["L_semantic_run2"] is None
    assert control.layers["first_rank_le_10"] == 0
    with pytest.raises(UsageError, match="needs an answer and a contrast"):
        measure_control(records([9], [0.2], p_target=[np.nan]), CITY)


def test_records_of_one_text_at_one_position():
    tables = [
        records([2, 3], [0.1, 0.1], layers=[1, 0], sample=5, pos=3),
        records([4, 9], [0.1, 0.1], layers=[1, 0], sample=5, pos=2),
        records([4, 4], [0.1, 0.1], sample=6, pos=9),
        records([1, 1], [0.1, 0.1], sample=5, pos=3, stream=[2, 2]),
    ]
    table = LensTable.concat(tables)
    assert at_position(table, sample=5).top1_id.tolist() == [3, 2]
    assert at_position(table, sample=5, pos=2).top1_id.tolist() == [9, 4]
    assert len(at_position(table, sample=7)) == 0


def test_contiguous_parts_and_words():
    assert stands_in([2, 3], [1, 2, 3])
    assert not stands_in([1, 3], [1, 2, 3])
    assert not stands_in([1, 2], [1])
    assert [is_word(each) for each in ("a", " Berlin", "３", "né", "東")] == [True] * 5
    assert [is_word(each) for each in ("", " ", "\n\t", ".", " …", "$", "«", "\u00a0")] == [
        False
    ] * 8
