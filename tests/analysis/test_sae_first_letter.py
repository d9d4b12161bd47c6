"""First-letter absorption: SAEBench's own values, planted absorption, and optimal probes.

Tensor legend: W words, I input width, A letters, D features.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.analysis import sae_first_letter, sae_first_letter_probes
from actcli.analysis.sae_first_letter import absorption_of_words, first_letter_absorption
from actcli.analysis.sae_first_letter_probes import (
    f1_score,
    fit_few,
    fit_probes,
    sparse_weights,
)
from actcli.errors import SamplesError, UsageError
from actcli.saes.activations import Threshold
from actcli.saes.dictionary import Dictionary, Origin, Place, SparseActs
from actcli.samples.spelling import Spelling
from tests.golden import GOLDEN

GOLDEN_ABSORPTION = GOLDEN.parent / "sae-eval" / "golden" / "chanin_absorption.npz"
N_LETTERS, WORDS, ABSORBED = 3, 80, 20
WIDTH = N_LETTERS + ABSORBED


def slow_word(acts, x, W_dec, probe, main):
    """The definition for one word, step by step: fraction, full, projection."""
    probe = probe / np.linalg.norm(probe)
    cosines = W_dec @ probe / np.linalg.norm(W_dec, axis=1)
    projection, parts = float(x @ probe), acts * cosines
    of_main = sum(parts[f] for f in main)
    others = [
        parts[f] for f in range(len(acts)) if f not in main and cosines[f] >= 0.1 and parts[f] > 0
    ]
    of_others = sum(sorted(others)[::-1][:3])
    if of_main >= projection or of_others / projection < 0.4:
        fraction = 0.0
    elif of_main <= 0:
        fraction = 1.0
    else:
        absorbed = min(of_others, projection - of_main)
        fraction = min(1.0, max(0.0, absorbed / (absorbed + of_main)))
    top = int(np.argmax(parts))
    is_full = all(acts[f] < 1e-8 for f in main) and cosines[top] >= 0.025
    is_full = is_full and projection >= 0 and parts[top] / projection >= 0.4
    return fraction, is_full, projection


def test_golden_words() -> None:
    golden = np.load(GOLDEN_ABSORPTION)
    found = absorption_of_words(
        torch.from_numpy(golden["sae_acts"]),
        torch.from_numpy(golden["resid"]),
        W_dec_DI=torch.from_numpy(golden["W_dec"]),
        probe_I=torch.from_numpy(golden["probe"]),
        main=golden["main_feature_ids"].tolist(),
    )
    np.testing.assert_allclose(found.fraction_W, golden["absorption_fraction"], atol=2e-6)
    np.testing.assert_array_equal(found.is_full_W, golden["is_full_absorption"])
    np.testing.assert_allclose(found.projection_W, golden["probe_projection"], atol=1e-6)
    constants = sae_first_letter
    assert golden["full_cos_threshold"] == constants.FULL_COSINE
    assert golden["fraction_cos_threshold"] == constants.FRACTION_COSINE
    assert golden["projection_proportion_threshold"] == constants.PROPORTION
    assert golden["max_absorbing_latents"] == constants.MOST_ABSORBERS


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("main", [(0,), (3, 1), (2, 0, 5)])
def test_words_against_the_definition(seed: int, main: tuple[int, ...]) -> None:
    made = np.random.default_rng(seed)
    W_dec, probe = made.standard_normal((30, 6)), made.standard_normal(6)
    acts = np.maximum(made.standard_normal((60, 30)) - 1, 0) * made.choice([0.3, 1, 3], (60, 1))
    x = acts @ W_dec * 0.5 + made.standard_normal((60, 6)) * 0.2
    found = absorption_of_words(
        *(torch.from_numpy(each) for each in (acts, x)),
        W_dec_DI=torch.from_numpy(W_dec),
        probe_I=torch.from_numpy(probe),
        main=main,
    )
    expected = [slow_word(a, b, W_dec, probe, main) for a, b in zip(acts, x, strict=True)]
    np.testing.assert_allclose(found.fraction_W, [each[0] for each in expected], atol=1e-12)
    assert found.is_full_W.tolist() == [bool(each[1]) for each in expected]
    np.testing.assert_allclose(found.projection_W, [each[2] for each in expected], atol=1e-12)


def test_a_word_without_projection_and_features_without_direction() -> None:
    W_dec_DI = torch.tensor([[1.0, 0], [0, 0], [0.5, 0.5]])
    found = absorption_of_words(
        torch.tensor([[0.0, 4, 2], [0, 0, 0]]),
        torch.tensor([[0.0, 1], [1, 0]]),
        W_dec_DI=W_dec_DI,
        probe_I=torch.tensor([2.0, 0]),
        main=[0],
    )
    assert found.fraction_W.tolist() == [0, 0]
    assert found.is_full_W.tolist() == [False, False]


def planted() -> tuple[Dictionary, Spelling]:
    """Three letters, 80 words each; 20 words of the first each have a feature that absorbs it.

    Coordinates: one a letter, then one for each of those words. The letter's feature is silent
    where a word's own coordinate is there; the word's feature, which points to both, fires.
    """
    n_features = N_LETTERS + ABSORBED
    W_enc_ID, b_enc_D = torch.zeros(WIDTH, n_features), torch.full((n_features,), -0.1)
    W_dec_DI = torch.zeros(n_features, WIDTH)
    for letter in range(N_LETTERS):
        W_enc_ID[letter, letter] = 1.1
        W_dec_DI[letter, letter] = 1
    for word in range(ABSORBED):
        W_enc_ID[N_LETTERS + word, 0] = -3
        W_enc_ID[0, N_LETTERS + word] = W_enc_ID[N_LETTERS + word, N_LETTERS + word] = 1
        b_enc_D[N_LETTERS + word] = -1.2
        W_dec_DI[N_LETTERS + word, 0] = W_dec_DI[N_LETTERS + word, N_LETTERS + word] = 1
    origin = Origin("planted", Path("planted"), "raw", "relu", "float32")
    made = Dictionary(origin, W_enc_ID, b_enc_D, W_dec_DI, torch.zeros(WIDTH), Threshold())
    letters_W = torch.arange(N_LETTERS).repeat_interleave(WORDS)
    x_WI = torch.zeros(len(letters_W), WIDTH)
    x_WI[torch.arange(len(letters_W)), letters_W] = 1
    x_WI[torch.arange(ABSORBED) * 3, N_LETTERS + torch.arange(ABSORBED)] = 1
    probes_AI = torch.eye(26, WIDTH) * 2
    probes_AI[N_LETTERS:] = 1e-3
    return made, Spelling("words", x_WI, letters_W, probes_AI, torch.full((26,), -1.0))


def test_planted_absorption_is_found() -> None:
    """Every other word is measured: 10 of 40 words of the first letter, none of the others."""
    dictionary, spelling = planted()
    report = first_letter_absorption(dictionary, spelling)
    assert report.letters["a"] == (0.25, 0.25, 40)
    assert report.letters["b"] == report.letters["c"] == (0, 0, 40)
    assert report.main_features == {"a": (0,), "b": (1,), "c": (2,)}
    assert report.mean_absorption_fraction == pytest.approx(0.25 / 3)
    assert report.full_absorption_rate == pytest.approx(0.25 / 3)
    assert (report.n_letters, report.n_words) == (3, 120)


def test_planted_absorption_is_found_by_fitted_probes() -> None:
    dictionary, spelling = planted()
    bare = replace(spelling, probe_weight_AI=None, probe_bias_A=None)
    report = first_letter_absorption(dictionary, bare)
    assert report.letters["a"] == (0.25, 0.25, 40)
    assert report.letters["b"] == report.letters["c"] == (0, 0, 40)
    assert first_letter_absorption(dictionary, bare) == report


def test_a_letter_that_two_features_share_is_split_not_absorbed() -> None:
    """One feature for all those words raises F1 by far more than 0.03: it is a main feature."""
    dictionary, spelling = planted()
    W_enc_ID, W_dec_DI = dictionary.W_enc_ID.clone(), dictionary.W_dec_DO.clone()
    W_enc_ID[N_LETTERS:, N_LETTERS] = 1
    W_dec_DI[N_LETTERS, N_LETTERS:] = 0.2
    W_enc_ID[:, N_LETTERS + 1 :] = 0
    shared = replace(dictionary, W_enc_ID=W_enc_ID, W_dec_DO=W_dec_DI)
    report = first_letter_absorption(shared, spelling)
    assert sorted(report.main_features["a"]) == [0, N_LETTERS]
    assert report.letters["a"] == (0, 0, 40)


def test_a_feature_that_adds_little_is_no_main_feature() -> None:
    """It says the letter of one word in forty: F1 rises by 0.016, and it absorbs that word.

    Of the words that it is fitted on it says three: words 0, 2 and 4 that have a feature.
    """
    dictionary, spelling = planted()
    W_enc_ID, b_enc_D = dictionary.W_enc_ID.clone(), dictionary.b_enc_D.clone()
    W_enc_ID[0, N_LETTERS], b_enc_D[N_LETTERS] = 4, -4.8
    W_enc_ID[[N_LETTERS + word for word in (0, 1, 2, 4)], N_LETTERS] = 4
    shared = replace(dictionary, W_enc_ID=W_enc_ID, b_enc_D=b_enc_D)
    report = first_letter_absorption(shared, spelling)
    assert report.main_features["a"] == (0,)
    assert report.letters["a"] == (0.25, 0.25, 40)


def test_a_strong_feature_beside_the_probe_does_not_absorb() -> None:
    W_dec_DI = torch.tensor([[1.0, 0], [0.02, 1]])
    acts_WD, x_WI = torch.tensor([[0.0, 30], [0.0, 40]]), torch.ones(2, 2)
    of = {"x_WI": x_WI, "probe_I": torch.tensor([1.0, 0]), "main": [0]}
    assert not absorption_of_words(acts_WD, W_dec_DI=W_dec_DI, **of).is_full_W.any()
    W_dec_DI[1, 0] = 0.03
    assert absorption_of_words(acts_WD, W_dec_DI=W_dec_DI, **of).is_full_W.all()


def test_only_words_that_the_probe_knows_count() -> None:
    dictionary, spelling = planted()
    assert spelling.probe_bias_A is not None
    bias_A = spelling.probe_bias_A.clone()
    bias_A[1] = -2.5
    report = first_letter_absorption(dictionary, replace(spelling, probe_bias_A=bias_A))
    assert set(report.letters) == {"a", "c"}
    assert report.n_words == 80
    assert report.mean_absorption_fraction == pytest.approx(0.25 / 2)
    bias_A[:] = -9
    report = first_letter_absorption(dictionary, replace(spelling, probe_bias_A=bias_A))
    assert (report.mean_absorption_fraction, report.full_absorption_rate) == (None, None)
    assert (report.n_letters, report.n_words) == (0, 0)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, spelling = planted()
    whole = first_letter_absorption(dictionary, spelling)
    monkeypatch.setattr(sae_first_letter, "_WORDS_AT_ONCE", 7)
    assert first_letter_absorption(dictionary, spelling) == whole


def test_what_cannot_be_measured_is_refused() -> None:
    dictionary, spelling = planted()
    with pytest.raises(UsageError, match=r"width 7.*reads width 23"):
        first_letter_absorption(dictionary, replace(spelling, x_WI=spelling.x_WI[:, :7]))
    few = Spelling("few", spelling.x_WI[:5], spelling.letters_W[:5])
    with pytest.raises(SamplesError, match="few has 5 words, and 1 letters with 4 or more"):
        first_letter_absorption(dictionary, few)
    transcoder = replace(dictionary.origin, reads=Place("in"), writes=Place("out"))
    with pytest.raises(UsageError, match="planted is a transcoder"):
        first_letter_absorption(replace(dictionary, origin=transcoder), spelling)
    assert spelling.probe_weight_AI is not None
    zero = replace(spelling, probe_weight_AI=torch.zeros_like(spelling.probe_weight_AI))
    with pytest.raises(SamplesError, match="probe_weight is 0"):
        first_letter_absorption(dictionary, zero)


def labelled(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    labels_W = torch.randint(0, 4, (90,), generator=made)
    x_WI = torch.randn(90, 6, generator=made) * 5
    x_WI[:, :4] += 3 * torch.nn.functional.one_hot(labels_W, 4)
    return x_WI, labels_W[:, None] == torch.arange(4)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def slopes(x: np.ndarray, is_letter: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Derivative of the mean loss of one letter by its weights, then by its bias."""
    p = (~is_letter).sum() / is_letter.sum()
    by_logit = np.where(is_letter, -p * sigmoid(-logits), sigmoid(logits)) / len(x)
    return np.append(by_logit @ x, by_logit.sum())


def test_probes_are_optimal() -> None:
    x_WI, is_WA = labelled(0)
    weight_AI, bias_A = (each.numpy() for each in fit_probes(x_WI, is_WA))
    x = x_WI.double().numpy()
    scale = np.sqrt((x**2).mean())
    for letter in range(4):
        slope = slopes(x, is_WA[:, letter].numpy(), x @ weight_AI[letter] + bias_A[letter])
        decay = 1e-4 * weight_AI[letter] * scale**2
        np.testing.assert_allclose(slope[:-1] + decay, 0, atol=1e-5)
        np.testing.assert_allclose(slope[-1], 0, atol=1e-6)


def test_sparse_probes_are_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    x_WI, is_WA = labelled(1)
    x_WI = torch.relu(x_WI) * torch.tensor([1, 1, 10, 0.1, 1, 1])
    x_WI[:, 5] = 0
    usual_AD = sparse_weights(SparseActs.of(x_WI), is_WA, n_features=6)
    monkeypatch.setattr(sae_first_letter_probes, "_SPARSE_CHANGE", 1e-9)
    monkeypatch.setattr(sae_first_letter_probes, "_SPARSE_STEPS", 20_000)
    weights_AD = sparse_weights(SparseActs.of(x_WI), is_WA, n_features=6)
    np.testing.assert_allclose(usual_AD, weights_AD, rtol=5e-3, atol=1e-3)
    assert weights_AD.shape == (4, 6)
    x = x_WI.double().numpy()
    for letter in range(4):
        is_letter = is_WA[:, letter].numpy()
        weights = weights_AD[letter].numpy()
        low, high = -50.0, 50.0
        for _ in range(60):  # the bias is not told: where its slope is 0
            bias = (low + high) / 2
            rises = slopes(x, is_letter, x @ weights + bias)[-1] > 0
            low, high = (low, bias) if rises else (bias, high)
        slope = slopes(x, is_letter, x @ weights + bias)[:-1]
        kept = weights != 0
        np.testing.assert_allclose(slope[kept], -0.01 * np.sign(weights[kept]), atol=1e-5)
        assert (np.abs(slope[~kept]) <= 0.01001).all()
    assert (weights_AD[:, 5] == 0).all()


@pytest.mark.parametrize("separable", [False, True])
def test_probes_of_few_features_are_optimal(separable: bool) -> None:
    x_WI, is_WA = labelled(2)
    acts_WK, is_W = x_WI[:, :3], is_WA[:, 0]
    if separable:
        acts_WK = acts_WK + 100 * is_W[:, None]
    weight_K, bias = (each.numpy() for each in fit_few(acts_WK, is_W))
    x, y = acts_WK.double().numpy(), is_W.numpy()
    balance = np.where(y, len(y) / 2 / y.sum(), len(y) / 2 / (~y).sum())
    by_logit = balance * (sigmoid(x @ weight_K + bias) - y)
    np.testing.assert_allclose(by_logit @ x + weight_K, 0, atol=1e-4)
    np.testing.assert_allclose(by_logit.sum(), 0, atol=1e-4)


def test_f1() -> None:
    truth = torch.tensor([True, True, True, False, False])
    predicted = torch.tensor([True, True, False, True, False])
    assert f1_score(predicted, truth) == pytest.approx(2 / 3)
    assert f1_score(truth & False, truth & False) == 0
