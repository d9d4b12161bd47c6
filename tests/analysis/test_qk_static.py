"""Static pairs against all offsets, heads and pairs written out, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actcli.analysis.qk_static import read_static
from actcli.errors import UsageError
from tests.analysis import slow_qk

FAMILIES = {
    "plain": {},
    "mha-bias": {"n_kv": 4, "bias": True},
    "interleaved": {"planes": "pairs"},
    "partial-scaled": {"planes": "partial", "growth": 1.3},
    "no-rotary": {"planes": None},
}


def _all(text, q, k, n_offsets):
    """S (O, A, Q, K), turning with the tables as they are."""
    tables = [each if each is None else each.numpy() for each in slow_qk.tables_of(text)]
    sides = []
    for side, factors, positions in ((text.layer.q, q, range(n_offsets)), (text.layer.k, k, [0])):
        rows_CO = factors.U_CO.double() * factors.V_HC.double().norm(dim=0)[:, None]
        if factors.sign_C is not None:
            rows_CO = rows_CO * factors.sign_C[:, None]
        rows = rows_CO.view(len(rows_CO), side.n_heads, -1).numpy()
        at = [each if each is None else each[list(positions)] for each in tables[1:]]
        copies = np.broadcast_to(rows, (len(positions), *rows.shape))
        sides.append(slow_qk.rotated(copies, tables[0], *at))
    k_CAD = sides[1][0][:, text.layer.kv_of_head_A.numpy()]
    return np.einsum("oiad,jad->oaij", sides[0], k_CAD)


@pytest.mark.parametrize("rank", ["peak", "centered", "mean-abs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_those_of_all_offsets_written_out(family, rank):
    text = slow_qk.make_text(**FAMILIES[family])
    q = slow_qk.make_factors(text.layer.q, 9, signs=True)
    k = slow_qk.make_factors(text.layer.k, 8, seed=2)
    if family == "no-rotary" and rank == "centered":
        return  # all offsets are one
    found = read_static(text, q, k, n_offsets=5, top_n=15, rank=rank)
    raw = _all(text, q, k, 5)
    mean_A, std_A = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3), ddof=1)
    z = (raw - mean_A[:, None, None]) / std_A[:, None, None]
    np.testing.assert_allclose(found.mean_A, mean_A, atol=1e-6)
    np.testing.assert_allclose(found.std_A, std_A, rtol=1e-5)
    expected = slow_qk.best(slow_qk.scores(z.transpose(1, 2, 3, 0), None, rank), 15)
    assert (found.top_pairs - 100).tolist() == expected
    for place, (i, j) in enumerate(expected):
        np.testing.assert_allclose(found.raw[:, :, place], raw[:, :, i, j], atol=3e-5)
        np.testing.assert_allclose(found.z[:, :, place], z[:, :, i, j], atol=3e-5)


def test_only_what_is_alive_takes_part_the_most_important_first():
    text = slow_qk.make_text()
    q = slow_qk.make_factors(text.layer.q, 5)
    q = replace(q, mean_ci_C=torch.tensor([0.1, 0.3, 0.001, 0.3, 0.2]))
    k = slow_qk.make_factors(text.layer.k, 8, seed=2)
    found = read_static(text, q, k, n_offsets=4, top_n=50)
    assert found.q_alive.tolist() == [101, 103, 104, 100]
    assert found.k_alive.tolist() == list(range(100, 108))
    assert len(found.top_pairs) == 4 * 8
    raw = _all(text, q, k, 4)[:, :, [1, 3, 4, 0]]
    np.testing.assert_allclose(found.mean_A, raw.mean(axis=(0, 2, 3)), atol=1e-6)
    chosen = read_static(text, q, k, n_offsets=4, pairs=[(104, 107)])
    np.testing.assert_allclose(chosen.raw[:, :, 0], raw[:, :, 2, 7], atol=3e-5)
    with pytest.raises(UsageError, match="component 102 of side q"):
        read_static(text, q, k, n_offsets=4, pairs=[(102, 107)])
    with pytest.raises(UsageError, match=r"above 0\.5; the largest is 0\.3"):
        read_static(text, q, k, n_offsets=4, alive=0.5)


def test_a_norm_changes_the_unit_and_nothing_else():
    text = slow_qk.make_text(norms=True)
    q, k = slow_qk.make_factors(text.layer.q, 9), slow_qk.make_factors(text.layer.k, 8, seed=2)
    gains = [
        each[0] / each[0].abs().mean(dim=-1, keepdim=True)
        for each in (text.q_factor_TAD, text.k_factor_TKD)
    ]
    folded = [
        replace(each, U_CO=each.U_CO * gain.reshape(-1))
        for each, gain in zip((q, k), gains, strict=True)
    ]
    plain = replace(text, q_factor_TAD=None, k_factor_TKD=None)
    one, two = read_static(text, q, k, n_offsets=4), read_static(plain, *folded, n_offsets=4)
    np.testing.assert_array_equal(one.top_pairs, two.top_pairs)
    np.testing.assert_allclose(one.z, two.z, atol=1e-5)


def test_what_static_mode_cannot_do_says_why():
    text = slow_qk.make_text()
    q, k = slow_qk.make_factors(text.layer.q, 5), slow_qk.make_factors(text.layer.k, 5)
    for sides, options, says in (
        ((None, k), {}, "side q of layer 1 is not decomposed"),
        ((q, None), {}, "side k"),
        ((q, k), {"n_offsets": 8}, "8 offsets need a text of as many tokens, and this one has 7"),
        ((q, k), {"n_offsets": 4, "rank": "attn"}, "rank attn"),
        ((q, k), {"n_offsets": 4, "rank": "pea"}, "did you mean 'peak'"),
    ):
        with pytest.raises(UsageError, match=says):
            read_static(text, *sides, **options)
