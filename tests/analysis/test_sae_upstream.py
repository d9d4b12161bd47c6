"""The Matryoshka program's numbers: its own outputs, and a slow version with loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.analysis.sae_upstream import (
    UpstreamPass,
    upstream_absorption,
    upstream_comparison,
)
from actcli.errors import DumpError
from actcli.saes.activations import Threshold
from actcli.saes.dictionary import Dictionary, Origin
from actcli.saes.normalisations import Standardised

DATA = Path(__file__).parents[1] / "data" / "sae-eval"
CASES = {
    "bf16": "checkpoint.pt",
    "legacy_group_sizes_jsonstr": "sae.pt",
    "new_cumulative_sizes": "checkpoint.pt",
    "new_individual_sizes": "checkpoint.pt",
}


@pytest.fixture(scope="module")
def tokens():
    arrays = np.load(DATA / "data" / "xy.npz")
    return torch.tensor(arrays["x"]), torch.tensor(arrays["y"])


def dictionary(W_enc, b_enc, W_dec, b_dec, threshold, **more):
    origin = Origin("a", Path("a.pt"), "matryoshka", "topk", "float32")
    activation = Threshold(threshold)
    return Dictionary(origin, W_enc, b_enc, W_dec, b_dec, activation, **more)


def stored(case):
    path = DATA / "ckpt" / "upstream" / case / CASES[case]
    found = {key: each.float() for key, each in torch.load(path, weights_only=True).items()}
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    return dictionary(*(found[name] for name in names))


def its_own(case):
    text = (DATA / "golden" / f"upstream_{case}.json").read_text()
    return json.loads(text)["upstream"]["evaluate_model_on_batches_8x200"]


def made(n_features=9, seed=0, **more):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((5, n_features), (n_features,), (n_features, 4), (4,))
    weights = (torch.randn(shape, generator=draw) for shape in shapes)
    x, y = torch.randn(23, 5, generator=draw), torch.randn(23, 4, generator=draw) + 1
    return dictionary(*weights, torch.tensor(0.4), **more), x, y


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_programs_own_numbers(case, tokens):
    """Bit by bit but for L0 and the mean activation, which there are sums in float32."""
    dtype = torch.bfloat16 if case == "bf16" else torch.float32
    running = UpstreamPass(stored(case), batch_tokens=200, dtype=dtype)
    for x, y in zip(*(each.split([130, 1, 869, 600]) for each in tokens), strict=True):
        running.add(x, y)
    found, expected = running.metrics(), its_own(case)
    for group in ("absorption", "feature_utilization", "reconstruction"):
        assert found[group] == pytest.approx(expected[group], rel=1e-12), group
    for group in ("sparsity", "activation_stats"):
        assert found[group] == pytest.approx(expected[group], rel=1e-6), group
    assert {key: list(each) for key, each in found.items()} == {
        key: list(each) for key, each in expected.items()
    }


def test_bf16_weights_in_float32_come_near(tokens):
    running = UpstreamPass(stored("bf16"), batch_tokens=200)
    running.add(*tokens)
    for group, expected in its_own("bf16").items():
        assert running.metrics()[group] == pytest.approx(expected, rel=2e-2), group


def slow(d, x, y, size):
    """Everything but absorption, token by token in float64."""
    W, V = d.W_enc_ID.double().numpy(), d.W_dec_DO.double().numpy()
    totals, l0, acts = np.zeros(4), [], []
    for start in range(0, len(x), size):
        t, r = y[start : start + size].double().numpy(), []
        for raw in x[start : start + size].double().numpy():
            token, mean, std = raw, 0.0, 1.0
            if isinstance(d.normalisation, Standardised):
                mean, std = raw.mean(), raw.std(ddof=1)
                token = (raw - mean) / (std + 1e-5)
            pre = token @ W + d.b_enc_D.numpy()
            a = np.array([each if each > max(0, d.activation.threshold_D) else 0 for each in pre])
            l0.append(int((a > 0).sum()))
            acts += [each for each in a if each]
            r.append((a @ V + d.b_dec_O.numpy()) * std + mean)
        e, r = np.array(r) - t, np.array(r)
        mse, variance = (e**2).mean(), ((t - t.mean()) ** 2).sum() / (t.size - 1)
        cosine = (r * t).sum() / math.sqrt((r**2).sum() * (t**2).sum())
        totals += len(t) * np.array([mse, np.abs(e).mean(), mse / (variance + 1e-8), cosine])
    return totals / len(x), l0, acts


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("size", [4, 5, 23, 100])
def test_a_slow_version_agrees(size, normalised):
    d, x, y = made(**({"normalisation": Standardised()} if normalised else {}))
    running = UpstreamPass(d, batch_tokens=size)
    for piece in range(0, 23, 3):
        running.add(x[piece : piece + 3], y[piece : piece + 3])
    found = running.metrics()
    averages, l0, acts = slow(d, x, y, size)
    np.testing.assert_allclose([*found["reconstruction"].values()], averages, rtol=1e-5)
    expected = [np.mean(l0), sorted(l0)[(len(l0) - 1) // 2], np.std(l0, ddof=1)]
    np.testing.assert_allclose([*found["sparsity"].values()], expected, rtol=1e-12)
    np.testing.assert_allclose(
        [*found["activation_stats"].values()], [max(acts), np.mean(acts)], rtol=1e-5
    )


def test_centre_scale_and_skip_are_those_of_the_dictionary():
    draw = torch.Generator().manual_seed(5)
    centre, skip = torch.randn(5, generator=draw), torch.randn(5, 4, generator=draw)
    scale = torch.rand(9, generator=draw) + 0.5
    d, x, y = made(centre_I=centre, scale_D=scale, W_skip_IO=skip)
    running = UpstreamPass(d)
    running.add(x, y)
    found, acts = running.metrics(), d.encode(x)
    error = (d.decode(acts, x) - y).double()
    assert found["reconstruction"]["mae"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert found["sparsity"]["mean_l0"] == len(acts.values_M) / len(x)


def test_batches_are_cut_the_same_however_tokens_come():
    d, x, y = made()
    found = []
    for pieces in ([23], [1] * 23, [7, 0, 16]):
        running = UpstreamPass(d, batch_tokens=6)
        for part in zip(x.split(pieces), y.split(pieces), strict=True):
            running.add(*part)
        found.append(running.metrics())
    assert found[0] == found[1] == found[2]


def test_the_lower_median_and_the_spread_of_few_tokens():
    d, x, y = made()
    order = np.argsort(slow(d, x, y, 128)[1])[[0, 1, -2, -1]]
    x, y = x[order], y[order]
    running = UpstreamPass(d)
    running.add(x[:1], y[:1])
    assert running.metrics()["sparsity"]["l0_std"] is None
    running.add(x[1:], y[1:])
    l0 = slow(d, x, y, 128)[1]
    assert l0[1] < l0[2]
    assert running.metrics()["sparsity"]["median_l0"] == l0[1]


def test_no_tokens_are_refused():
    d, x, y = made()
    running = UpstreamPass(d)
    running.add(x[:0], y[:0])
    with pytest.raises(DumpError, match="no token"):
        running.metrics()


def test_one_number_has_no_variance_and_no_feature_no_mean():
    d, x, _y = made()
    silent = dictionary(*(torch.zeros_like(each) for each in (d.W_enc_ID, d.b_enc_D)),
                        torch.ones(9, 1), torch.zeros(1), torch.tensor(0.4))  # fmt: skip
    running = UpstreamPass(silent)
    running.add(x[:1], torch.ones(1, 1))
    found = running.metrics()
    assert found["reconstruction"]["fvu"] is None
    assert found["activation_stats"] == {"max_activation": 0.0, "mean_activation": 0.0}


def slow_absorption(rows):
    rows = rows.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    above = sum(abs(rows[i] @ rows[j]) > 0.9 for i in range(n) for j in range(n) if i != j)
    return above, above / (n * (n - 1))


def test_absorption_counts_each_pair_twice_in_every_block(monkeypatch):
    monkeypatch.setattr("actcli.analysis.sae_upstream._ROWS_AT_ONCE", 7)
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    found = upstream_absorption(rows)
    above, score = slow_absorption(rows)
    assert above > 20
    assert (found["pairs_above_threshold"], found["score"]) == (above, score)


def test_of_too_many_rows_the_same_are_drawn_each_time():
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    found = upstream_absorption(rows, most_rows=20)
    assert found == upstream_absorption(rows, most_rows=20)
    assert found != upstream_absorption(rows, most_rows=20, seed=1)
    assert found["score"] == found["pairs_above_threshold"] / (20 * 19)
    assert upstream_absorption(rows[:1])["score"] == 0


def test_the_comparison_has_the_programs_keys_and_no_winner_without_a_number():
    golden = json.loads((DATA / "golden" / "upstream_comparison.json").read_text())
    sides = [json.loads(json.dumps(golden[side])) for side in ("ours", "google")]
    sides[1]["absorption"]["score"] = None  # NaN there
    found = upstream_comparison(*sides)
    assert list(found) == list(golden)
    assert list(found["comparison"]) == list(golden["comparison"])
    assert found["summary"] == golden["summary"]
    missing = {"absorption_difference": None, "absorption_winner": None}
    assert found["comparison"] == golden["comparison"] | missing
    first = upstream_comparison(sides[0], sides[0])["comparison"]
    assert first["fvu_winner"] == first["cosine_sim_winner"] == "google"
    better = json.loads(json.dumps(sides[1]))
    better["absorption"]["score"] = 0.5
    assert upstream_comparison(sides[0], better)["comparison"]["absorption_winner"] == "ours"
