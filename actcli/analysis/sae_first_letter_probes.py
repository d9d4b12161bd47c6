"""Logistic probes: of activations, of all features with few weights, and of a few features.

All are fitted to their optimum, from zero, without chance: the same data give the same probes.

Tensor legend: W words, I input width, A letters that are probed, D features, M active features of
all words, K chosen features, C letters and a bias.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from actcli.saes.dictionary import SparseActs

_DECAY = 1e-4
"""Of the probes' squared weights, as SAEBench's."""

_SPARSITY = 0.01
"""Of the sum of a sparse probe's |weights|, as SAEBench's."""

_SPARSE_STEPS = 500
_SPARSE_CHANGE = 1e-5
"""Weights that move less than that, relative to the largest, have arrived."""

_NEWTON_STEPS = 100


def fit_probes(x_WI: Tensor, is_WA: Tensor) -> tuple[Tensor, Tensor]:
    """Fit one probe for each letter, against all other words; return weights (A, I), bias (A,).

    Minimises mean over words and letters of p_n log(1 + exp(-s_n z_n)) + 1e-4/2 |w|^2 by LBFGS in
    float64, where s is +1 for the letter and -1 for others and p the number of others divided by
    that of the letter for its words, 1 for others. Loss and decay are those of SAEBench's probes
    (Adam there). x is divided by its root mean square, and the weights are returned for x itself.
    """
    scale = x_WI.double().square().mean().sqrt().clamp_min(1e-30)
    z_WI, target_WA = x_WI.double() / scale, is_WA.double()
    weights_AC = torch.zeros(is_WA.shape[1], x_WI.shape[1] + 1, dtype=torch.float64)
    weights_AC = weights_AC.to(x_WI.device).requires_grad_()
    positive_A = _positive_weight(target_WA)

    def loss() -> Tensor:
        logits_WA = z_WI @ weights_AC[:, 1:].T + weights_AC[:, 0]
        decay = _DECAY / 2 * weights_AC[:, 1:].square().sum() / is_WA.shape[1]
        return decay + F.binary_cross_entropy_with_logits(
            logits_WA, target_WA, pos_weight=positive_A
        )

    _minimise(loss, weights_AC)
    found_AC = weights_AC.detach()
    return found_AC[:, 1:] / scale, found_AC[:, 0]


def sparse_weights(acts: SparseActs, is_WA: Tensor, *, n_features: int) -> Tensor:
    """Return the weights (A, D) of probes of all features that use few of them.

    Minimises for each letter mean over words of the loss of `fit_probes` + 0.01 sum |w|, as
    SAEBench does (Adam there; here accelerated proximal gradients, Beck and Teboulle 2009, with
    the step 1/L_f for each feature: L_f = mean over words of p/4 |a_f| (1 + sum_g |a_g|) bounds
    the curvature).
    """
    target_WA = is_WA.double()
    values_M1 = acts.values_M.double()[:, None]
    positive_A = _positive_weight(target_WA)
    step_DA, step_A = _steps(acts, torch.where(is_WA, positive_A, 1.0), n_features)
    weights_DA = values_M1.new_zeros(n_features, is_WA.shape[1])
    bias_A = torch.zeros_like(positive_A)
    ahead_DA, ahead_A, momentum = weights_DA, bias_A, 1.0
    for _ in range(_SPARSE_STEPS):
        logits_WA = ahead_A.expand_as(target_WA).index_add(
            0, acts.tokens_M, values_M1 * ahead_DA[acts.features_M]
        )
        slope_WA = _slope(logits_WA, target_WA, positive_A)
        slope_DA = torch.zeros_like(weights_DA).index_add_(
            0, acts.features_M, values_M1 * slope_WA[acts.tokens_M]
        )
        moved_DA = ahead_DA - step_DA * slope_DA
        moved_DA = moved_DA.sign() * (moved_DA.abs() - step_DA * _SPARSITY).clamp_min_(0)
        moved_A = ahead_A - step_A * slope_WA.sum(0)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        push, momentum = (momentum - 1) / following, following
        change = (moved_DA - weights_DA).abs().max()
        ahead_DA = moved_DA + push * (moved_DA - weights_DA)
        ahead_A = moved_A + push * (moved_A - bias_A)
        weights_DA, bias_A = moved_DA, moved_A
        if change <= _SPARSE_CHANGE * weights_DA.abs().max():
            break
    return weights_DA.T


def fit_few(acts_WK: Tensor, is_W: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a probe of a few features; return weights (K,) and bias ().

    Minimises |w|^2 / 2 + sum over words of c_n log(1 + exp(-s_n z_n)) by Newton's method in
    float64, where c gives the letter and the others half of the weight each, W in all: what
    scikit-learn's LogisticRegression(class_weight="balanced"), which SAEBench uses, minimises.
    """
    ones_W1 = acts_WK.new_ones(len(acts_WK), 1)
    columns_WC = torch.cat([ones_W1, acts_WK], dim=1).double()
    target_W = is_W.double()
    n, n_positive = len(target_W), target_W.sum()
    balance_W = torch.where(is_W, n / (2 * n_positive), n / (2 * (n - n_positive)))
    decay_C = columns_WC.new_ones(columns_WC.shape[1])
    decay_C[0] = 0

    def loss(weights_C: Tensor) -> Tensor:
        losses_W = F.binary_cross_entropy_with_logits(
            columns_WC @ weights_C, target_W, reduction="none"
        )
        return (balance_W * losses_W).sum() + (decay_C * weights_C.square()).sum() / 2

    weights_C = torch.zeros_like(decay_C)
    for _ in range(_NEWTON_STEPS):
        p_W = torch.sigmoid(columns_WC @ weights_C)
        slope_C = columns_WC.T @ (balance_W * (p_W - target_W)) + decay_C * weights_C
        curve_WC = columns_WC * (balance_W * p_W * (1 - p_W))[:, None]
        hessian_CC = columns_WC.T @ curve_WC + torch.diag(decay_C + 1e-12)
        step_C = torch.linalg.solve(hessian_CC, slope_C)
        now, length = loss(weights_C), 1.0
        while loss(weights_C - length * step_C) > now and length > 1e-10:
            length /= 2
        weights_C = weights_C - length * step_C
        if step_C @ slope_C < 1e-14 * (1 + now):
            break
    return weights_C[1:], weights_C[0]


def f1_score(predicted_W: Tensor, is_W: Tensor) -> float:
    """Return 2 TP / (2 TP + FP + FN); 0 where nothing is predicted or there."""
    true_positives = int((predicted_W & is_W).sum())
    total = int(predicted_W.sum()) + int(is_W.sum())
    return 2 * true_positives / total if total else 0.0


def _positive_weight(target_WA: Tensor) -> Tensor:
    n_A = target_WA.sum(0)
    return (len(target_WA) - n_A) / n_A


def _slope(logits_WA: Tensor, target_WA: Tensor, positive_A: Tensor) -> Tensor:
    """Return the derivative of the mean loss by each logit."""
    p_WA = torch.sigmoid(logits_WA)
    slope_WA: Tensor = p_WA * (1 - target_WA) - positive_A * (1 - p_WA) * target_WA
    return slope_WA / len(target_WA)


def _steps(acts: SparseActs, weight_WA: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """Return the steps 1/L of features (D, A) and of the biases (A,), words weighted."""
    sizes_M = acts.values_M.double().abs()
    total_W = sizes_M.new_ones(acts.n_tokens).index_add_(0, acts.tokens_M, sizes_M)
    weight_WA = weight_WA * total_W[:, None] / (4 * acts.n_tokens)
    curve_DA = weight_WA.new_zeros(n_features, weight_WA.shape[1]).index_add_(
        0, acts.features_M, sizes_M[:, None] * weight_WA[acts.tokens_M]
    )
    return torch.where(curve_DA > 0, 1 / curve_DA, 0.0), 1 / weight_WA.sum(0)


def _minimise(loss: Callable[[], Tensor], weights: Tensor) -> None:
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # not typed upstream
        return float(value.detach())

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]  # not typed upstream
