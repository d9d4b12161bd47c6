"""Feature absorption on first letters: does a feature for a letter leave words to other features?

Source: Chanin et al. 2024, "A is for Absorption" (arXiv:2409.14507), with the fraction that
SAEBench adds; numbers and order of decisions follow SAEBench (adamkarvonen/SAEBench,
evals/absorption: feature_absorption_calculator.py, k_sparse_probing.py, feature_absorption.py).

1. A probe for each letter, in the space that the dictionary reads: given, or fitted.
2. *Main features* of a letter: features are ranked by the weights of an L1 probe; the first k make
   a probe, k = 1, 2, ... as long as its F1 rises by more than 0.03; those of the last such k.
3. Words of that letter that the probe recognises (w . x + b > 0) count. u is the probe with length
   1, p = x . u, and feature f contributes q_f = a_f cos(u, W_dec_f). m is the sum of q over the
   main features, s that of the three largest q > 0 among others with cos >= 0.1.

       fraction = 0                           if m >= p or s / p < 0.4
                  1                           else if m <= 0
                  s' / (s' + m)               else, with s' = min(s, p - m)

   *Full absorption*: no main feature fires, and of all features that with the largest q has
   cos >= 0.025 and q / p >= 0.4.
4. Means over the words of a letter, then over letters.

Of each letter every other word, the first, third, ..., is what probes are fitted on (step 1 and 2),
the rest is what F1, fractions and rates are taken of; SAEBench draws a fifth at random for that.
Letters with fewer than four words are not measured.

Tensor legend: W words, I input width, A letters that are measured, D features, K main features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.analysis.sae_first_letter_probes import (
    f1_score,
    fit_few,
    fit_probes,
    sparse_weights,
)
from actcli.errors import SamplesError, UsageError
from actcli.reports.sae_weights import FirstLetterReport
from actcli.saes.dictionary import Dictionary, SparseActs
from actcli.samples.spelling import ALPHABET, Spelling

FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
PROPORTION = 0.4
MOST_ABSORBERS = 3
MOST_MAIN_FEATURES = 10
F1_RISE = 0.03
_FIRES = 1e-8
_WORDS_AT_ONCE = 256
_FEWEST_WORDS = 4


@dataclass(frozen=True)
class WordAbsorption:
    """Of each word (W,)."""

    fraction_W: Tensor
    is_full_W: Tensor
    projection_W: Tensor
    """p: of the activation on the probe."""


@dataclass(frozen=True)
class _Words:
    """One half of the words."""

    x_WI: Tensor
    letters_W: Tensor
    acts: SparseActs

    def dense(self, features: Sequence[int] | Tensor) -> Tensor:
        """Return some features of all words (W, K)."""
        chosen_K = torch.as_tensor(features, device=self.x_WI.device)
        columns_WK = self.x_WI.new_zeros(self.acts.n_tokens, len(chosen_K))
        for place, feature in enumerate(chosen_K.tolist()):
            here_M = self.acts.features_M == feature
            columns_WK[self.acts.tokens_M[here_M], place] = self.acts.values_M[here_M]
        return columns_WK


def first_letter_absorption(dictionary: Dictionary, spelling: Spelling) -> FirstLetterReport:
    """Measure absorption of first letters.

    Raises:
        UsageError: the widths differ, or the dictionary writes elsewhere than it reads.
        SamplesError: there are too few words.
    """
    _check(dictionary, spelling)
    letters = _letters(spelling)
    fitted, tested = _halves(dictionary, spelling)
    is_fitted_WA = fitted.letters_W[:, None] == torch.tensor(letters, device=dictionary.device)
    weight_AI, bias_A = _probes(spelling, letters, fitted, is_fitted_WA)
    weights_AD = sparse_weights(fitted.acts, is_fitted_WA, n_features=dictionary.n_features)
    by_letter, main_features = {}, {}
    for place, letter in enumerate(letters):
        main = _main_features(weights_AD[place], is_fitted_WA[:, place], fitted, tested, letter)
        main_features[ALPHABET[letter]] = tuple(main)
        is_letter_W = tested.letters_W == letter
        scores_W = tested.x_WI.double() @ weight_AI[place] + bias_A[place]
        x_WI = tested.x_WI[is_letter_W & (scores_W > 0)]
        if len(x_WI):
            found = _measure(dictionary, x_WI, weight_AI[place], main)
            means = found.fraction_W.mean().item(), found.is_full_W.double().mean().item()
            by_letter[ALPHABET[letter]] = (*means, len(x_WI))
    return FirstLetterReport(
        mean_absorption_fraction=_mean([each[0] for each in by_letter.values()]),
        full_absorption_rate=_mean([each[1] for each in by_letter.values()]),
        n_letters=len(by_letter),
        n_words=sum(each[2] for each in by_letter.values()),
        letters=by_letter,
        main_features=main_features,
    )


def absorption_of_words(
    acts_WD: Tensor, x_WI: Tensor, *, W_dec_DI: Tensor, probe_I: Tensor, main: Sequence[int]
) -> WordAbsorption:
    """Return how far other features stand in for the main ones, word by word, in float64.

    Args:
        acts_WD: features of words.
        x_WI: activations that they are of.
        W_dec_DI: decoder rows.
        probe_I: direction that says the letter; any length.
        main: the letter's main features.
    """
    unit_I = probe_I.double() / probe_I.double().norm()
    rows_DI = W_dec_DI.double()
    norms_D = rows_DI.norm(dim=1)
    cosines_D = torch.where(norms_D > 0, rows_DI @ unit_I / norms_D, 0.0)
    p_W, parts_WD = x_WI.double() @ unit_I, acts_WD.double() * cosines_D
    main_K = torch.tensor(list(main), dtype=torch.int64, device=acts_WD.device)
    of_main_W = parts_WD[:, main_K].sum(1)
    may_absorb_D = cosines_D >= FRACTION_COSINE
    may_absorb_D[main_K] = False
    others_WD = torch.where(may_absorb_D, parts_WD, 0.0).clamp_min(0)
    of_others_W = others_WD.topk(min(MOST_ABSORBERS, len(norms_D)), dim=1).values.sum(1)
    safe_W = torch.where(p_W == 0, torch.inf, p_W)
    nothing_W = (of_main_W >= p_W) | (of_others_W / safe_W < PROPORTION)
    absorbed_W = torch.minimum(of_others_W, p_W - of_main_W)
    share_W = (absorbed_W / (absorbed_W + of_main_W)).clamp(0, 1)
    fraction_W = torch.where(nothing_W, 0.0, torch.where(of_main_W <= 0, 1.0, share_W))
    top_W, index_W = parts_WD.max(1)
    is_full_W = (acts_WD[:, main_K] < _FIRES).all(1) & (cosines_D[index_W] >= FULL_COSINE)
    is_full_W &= (p_W >= 0) & (top_W / safe_W >= PROPORTION)
    return WordAbsorption(fraction_W, is_full_W, p_W)


def _check(dictionary: Dictionary, spelling: Spelling) -> None:
    name, origin = dictionary.origin.name, dictionary.origin
    elsewhere = origin.is_transcoder or (origin.writes not in (None, origin.reads))
    if elsewhere or dictionary.d_in != dictionary.d_out:
        raise UsageError(
            f"{name} is a transcoder: first-letter absorption compares its decoder with a probe of "
            f"what it reads, so it is defined for dictionaries that write what they read"
        )
    if spelling.width != dictionary.d_in:
        raise UsageError(
            f"{spelling.name} has activations of width {spelling.width}, but {name} reads width "
            f"{dictionary.d_in}: capture them at the place that it reads"
        )


def _letters(spelling: Spelling) -> list[int]:
    counts_A = torch.bincount(spelling.letters_W.cpu(), minlength=len(ALPHABET))
    letters: list[int] = (counts_A >= _FEWEST_WORDS).nonzero().squeeze(1).tolist()
    if len(letters) < 2:
        raise SamplesError(
            f"{spelling.name} has {len(spelling)} words, and {len(letters)} letters with "
            f"{_FEWEST_WORDS} or more; expected at least two such letters"
        )
    return letters


def _halves(dictionary: Dictionary, spelling: Spelling) -> tuple[_Words, _Words]:
    """Of each letter, the first, third, ... word, and the others."""
    letters_W = spelling.letters_W.cpu()
    order_W = letters_W.argsort(stable=True)
    starts_A = torch.bincount(letters_W, minlength=len(ALPHABET)).cumsum(0)
    starts_A = torch.cat([starts_A.new_zeros(1), starts_A[:-1]])
    place_W = torch.empty_like(order_W)
    place_W[order_W] = torch.arange(len(order_W))
    is_even_W = (place_W - starts_A[letters_W]) % 2 == 0
    device = dictionary.device
    halves = []
    for chosen_W in (is_even_W, ~is_even_W):
        x_WI = spelling.x_WI[chosen_W.to(spelling.x_WI.device)].to(device)
        halves.append(_Words(x_WI, letters_W[chosen_W].to(device), _encode(dictionary, x_WI)))
    return halves[0], halves[1]


def _encode(dictionary: Dictionary, x_WI: Tensor) -> SparseActs:
    starts = range(0, len(x_WI), _WORDS_AT_ONCE)
    return SparseActs.joined(
        [dictionary.encode(x_WI[start : start + _WORDS_AT_ONCE]) for start in starts]
    )


def _probes(
    spelling: Spelling, letters: Sequence[int], fitted: _Words, is_fitted_WA: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the probes of the letters: weights (A, I) and bias (A,), float64."""
    if spelling.probe_weight_AI is None:
        return fit_probes(fitted.x_WI, is_fitted_WA)
    weight_AI = spelling.probe_weight_AI[list(letters)].double().to(fitted.x_WI.device)
    if (weight_AI == 0).all(1).any():
        raise SamplesError(f"{spelling.name}: a probe_weight is 0 throughout, it says no letter")
    bias_A = weight_AI.new_zeros(len(letters))
    if spelling.probe_bias_A is not None:
        bias_A = spelling.probe_bias_A[list(letters)].double().to(bias_A.device)
    return weight_AI, bias_A


def _main_features(
    weights_D: Tensor, is_fitted_W: Tensor, fitted: _Words, tested: _Words, letter: int
) -> list[int]:
    """Return the features of a letter: one more as long as F1 rises by more than 0.03."""
    ranked = weights_D.argsort(descending=True, stable=True)[:MOST_MAIN_FEATURES].tolist()
    acts_WK, tested_WK = fitted.dense(ranked), tested.dense(ranked)
    best, chosen = -torch.inf, 0
    for k in range(1, len(ranked) + 1):
        weight_K, bias = fit_few(acts_WK[:, :k], is_fitted_W)
        predicted_W = tested_WK[:, :k].double() @ weight_K + bias > 0
        score = f1_score(predicted_W, tested.letters_W == letter)
        if score <= best + F1_RISE:
            break
        best, chosen = score, k
    return ranked[:chosen]


def _measure(
    dictionary: Dictionary, x_WI: Tensor, probe_I: Tensor, main: Sequence[int]
) -> WordAbsorption:
    parts = []
    for start in range(0, len(x_WI), _WORDS_AT_ONCE):
        part_WI = x_WI[start : start + _WORDS_AT_ONCE]
        acts = dictionary.encode(part_WI)
        acts_WD = part_WI.new_zeros(len(part_WI), dictionary.n_features)
        acts_WD[acts.tokens_M, acts.features_M] = acts.values_M
        parts.append(
            absorption_of_words(
                acts_WD, part_WI, W_dec_DI=dictionary.W_dec_DO, probe_I=probe_I, main=main
            )
        )
    return WordAbsorption(
        torch.cat([each.fraction_W for each in parts]),
        torch.cat([each.is_full_W for each in parts]),
        torch.cat([each.projection_W for each in parts]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
