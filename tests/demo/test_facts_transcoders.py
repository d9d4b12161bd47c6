"""The built-in transcoders: what is stored, and how well it predicts."""

import json
import math
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.demo.measure_transcoders import measure_transcoder
from actcli.demo.train_facts_transcoders import ASSETS
from actcli.demo.transcoders import Weights
from actcli.demo.transcoders_tokens import capture_tokens
from actcli.demo.transcoders_train import Recipe
from actcli.saes.activations import Threshold
from actcli.saes.dictionary import Dictionary, Origin

MATRYOSHKA, GEMMA_SCOPE = ASSETS / "facts-matryoshka", ASSETS / "facts-gemma-scope"
MAX_BYTES = 3_000_000
N_FEATURES, WIDTH = 1024, 128
MAX_FVU, MAX_DEAD = 0.03, 0.1


@pytest.fixture(scope="module")
def fresh():
    """Sentences of a seed that was neither trained nor measured on."""
    return capture_tokens(seed=77, n_sentences=1_500)


def params_of(folder):
    [path] = folder.rglob("params.npz")
    with np.load(path) as arrays:
        return path, {key: arrays[key] for key in arrays}


def checkpoint_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def run_by_hand(weights, x):
    """Activations and predictions in numpy's float64, from tensors under their stored names."""
    W_enc, W_dec, b_enc, b_dec, threshold = (
        np.asarray(weights[key], np.float64)
        for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    )
    h = x @ W_enc + b_enc
    acts = np.where(h > threshold, np.maximum(h, 0), 0)
    return acts, acts @ W_dec + b_dec


def fvu_by_hand(y, predicted):
    return ((y - predicted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()


def stored(name):
    """The stored tensors in float64, and the site that they read."""
    if name == "matryoshka":
        checkpoint = checkpoint_of(MATRYOSHKA)
        return {key: value.double().numpy() for key, value in checkpoint.items()}, "mlp_input"
    return params_of(GEMMA_SCOPE)[1], "mlp_input_normed"


def card_of(name):
    folder = MATRYOSHKA if name == "matryoshka" else GEMMA_SCOPE
    lines = (folder / "README.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


BOTH = pytest.mark.parametrize("name", ["matryoshka", "gemma-scope"])


def test_the_figures_are_those_of_the_definitions():
    torch.manual_seed(0)
    shapes = ((4, 6), (6,), (6, 5), (5,))
    weights = Weights(*(torch.randn(shape) for shape in shapes), threshold=torch.tensor(0.5))
    weights.b_enc_D[3] = -100
    x, y, is_bos = torch.randn(5000, 4), torch.randn(5000, 5) + 3, torch.arange(5000) % 7 == 0
    dictionary = Dictionary(
        Origin("made", Path("made"), "none", "relu", "float32"),
        *weights[:4],
        activation=Threshold(weights.threshold),
        prefixes=(2, 6),
    )
    found = measure_transcoder(dictionary, x, y, is_bos_N=is_bos)
    keys = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    named = {key: value.double().numpy() for key, value in zip(keys, weights, strict=True)}
    acts, predicted = run_by_hand(named, x.double().numpy())
    y, rest = y.double().numpy(), ~is_bos.numpy()
    assert found.fvu == pytest.approx(fvu_by_hand(y, predicted), rel=1e-5)
    assert found.fvu_without_bos == pytest.approx(fvu_by_hand(y[rest], predicted[rest]), rel=1e-5)
    assert found.mean_l0 == pytest.approx((acts > 0).sum() / 5000, rel=1e-4)
    assert (found.n_dead, found.n_features, found.n_tokens) == (1, 6, 5000)
    first = acts[:, :2] @ named["W_dec"][:2] + named["b_dec"]
    assert found.prefixes[2] == pytest.approx(fvu_by_hand(y, first), rel=1e-5)
    assert found.prefixes[6] == pytest.approx(found.fvu, rel=1e-5)


def test_captured_tokens_are_what_they_are_called(fresh):
    normed, gained = (fresh.sites[site].float() for site in ("mlp_input_normed", "mlp_input"))
    assert (normed.square().mean(dim=1) - 1).abs().max() < 0.02
    gain = (gained * normed).sum(dim=0) / normed.square().sum(dim=0)
    assert torch.allclose(gained, normed * gain, rtol=0.02, atol=0.02)
    assert fresh.is_bos_N.sum() == 1_500
    assert len(gained[fresh.is_bos_N].unique(dim=0)) == 1
    assert fresh.is_bos_N[0]
    assert fresh.sites["mlp_out"].shape == (len(fresh), WIDTH)


def test_what_ships_is_small_and_complete():
    files = [path for folder in (MATRYOSHKA, GEMMA_SCOPE) for path in folder.rglob("*")]
    sizes = {path.name: path.stat().st_size for path in files if path.is_file()}
    assert set(sizes) == {
        "README.md",
        "checkpoint.pt",
        "config.json",
        "params.npz",
        "training_log.json",
    }
    assert sum(path.stat().st_size for path in files if path.is_file()) < MAX_BYTES


@BOTH
def test_what_ships_has_the_formats_shapes(name):
    weights, _ = stored(name)
    assert set(weights) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    assert weights["W_enc"].shape == weights["W_dec"].shape[::-1] == (WIDTH, N_FEATURES)
    assert weights["b_enc"].shape == (N_FEATURES,)
    assert weights["b_dec"].shape == (WIDTH,)
    assert weights["threshold"].shape == (() if name == "matryoshka" else (N_FEATURES,))
    assert all(np.isfinite(value).all() for value in weights.values())
    assert (weights["threshold"] > 0).all()


def test_the_config_is_of_the_run():
    config = json.loads((MATRYOSHKA / "config.json").read_text())
    recipe = Recipe()
    assert sum(config["prefix_sizes"]) == config["dict_size"] == N_FEATURES
    assert (config["model_name"], config["layer"]) == ("demo://facts", 4)
    assert (config["source_site"], config["target_site"]) == ("mlp_in", "mlp_out")
    assert config["source_hook_point"] == "blocks.4.hook_mlp_in"
    assert config["target_hook_point"] == "blocks.4.hook_mlp_out"
    assert config["top_k"] == recipe.k
    assert config["num_tokens"] == recipe.n_steps * recipe.batch_size
    assert config["dtype"] == "torch.bfloat16"
    assert {value.dtype for value in checkpoint_of(MATRYOSHKA).values()} == {torch.bfloat16}
    log = json.loads((MATRYOSHKA / "training_log.json").read_text())
    assert set(log) == {"step", "metrics", "timestamp"}
    assert set(log["metrics"]) == {"loss", "l2_loss", "l0_norm", "fvu", "dead_features"}
    assert log["step"] == recipe.n_steps


@BOTH
def test_what_ships_predicts_fresh_sentences_as_its_card_says(name, fresh):
    weights, site = stored(name)
    x, y = (fresh.sites[key].double().numpy() for key in (site, "mlp_out"))
    acts, predicted = run_by_hand(weights, x)
    card, mean_l0 = card_of(name), (acts > 0).sum() / len(x)
    fvu = fvu_by_hand(y, predicted)
    assert fvu < MAX_FVU
    assert fvu == pytest.approx(float(card["FVU"]), rel=0.15)
    assert mean_l0 == pytest.approx(float(card["Mean L0"]), rel=0.05)
    n_dead, of = card["Dead"].split(" (")[0].split(" of ")
    assert int(of.replace(",", "")) == N_FEATURES
    assert int(n_dead) < MAX_DEAD * N_FEATURES
    assert int(n_dead) <= (acts > 0).any(axis=0).size - (acts > 0).any(axis=0).sum() + 8
    rest = ~fresh.is_bos_N.numpy()
    without = fvu_by_hand(y[rest], predicted[rest])
    assert without == pytest.approx(float(card["FVU without `<bos>`"]), rel=0.15)


def test_the_sites_are_not_to_be_confused(fresh):
    y = fresh.sites["mlp_out"].double().numpy()
    for name, wrong in (("matryoshka", "mlp_input_normed"), ("gemma-scope", "mlp_input")):
        weights, site = stored(name)
        right, other = (
            fvu_by_hand(y, run_by_hand(weights, fresh.sites[key].double().numpy())[1])
            for key in (site, wrong)
        )
        assert other > 2 * right


def test_prefixes_of_what_ships_get_better(fresh):
    weights, site = stored("matryoshka")
    x, y = (fresh.sites[key].double().numpy() for key in (site, "mlp_out"))
    acts, _ = run_by_hand(weights, x)
    sizes = json.loads((MATRYOSHKA / "config.json").read_text())["prefix_sizes"]
    card, last = card_of("matryoshka"), math.inf
    for end in accumulate(sizes):
        fvu = fvu_by_hand(y, acts[:, :end] @ weights["W_dec"][:end] + weights["b_dec"])
        assert fvu < last
        assert fvu == pytest.approx(float(card[f"FVU of the first {end:,} features"]), rel=0.15)
        last = fvu


def test_the_two_are_comparable():
    cards = [card_of(name) for name in ("matryoshka", "gemma-scope")]
    first, second = (float(card["Mean L0"]) for card in cards)
    assert first == pytest.approx(second, rel=0.25)
    [path] = GEMMA_SCOPE.rglob("params.npz")
    assert path.parent.name == f"average_l0_{round(second)}"
    assert cards[0]["Tokens"] == cards[1]["Tokens"]
    assert cards[0]["Training"] == cards[1]["Training"]
