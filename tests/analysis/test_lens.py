"""From a batch to records: which rows, which targets, in which order; and what is averaged.

Tensor legend: as in `actcli.analysis.lens`.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.analysis.lens import Lens, LensBatch, State, read_lens
from actcli.analysis.lens_averages import LayerAverages
from actcli.analysis.lens_statistics import METRICS, LensKernel
from actcli.analysis.lens_summary import (
    check_layers,
    compare_raw_with_norm,
    judge_raw_with_norm,
)
from actcli.errors import UsageError
from actcli.models import load_model
from actcli.models.translators import Translator, Translators
from actcli.reports.lens_table import STREAMS, LensTable, place_name
from actcli.terminal.fields import IntRanges
from tests.analysis.slow_lens import slow_statistics

GOLDEN = Path(__file__).parents[1] / "data" / "logit-lens"
LENGTHS = (4, 9)
PLAIN = Lens()


@cache
def llama():
    unembedding = load_model(str(GOLDEN / "llama")).unembedding
    return unembedding, dict(np.load(GOLDEN / "llama" / "expected.npz"))


def batch_of(stored, *, layers=range(5), streams=("resid",), **more):
    """Two texts of 4 and 9 tokens, numbered 8 and 3; the other streams are the residual, turned."""
    resid = torch.from_numpy(stored["resid"])
    states = {State("resid", layer): resid[layer] for layer in layers if "resid" in streams}
    for shift, stream in enumerate(STREAMS[1:], 1):
        if stream in streams:
            states |= {State(stream, layer): resid[layer].roll(shift, -1) for layer in layers[1:]}
    return LensBatch(
        samples_B=np.array([8, 3]),
        tokens_BT=stored["input_ids"],
        lengths_B=np.array(LENGTHS),
        final_BTH=states.get(State("resid", 4), resid[4]),
        states=dict(reversed(states.items())),
        **more,
    )


def read(positions, *, lens=PLAIN, **options):
    unembedding, stored = llama()
    kernel = LensKernel(unembedding, top_k=3)
    return read_lens(
        kernel, unembedding, batch_of(stored, **options), positions=positions, lens=lens
    )


def test_all_positions_of_each_texts_own_length():
    _unembedding, stored = llama()
    table = read("all")
    keys = list(zip(table.sample, table.stream, table.layer, table.pos, strict=True))
    assert keys == [(3, 0, layer, pos) for layer in range(5) for pos in range(9)] + [
        (8, 0, layer, pos) for layer in range(5) for pos in range(4)
    ]
    for number in range(len(table)):
        text = 0 if table.sample[number] == 8 else 1
        layer, pos = table.layer[number], table.pos[number]
        assert table.token_id[number] == stored["input_ids"][text, pos]
        assert table.entropy_bits[number] == pytest.approx(
            stored["entropy_bits"][layer, text, pos], abs=1e-4
        )
        if pos == LENGTHS[text] - 1:
            assert table.target_id[number] == -1
            assert table.rank_target[number] == 0
            continue
        assert table.target_id[number] == stored["input_ids"][text, pos + 1]
        assert table.rank_target[number] == stored["rank_target"][layer, text, pos]
        assert table.p_target[number] == pytest.approx(
            stored["p_target"][layer, text, pos], abs=1e-5
        )
    assert np.array_equal(table.top1_id, table.top_ids[:, 0])


def test_the_last_position_with_answers_and_contrasts():
    _unembedding, stored = llama()
    answers, contrasts = np.array([17, -1]), np.array([-1, 40])
    table = read("last", answers_B=answers, contrasts_B=contrasts)
    assert table.pos.tolist() == [8] * 5 + [3] * 5
    assert table.target_id.tolist() == [-1] * 5 + [17] * 5
    for number, text in enumerate([1] * 5 + [0] * 5):
        logits = stored["lens_logits"][table.layer[number], text, table.pos[number]]
        final = stored["lens_logits"][4, text, table.pos[number]]
        wanted = slow_statistics(logits, final, (17, 40)[text], 3)
        kind = ("target", "contrast")[text]
        other = ("contrast", "target")[text]
        columns = table.columns
        assert columns[f"p_{kind}"][number] == pytest.approx(wanted["p_target"], abs=1e-5)
        assert columns[f"rank_{kind}"][number] == wanted["rank_target"]
        assert np.isnan(columns[f"p_{other}"][number])
        assert columns[f"rank_{other}"][number] == 0


def test_answers_apply_at_the_last_position_alone():
    _unembedding, stored = llama()
    table = read("all", answers_B=np.array([17, 18]), contrasts_B=np.array([40, 41]))
    last = table.pos == np.where(table.sample == 8, 3, 8)
    assert set(table.target_id[last]) == {17, 18}
    inner = table.select(~last)
    texts = np.where(inner.sample == 8, 0, 1)
    assert np.array_equal(inner.target_id, stored["input_ids"][texts, inner.pos + 1])
    assert np.isnan(inner.p_contrast).all()
    assert not np.isnan(table.p_contrast[last]).any()


def test_ranges_count_in_each_text():
    table = read(IntRanges.parse("-1,0-1"))
    assert table.of_stream("resid").select(table.layer == 2).pos.tolist() == [0, 1, 8, 0, 1, 3]
    with pytest.raises(UsageError, match="in sample 8, position 5 was asked for, but there are 4"):
        read(IntRanges.parse("5"))


def test_streams_and_layers():
    table = read("last", layers=range(2, 5), streams=STREAMS)
    assert table.stream[:12].tolist() == [0] * 3 + [1] * 2 + [2] * 2 + [3] * 2 + [0] * 3
    assert table.layer[:9].tolist() == [2, 3, 4, 3, 4, 3, 4, 3, 4]
    unembedding, stored = llama()
    turned = torch.from_numpy(stored["resid"])[3, 1, 8].roll(2)
    logits = torch.empty(1, 101)
    unembedding.logits_into(unembedding.normed(turned[None]), logits)
    found = table.of_stream("attn").select(slice(0, 1))
    wanted = slow_statistics(logits[0], stored["lens_logits"][4, 1, 8], 0, 3)
    assert found.kl_to_final_bits[0] == pytest.approx(wanted["kl_to_final_bits"], abs=1e-4)
    assert found.top_ids[0].tolist() == wanted["top_ids"]


def test_places_have_names():
    names = [place_name("resid", 0), place_name("resid", 1), place_name("mlp", 4)]
    assert names == ["embed", "post:0", "mlp:3"]


def test_whole_batches_are_not_copied_and_padding_does_not_matter():
    unembedding, stored = llama()
    kernel = LensKernel(unembedding, top_k=3)
    batch = batch_of(stored)
    spoiled = {state: acts.clone() for state, acts in batch.states.items()}
    for acts in spoiled.values():
        acts[0, 4:] = torch.nan
    padded = LensBatch(
        batch.samples_B, batch.tokens_BT, batch.lengths_B, spoiled[State("resid", 4)], spoiled
    )
    clean = read_lens(kernel, unembedding, batch, positions="all")
    found = read_lens(kernel, unembedding, padded, positions="all")
    for name, column in clean.columns.items():
        assert np.allclose(column, found.columns[name], atol=1e-6, equal_nan=True), name


def test_the_raw_lens_leaves_the_models_own_output_alone():
    unembedding, stored = llama()
    raw = read("last", lens=Lens(norm=False))
    logits = torch.empty(2, 101)
    for layer in range(5):
        resid = torch.from_numpy(stored["resid"])[layer, [1, 0], [8, 3]]
        unembedding.logits_into(resid, logits)
        here = raw.select(raw.layer == layer)
        for number, (text, pos) in enumerate([(1, 8), (0, 3)]):
            final = stored["lens_logits"][4, text, pos]
            wanted = slow_statistics(logits[number], final, 0, 3)
            for name in ("entropy_bits", "kl_to_final_bits", "kl_from_final_bits"):
                assert here.columns[name][number] == pytest.approx(wanted[name], abs=2e-4), name


def test_a_translator_comes_before_the_norm_at_its_layer():
    unembedding, stored = llama()
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    translators = Translators(Path("x"), "J-lens", {2: Translator(matrix)}, 4)
    table = read("last", lens=Lens(translators=translators))
    plain = read("last")
    for name in METRICS:
        same = [
            np.array_equal(
                table.select(table.layer == layer).columns[name],
                plain.select(plain.layer == layer).columns[name],
                equal_nan=True,
            )
            for layer in range(5)
        ]
        if name in ("entropy_bits", "kl_to_final_bits", "top_ids"):
            assert same == [True, True, False, True, True]
    moved = torch.from_numpy(stored["resid"])[2, 1, 8] @ matrix.T
    logits = torch.empty(1, 101)
    unembedding.logits_into(unembedding.normed(moved[None]), logits)
    wanted = slow_statistics(logits[0], stored["lens_logits"][4, 1, 8], 0, 3)
    found = table.select((table.layer == 2) & (table.sample == 3))
    assert found.entropy_bits[0] == pytest.approx(wanted["entropy_bits"], abs=1e-4)
    with pytest.raises(UsageError, match="residual stream"):
        read("last", lens=Lens(translators=translators), streams=("resid", "mlp"))


def test_tables_join_and_come_in_order():
    table = read("all")
    parts = [table.select(table.sample == 8), table.select(table.sample == 3)]
    joined = LensTable.concat(parts).ordered()
    assert len(joined) == len(table) == 65
    for name, column in table.columns.items():
        assert np.array_equal(joined.columns[name], column, equal_nan=True), name
    assert not np.array_equal(LensTable.concat(parts).sample, table.sample)


def test_means_of_layers_equal_slow_loops():
    table = read("all", streams=("resid", "mid"))
    averages = LayerAverages()
    for part in (slice(0, 7), slice(7, 50), slice(50, None)):
        averages.add(table.select(part))
    reports = averages.report()
    assert [(each.stream, each.layer) for each in reports] == [
        *(("resid", layer) for layer in range(5)),
        *(("mid", layer) for layer in range(1, 5)),
    ]
    for each in reports:
        numbers = [
            number
            for number in range(len(table))
            if STREAMS[table.stream[number]] == each.stream and table.layer[number] == each.layer
        ]
        assert each.n_records == len(numbers) == 13
        with_target = [number for number in numbers if table.target_id[number] >= 0]
        for name, used in {"entropy_bits": numbers, "nll_target_bits": with_target}.items():
            values = [float(table.columns[name][number]) for number in used]
            mean = sum(values) / len(values)
            spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            found = getattr(each, name)
            assert found.n == len(values)
            assert found.mean == pytest.approx(mean)
            assert found.standard_error == pytest.approx((spread / len(values)) ** 0.5)
        hits = [table.rank_target[number] == 1 for number in with_target]
        assert each.rank_1_share == pytest.approx(sum(hits) / len(hits))
        agree = [bool(table.top1_agree[number]) for number in numbers]
        assert each.top1_agree_share == pytest.approx(sum(agree) / 13)


def test_means_without_a_target_or_of_one_record():
    table = read("last")
    averages = LayerAverages()
    averages.add(table.select(table.sample == 3))
    report = averages.report()[0]
    assert report.nll_target_bits is None
    assert report.rank_1_share is None
    assert report.entropy_bits.standard_error is None


def test_raw_against_norm():
    unembedding, stored = llama()
    layers = check_layers(4)
    assert layers == (0, 1, 2, 3)
    assert check_layers(30) == (0, 7, 15, 22)
    states = {layer: torch.from_numpy(stored["resid"])[layer, :, 8] for layer in layers}
    kl_LB, ranks_2LB = compare_raw_with_norm(LensKernel(unembedding), states, np.array([5, 6]))
    logits = torch.empty(2, 101)
    for layer in layers:
        unembedding.logits_into(states[layer], logits)
        for text in range(2):
            norm = stored["lens_logits"][layer, text, 8]
            wanted = slow_statistics(norm, logits[text], 5 + text, 1)
            assert kl_LB[layer, text] == pytest.approx(wanted["kl_to_final_bits"], abs=1e-4)
            assert ranks_2LB[0, layer, text] == wanted["rank_target"]
            raw = slow_statistics(logits[text], norm, 5 + text, 1)
            assert ranks_2LB[1, layer, text] == raw["rank_target"]


@pytest.mark.parametrize(
    ("kl", "norm_rank", "raw_rank", "risk"),
    [
        (0.49, 1, 1, "low"),
        (0.5, 2, 2, "medium"),
        (0.99, 0, 0, "medium"),
        (1.0, 3, 2, "high"),
        (0.0, 1, 2, "high"),
        (0.0, 2, 1, "high"),
    ],
)
def test_risks(kl, norm_rank, raw_rank, risk):
    kl_LB = np.array([[0.0, 0.0], [kl / 2, kl]], np.float32)
    ranks = np.array([[[2, 2], [5, norm_rank]], [[2, 2], [5, raw_rank]]])
    check = judge_raw_with_norm((0, 3), kl_LB, ranks)
    assert check.risk == risk
    assert check.layers[1].layer == 3
    assert check.layers[1].mean_kl_bits == pytest.approx(kl * 0.75)
    assert check.layers[1].max_kl_bits == pytest.approx(kl)
    assert check.layers[1].norm_only_rank_1 == (norm_rank == 1 and raw_rank == 2)
    assert check.layers[1].raw_only_rank_1 == (norm_rank == 2 and raw_rank == 1)
