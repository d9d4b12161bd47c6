"""Golden values of decompositions in the SPD format; where they come from: see the README."""

import re

import numpy as np
import pytest
import torch

from actcli.analysis.qk_pairs import QkAsk, read_pairs
from actcli.analysis.qk_static import read_static
from actcli.decompositions import load_target, open_decomposition
from actcli.models.qk import qk_texts
from tests.golden import GOLDEN

FOLDER = GOLDEN.parent / "qk-contrib"
POINTS = np.load(FOLDER / "datapoint.npz")
STATIC = np.load(FOLDER / "static.npz")
CASES = sorted({"/".join(name.split("/")[:2]) for name in POINTS.files if "/" in name})


@pytest.fixture(scope="module")
def opened():
    """The text and both sides' factors of a case; runs and models are opened once."""
    models = {}

    def open_case(run, *, tokens_T, layer, **options):
        if run not in models:
            spec = f"spd:{FOLDER / 'runs' / run}"
            adapter = load_target(spec)
            models[run] = adapter, open_decomposition(spec, adapter, **options)
        adapter, decomposition = models[run]
        text = qk_texts(adapter, torch.as_tensor(tokens_T), [layer])[layer]
        return text, *(decomposition.factors(text.layer, side) for side in ("q", "k"))

    return open_case


@pytest.mark.parametrize("mode", ["weighted", "binary"])
@pytest.mark.parametrize("case", CASES)
def test_pairs_are_the_golden_ones(opened, case, mode):
    run, sample, query, layer = re.fullmatch(r"(\w+)/s(\d+)_q(\d+)_l(\d+)", case).groups()
    tokens_T = POINTS["input_ids"][int(sample)]
    text, q, k = opened(run, tokens_T=tokens_T, layer=int(layer))
    ci = tuple(torch.from_numpy(POINTS[f"{case}/{side}_ci"]) for side in ("q", "k"))
    ask = QkAsk(mode=mode, gauge="raw")
    found = read_pairs(text, q, k, query=int(query), ask=ask, ci=ci)
    assert found.top_pairs.tolist() == POINTS[f"{case}/{mode}/top_pairs"].tolist()
    assert found.visible.tolist() == POINTS[f"{case}/{mode}/visible"].tolist()
    for name, got in (
        ("top_contrib", found.top_contrib),
        ("sum", found.sum),
        ("peak_sorted", found.score),
    ):
        golden = POINTS[f"{case}/{mode}/{name}"][: len(got)]
        np.testing.assert_allclose(got, golden, atol=2e-5, err_msg=name)
    acts_C = POINTS[f"{case}/q_acts"][int(query)]
    np.testing.assert_allclose(found.q_act, acts_C[found.top_pairs[:, 0]], atol=2e-5)
    if mode == "weighted":
        golden_AP = POINTS[f"{case}/ground_truth"]
        np.testing.assert_allclose(found.ground_truth, golden_AP, atol=2e-5)
        assert found.ledger_gap <= 2e-5


@pytest.mark.parametrize("layer", [0, 1])
def test_static_values_are_the_golden_ones(opened, layer):
    harvest = next((FOLDER / "harvest" / "mha_noisy").glob("h-*/harvest.db"))
    text, q, k = opened("mha_noisy", tokens_T=range(12), layer=layer, harvest=harvest)
    golden = {name: STATIC[f"mha_noisy/l{layer}/{name}"] for name in ("W_raw", "W_z")}
    found = read_static(text, q, k, n_offsets=12, alive=0.3, top_n=10)
    for side in ("q", "k"):
        expected = STATIC[f"mha_noisy/l{layer}/{side}_alive"]
        assert getattr(found, f"{side}_alive").tolist() == expected.tolist()
    # Golden pairs are numbered within the lists of alive components.
    top = STATIC[f"mha_noisy/l{layer}/top_pairs"]
    assert found.top_pairs.tolist() == [[found.q_alive[i], found.k_alive[j]] for i, j in top]
    rows, columns = top.T
    np.testing.assert_allclose(found.raw, golden["W_raw"][:, :, rows, columns], atol=2e-5)
    np.testing.assert_allclose(found.z, golden["W_z"][:, :, rows, columns], atol=2e-5)
    raw_AX = golden["W_raw"].astype(np.float64).transpose(1, 0, 2, 3).reshape(6, -1)
    np.testing.assert_allclose(found.mean_A, raw_AX.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.std_A, raw_AX.std(axis=1, ddof=1), rtol=1e-5)
