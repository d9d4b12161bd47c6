"""`read_pairs` against every pair at every key in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actcli.analysis import qk_search
from actcli.analysis.qk_effects import slope_of
from actcli.analysis.qk_pairs import QkAsk, QkReader, read_pairs
from actcli.analysis.qk_ranking import ranking_of
from actcli.decompositions.factors import Factors
from actcli.errors import ModelError, UsageError
from actcli.reports.qk import RANKS
from tests.analysis import slow_qk

FAMILIES = {
    "plain": {},
    "gqa-bias": {"bias": True},
    "mha": {"n_kv": 4},
    "norms": {"norms": True, "bias": True},
    "interleaved": {"planes": "pairs"},
    "partial-scaled": {"planes": "partial", "growth": 1.3, "bias": True},
    "no-rotary": {"planes": None, "bias": True},
    "window": {"window": 3},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "all": {
        "bias": True,
        "norms": True,
        "planes": "partial",
        "window": 4,
        "softcap": 5.0,
        "sinks": True,
    },
}


@pytest.fixture(params=FAMILIES)
def text(request):
    return slow_qk.make_text(**FAMILIES[request.param])


def _sides(text):
    return slow_qk.make_factors(text.layer.q, 9), slow_qk.make_factors(text.layer.k, 8, seed=2)


def _seen(text, c_AQKT, query):
    return c_AQKT[..., text.mask_TS[query].numpy()]


@pytest.mark.parametrize("query", [0, 3, 6])
def test_everything_adds_up_to_the_models_logits(text, query):
    q, k = _sides(text)
    found = read_pairs(text, q, k, query=query)
    seen = text.mask_TS[query].numpy()
    logits_AP = text.logits_ATS[:, query].numpy()[:, seen]
    c_AQKP = _seen(text, slow_qk.all_pairs(text, q, k, query), query)
    assert found.keys_P.tolist() == np.flatnonzero(seen).tolist()
    np.testing.assert_allclose(c_AQKP.sum(axis=(1, 2)), logits_AP, atol=2e-5)
    np.testing.assert_allclose(sum(found.residual.values()), logits_AP, atol=2e-5)
    np.testing.assert_array_equal(found.ground_truth, logits_AP)
    assert found.ledger_gap <= 2e-5 < found.tolerance
    kinds = {"component": slice(0, -2), "delta": slice(-2, -1), "bias": slice(-1, None)}
    for name, got_AP in found.residual.items():
        rows, columns = (kinds[each] for each in name.split(":"))
        np.testing.assert_allclose(
            got_AP, c_AQKP[:, rows, columns].sum(axis=(1, 2)), atol=2e-5, err_msg=name
        )
    np.testing.assert_array_equal(found.sum, found.residual["component:component"])


@pytest.mark.parametrize("rank", RANKS)
def test_the_strongest_pairs_are_those_of_every_pair_at_every_key(text, rank):
    q, k = _sides(text)
    found = read_pairs(text, q, k, query=5, ask=QkAsk(rank=rank, top_n=12))
    c_AQKP = _seen(text, slow_qk.all_pairs(text, q, k, 5), 5)[:, :-2, :-2]
    seen = text.mask_TS[5]
    logits_AP = text.logits_ATS[:, 5, seen].double().numpy()
    cap = text.layer.softcap
    slope_AP = None if cap is None else 1 - np.tanh(logits_AP / cap) ** 2
    attention_AP = text.attention_ATS[:, 5, seen].numpy()
    expected = slow_qk.scores(c_AQKP, attention_AP, rank, slope_AP)
    assert found.top_pairs.tolist() == slow_qk.best(expected, 12)
    np.testing.assert_allclose(found.score, [expected[i, j] for i, j in found.top_pairs], rtol=1e-5)
    for place, (i, j) in enumerate(found.top_pairs):
        c_AP = c_AQKP[:, i, j]
        np.testing.assert_allclose(found.top_contrib[:, place], c_AP, atol=2e-5)
        head, key = np.unravel_index(np.abs(c_AP).argmax(), c_AP.shape)
        assert found.peak_head[place] == head
        assert found.peak_key[place] == np.flatnonzero(seen)[key]
        assert found.peak[place] == pytest.approx(c_AP[head, key], abs=2e-5)
        centered = c_AP - c_AP.mean(axis=1, keepdims=True)
        largest = centered.flat[np.abs(centered).argmax()]
        assert found.centered_peak[place] == pytest.approx(largest, abs=2e-5)


def test_taking_a_pair_away_is_a_new_softmax(text):
    q, k = _sides(text)
    found = read_pairs(text, q, k, query=6, ask=QkAsk(top_n=5))
    c_AQKT = slow_qk.all_pairs(text, q, k, 6)
    sinks_A = None if text.layer.sinks_A is None else text.layer.sinks_A.numpy()
    mask_1T = text.mask_TS[6:7].numpy()
    for place, (i, j) in enumerate(found.top_pairs):
        left = text.logits_ATS[:, 6:7].numpy() - c_AQKT[:, i, j][:, None]
        after = slow_qk.softmax(left, mask_1T, text.layer.softcap, sinks_A)[:, 0]
        change = (after - text.attention_ATS[:, 6].numpy())[:, mask_1T[0]]
        np.testing.assert_allclose(found.d_attn[:, place], change, atol=1e-5)


def test_marginals_are_contrasts_of_each_part_with_the_whole_other_side(text):
    q, k = _sides(text)
    found = read_pairs(text, q, k, query=6)
    c_AQKP = _seen(text, slow_qk.all_pairs(text, q, k, 6), 6)
    p = text.attention_ATS[:, 6, text.mask_TS[6]].double().numpy()
    contrast = p / p.sum(axis=1, keepdims=True) - 1 / p.shape[1]
    expected = np.einsum("aijt,at->aij", c_AQKP, contrast)
    np.testing.assert_allclose(found.q_marginals, expected.sum(axis=2), atol=3e-5)
    np.testing.assert_allclose(found.k_marginals, expected.sum(axis=1), atol=3e-5)


def test_visible_pairs_reach_a_twentieth_of_the_range(text):
    q, k = _sides(text)
    found = read_pairs(text, q, k, query=6, ask=QkAsk(top_n=60))
    for head in range(len(found.sum)):
        spread = found.sum[head].max() - found.sum[head].min()
        peaks = np.abs(found.top_contrib[head]).max(axis=1)
        assert found.visible[head].tolist() == (peaks >= 0.05 * spread).tolist()
    assert 0 < found.visible.sum() < found.visible.size
    flat = read_pairs(text, q, k, query=0, ask=QkAsk(top_n=60))
    peaks = np.abs(flat.top_contrib).max(axis=2)
    assert flat.visible.tolist() == (peaks >= 0.05).tolist()


@pytest.mark.parametrize("missing", ["q", "k", "both"])
@pytest.mark.parametrize("rank", RANKS)
def test_a_side_that_is_not_decomposed_is_one_exact_component(text, missing, rank):
    q, k = _sides(text)
    q, k = (None if missing in (name, "both") else each for name, each in (("q", q), ("k", k)))
    found = read_pairs(text, q, k, query=5, ask=QkAsk(rank=rank, top_n=5))
    c_AQKP = _seen(text, slow_qk.all_pairs(text, q, k, 5), 5)
    for place, (i, j) in enumerate(found.top_pairs):
        np.testing.assert_allclose(found.top_contrib[:, place], c_AQKP[:, i, j], atol=2e-5)
    assert len(found.top_pairs) == {"q": 5, "k": 5, "both": 1}[missing]
    assert (found.q_names[0] == "exact") == (q is None)
    assert np.isnan(found.q_act).all() == (q is None)
    if q is None:
        assert np.abs(found.residual["delta:component"]).max() == 0
    contrast = found.attention / found.attention.sum(axis=1, keepdims=True)
    contrast = contrast - 1 / contrast.shape[1]
    expected = np.einsum("aijt,at->aij", c_AQKP, contrast)
    np.testing.assert_allclose(found.k_marginals, expected.sum(axis=1), atol=3e-5)


def test_chosen_pairs_may_be_of_delta_and_bias(text):
    q, k = _sides(text)
    chosen = [(3, 2), (9, 2), (3, 8), (10, 9), (0, 9), (9, 8)]
    found = read_pairs(text, q, k, query=4, ask=QkAsk(pairs=chosen))
    c_AQKP = _seen(text, slow_qk.all_pairs(text, q, k, 4), 4)
    for place, (i, j) in enumerate(chosen):
        np.testing.assert_allclose(found.top_contrib[:, place], c_AQKP[:, i, j], atol=2e-5)
    assert found.names(1) == ("delta", "102")
    assert found.names(3) == ("bias", "bias")
    acts = text.attn_input_TH.double() @ q.V_HC.double()
    assert found.q_act[0] == pytest.approx(float(acts[4, 3]), abs=1e-5)
    assert np.isnan(found.q_act[1])
    acts = text.attn_input_TH.double() @ k.V_HC.double()
    assert found.k_act[0] == pytest.approx(float(acts[found.peak_key[0], 2]), abs=1e-5)


def test_all_queries_of_a_reader_are_those_read_alone(text):
    q, k = _sides(text)
    reader = QkReader(text, q, k, sample=3)
    for query in range(7):
        alone = read_pairs(text, q, k, query=query, sample=3)
        np.testing.assert_array_equal(reader.read(query).top_contrib, alone.top_contrib)


@pytest.mark.parametrize("gauge", ["unit", "raw"])
@pytest.mark.parametrize("signs", [True, False])
def test_binary_mode_counts_what_is_important(text, gauge, signs):
    q = slow_qk.make_factors(text.layer.q, 9, signs=signs)
    k = slow_qk.make_factors(text.layer.k, 8, seed=2, signs=signs)
    generator = torch.Generator().manual_seed(5)
    ci = tuple(torch.rand(7, each, generator=generator) for each in (9, 8))
    ci[0][5, 2] = ci[1][:, 3] = 0.5  # exactly at the threshold: off
    found = read_pairs(
        text, q, k, query=5, ask=QkAsk(mode="binary", ci_threshold=0.5, gauge=gauge), ci=ci
    )
    on = [(each > 0.5).numpy() for each in ci]
    rows = [
        _gauged(factors, text, fires) if gauge == "unit" else factors.U_CO.numpy()
        for factors, fires in zip((q, k), on, strict=True)
    ]
    c_AQKP = _seen(text, slow_qk.all_pairs(text, q, k, 5, binary=(*on, *rows)), 5)
    expected = slow_qk.scores(c_AQKP, None, "peak")
    assert found.top_pairs.tolist() == slow_qk.best(expected, 20)
    for place, (i, j) in enumerate(found.top_pairs):
        np.testing.assert_allclose(found.top_contrib[:, place], c_AQKP[:, i, j], atol=3e-5)
    np.testing.assert_allclose(found.sum, c_AQKP.sum(axis=(1, 2)), atol=5e-5)
    assert found.ground_truth is found.d_attn is found.residual is found.ledger_gap is None
    assert found.q_ci[0] == ci[0][5, found.top_pairs[0, 0]]
    assert found.k_ci[0] == ci[1][found.peak_key[0], found.top_pairs[0, 1]]


def _gauged(factors, text, fires_TC):
    acts_TC = (text.attn_input_TH.double() @ factors.V_HC.double()).numpy()
    rows = []
    for c, u_O in enumerate(factors.U_CO.numpy()):
        times = fires_TC[:, c] if fires_TC[:, c].any() else slice(None)
        sign = np.sign(acts_TC[times, c].mean())
        if factors.sign_C is not None:
            sign = float(factors.sign_C[c])
        rows.append(u_O * np.linalg.norm(factors.V_HC[:, c].numpy()) * sign)
    return np.stack(rows)


def test_the_unit_gauge_is_blind_to_how_v_and_u_share_length_and_sign():
    text = slow_qk.make_text()
    q, k = _sides(text)
    ci = torch.rand(7, 9), torch.rand(7, 8)
    shares_C = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0, 0.1, -0.2, 7.0, 1.0])
    other = replace(q, V_HC=q.V_HC * shares_C, U_CO=q.U_CO / shares_C[:, None])
    for gauge, same in (("unit", True), ("raw", False)):
        ask = QkAsk(mode="binary", ci_threshold=0.3, gauge=gauge)
        one, two = (read_pairs(text, each, k, query=6, ask=ask, ci=ci) for each in (q, other))
        assert np.allclose(one.sum, two.sum, atol=1e-4) == same


# What finds the pairs, where it has to choose its way.


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equal_pairs_come_by_number_whatever_the_way(data):
    """Copies of components, zero rows and blank ones: many pairs have exactly one score."""
    seed = data.draw(st.integers(0, 1000))
    rank = data.draw(st.sampled_from(RANKS))
    planes = data.draw(st.sampled_from(["halves", "partial", None]))
    text = slow_qk.make_text(seed=seed, n_heads=2, n_kv=1, planes=planes, n_tokens=5)
    q, k = (
        _with_copies(factors, data.draw(st.lists(st.integers(-1, 5), min_size=1, max_size=12)))
        for factors in _sides(text)
    )
    n, first = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([1, 4, 256]))
    all_pairs = data.draw(st.sampled_from([0, 4096]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qk_search, "_FIRST", first)
        patch.setattr(qk_search, "_ALL_PAIRS", all_pairs)
        patch.setattr(qk_search, "_HELD", 64)
        found = read_pairs(text, q, k, query=4, ask=QkAsk(rank=rank, top_n=n))
    c_AQKP = slow_qk.all_pairs(text, q, k, 4)[:, :-2, :-2]
    expected = slow_qk.scores(c_AQKP, text.attention_ATS[:, 4].numpy(), rank)
    tied = _grouped(expected)
    assert found.top_pairs.tolist() == slow_qk.best(tied, n)


def _with_copies(factors, numbers):
    """Component -1 is zero."""
    V_HC = torch.cat([factors.V_HC[:, :6], torch.zeros(len(factors.V_HC), 1)], dim=1)[:, numbers]
    U_CO = torch.cat([factors.U_CO[:6], torch.zeros(1, factors.U_CO.shape[1])])[numbers]
    return Factors(V_HC, U_CO, tuple(range(len(numbers))))


def _grouped(scores_QK):
    """Scores of copies differ by rounding: give those closer than 1e-6 the same."""
    flat = scores_QK.ravel()
    order = np.argsort(flat)
    steps = np.diff(flat[order]) > 1e-6 * np.abs(flat).max(initial=1e-30)
    groups = np.concatenate([[0], np.cumsum(steps)])
    out = np.empty(len(flat))
    out[order] = groups
    return out.reshape(scores_QK.shape)


@pytest.mark.parametrize("rank", RANKS)
def test_bounds_and_stream_find_the_same_of_many_pairs(rank):
    text = slow_qk.make_text(n_tokens=12, hidden=24, width=8, softcap=20.0, norms=True)
    spread = torch.exp(2 * torch.randn(120, generator=torch.Generator().manual_seed(3)))
    q = slow_qk.make_factors(text.layer.q, 120)
    q = replace(q, U_CO=q.U_CO * spread[:, None])
    k = slow_qk.make_factors(text.layer.k, 110, seed=2)
    k = replace(k, U_CO=k.U_CO * spread[:110, None])
    ask = QkAsk(rank=rank)
    by_bound = read_pairs(text, q, k, query=11, ask=ask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qk_search, "_ALL_PAIRS", 0)
        patch.setattr(qk_search, "_FIRST", 10**6)
        by_stream = read_pairs(text, q, k, query=11, ask=ask)
    assert (by_bound.method, by_stream.method) == ("bound", "stream")
    np.testing.assert_array_equal(by_bound.top_pairs, by_stream.top_pairs)
    c_AQKP = slow_qk.all_pairs(text, q, k, 11)[:, :-2, :-2]
    cap = text.layer.softcap
    slope_AP = 1 - np.tanh(text.logits_ATS[:, 11].double().numpy() / cap) ** 2
    expected = slow_qk.scores(c_AQKP, text.attention_ATS[:, 11].numpy(), rank, slope_AP)
    assert by_bound.top_pairs.tolist() == slow_qk.best(expected, 20)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("query", [1, 6])
def test_no_score_is_above_its_bound(text, rank, query):
    reading = QkReader(text, *_sides(text)).reading(query)
    slope_AP = slope_of(reading.logits_AP, text.layer.softcap)
    ranking = ranking_of(rank, reading.attention_AP, slope_AP=slope_AP)
    bounds, slack = qk_search._bounds(reading.grid, ranking)
    everything = torch.arange(reading.grid.n_pairs)
    scores = qk_search.scores_of(reading.grid, ranking, everything)
    assert (scores <= bounds + slack).all()
    if not reading.grid.rotation.n_planes and rank == "peak":
        torch.testing.assert_close(scores, bounds)  # nothing turns: nothing is given away
    rough = qk_search.stream(reading.grid, ranking, torch.arange(9)).view(-1)
    torch.testing.assert_close(rough, scores, atol=1e-5, rtol=1e-5)


def test_a_bound_is_reached_where_both_turn_alike():
    """Two vectors along one plane, and a key at the query: the bound is the score."""
    text = slow_qk.make_text(n_heads=1, n_kv=1, width=6, growth=1.5)
    u_O = torch.tensor([1.0, 0, 0, 2.0, 0, 0])
    q, k = (Factors(torch.randn(10, 1), u_O[None], (0,)) for _ in range(2))
    grid = QkReader(text, q, replace(k, V_HC=k.V_HC * 0 + 1)).reading(0).grid
    bounds, _slack = qk_search._bounds(grid, ranking_of("peak", torch.ones(1, 1)))
    scores = qk_search.scores_of(grid, ranking_of("peak", torch.ones(1, 1)), torch.tensor([0]))
    torch.testing.assert_close(scores, bounds)


# What cannot be asked.


@pytest.mark.parametrize(
    ("ask", "query", "says"),
    [
        (QkAsk(), 7, "query position 7 is not in the text of 7 tokens"),
        (QkAsk(), -1, "query position -1"),
        (QkAsk(rank="paek"), 2, "did you mean 'peak'"),
        (QkAsk(mode="static"), 2, "weighted or binary"),
        (QkAsk(gauge="rwa"), 2, "did you mean 'raw'"),
        (QkAsk(top_n=0), 2, "at least 1"),
        (QkAsk(pairs=[(0, 99)]), 2, "there is no pair 0:99"),
        (QkAsk(mode="binary"), 2, "no"),
    ],
)
def test_what_cannot_be_asked_says_why(ask, query, says):
    text = slow_qk.make_text()
    with pytest.raises(UsageError, match=says):
        read_pairs(text, *_sides(text), query=query, ask=ask)


def test_binary_mode_wants_components_and_a_text_free_rank():
    text = slow_qk.make_text()
    q, k = _sides(text)
    ci = torch.rand(7, 9), torch.rand(7, 8)
    with pytest.raises(UsageError, match="side k of layer 1 is not decomposed"):
        read_pairs(text, q, None, query=2, ask=QkAsk(mode="binary"), ci=ci)
    with pytest.raises(UsageError, match="rank attn"):
        read_pairs(text, q, k, query=2, ask=QkAsk(mode="binary", rank="attn"), ci=ci)


def test_parts_that_miss_the_models_logits_are_an_error():
    text = slow_qk.make_text()
    other = replace(text, logits_ATS=text.logits_ATS + 0.01)
    with pytest.raises(ModelError, match=r"miss them by 0\.01"):
        read_pairs(other, *_sides(text), query=6)
    broken = replace(text, attn_input_TH=text.attn_input_TH * torch.nan)
    with pytest.raises(ModelError, match="miss them by nan"):
        read_pairs(broken, *_sides(text), query=6, ask=QkAsk(pairs=[(0, 0)]))
