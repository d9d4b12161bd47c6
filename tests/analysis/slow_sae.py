"""The measures of a reconstruction, token by token in float64, from dense features.

Tensor legend: N tokens, I input width, D features, O target width.
"""

import math

import numpy as np


def slow_measures(t_NO, r_NO):
    """By field of `ReconstructionReport`, from target and reconstruction."""
    t, r = np.asarray(t_NO, np.float64), np.asarray(r_NO, np.float64)
    e, n, d = t - r, len(t), t.shape[1]
    mean_O, bias_O = t.sum(0) / n, e.sum(0) / n
    squares = math.fsum((e**2).ravel())
    variance = math.fsum(((t - mean_O) ** 2).ravel())
    one_mean = math.fsum(t.ravel()) / n / d
    dots = [math.fsum(a * b) for a, b in zip(t, r, strict=True)]
    lengths = [(_length(a), _length(b)) for a, b in zip(t, r, strict=True)]
    both = [dot / a / b for dot, (a, b) in zip(dots, lengths, strict=True) if a and b]
    legacy = [
        math.fsum(a**2) / math.fsum((b - mean_O) ** 2)
        for a, b in zip(e, t, strict=True)
        if ((b - mean_O) ** 2).sum()
    ]
    squares_in, squares_out = math.fsum((t**2).ravel()), math.fsum((r**2).ravel())
    return {
        "mse": squares / n / d,
        "mse_per_token": squares / n,
        "mae": math.fsum(np.abs(e).ravel()) / n / d,
        "fvu": squares / variance,
        "explained_variance": 1 - squares / variance,
        "explained_variance_centered": 1 - math.fsum(((e - bias_O) ** 2).ravel()) / variance,
        "explained_variance_legacy": 1 - math.fsum(legacy) / len(legacy),
        "fvu_scalar_mean": squares / math.fsum(((t - one_mean) ** 2).ravel()),
        "fvu_about_zero": squares / squares_in,
        "cosine_similarity": math.fsum(both) / len(both),
        "cosine_flat": math.fsum(dots) / math.sqrt(squares_in * squares_out),
        "l2_norm_in": sum(a for a, _b in lengths) / n,
        "l2_norm_out": sum(b for _a, b in lengths) / n,
        "l2_ratio": np.mean([b / a for a, b in lengths if a]),
        "relative_reconstruction_bias": squares_out / math.fsum(dots),
    }


def slow_activity(acts_ND):
    """By field of the other reports, from dense features."""
    acts = np.asarray(acts_ND, np.float64)
    l0 = sorted(sum(1 for each in row if each) for row in acts)
    fired_D = [sum(1 for each in column if each) for column in acts.T]
    n, some = len(acts), acts[acts != 0]
    mean = sum(l0) / n
    return {
        "mean_l0": mean,
        "median_l0": l0[(n - 1) // 2],
        "l0_std": math.sqrt(sum((each - mean) ** 2 for each in l0) / (n - 1)),
        "min_l0": l0[0],
        "max_l0": l0[-1],
        "mean_l1": math.fsum(np.abs(acts).ravel()) / n,
        "dead_count": sum(1 for each in fired_D if not each),
        "dense_1_percentage": 100 * sum(each > 0.01 * n for each in fired_D) / len(fired_D),
        "dense_10_percentage": 100 * sum(each > 0.1 * n for each in fired_D) / len(fired_D),
        "max_activation": some.max(),
        "mean_activation": math.fsum(some) / len(some),
        "n_active": len(some),
        "densities": [each / n for each in fired_D],
    }


def slow_features(dictionary, x_NI):
    """Dense features and reconstruction of a dictionary, in float64."""
    x = np.asarray(x_NI, np.float64)
    W, b = dictionary.W_enc_ID.double().numpy(), dictionary.b_enc_D.double().numpy()
    z = x if dictionary.centre_I is None else x - dictionary.centre_I.double().numpy()
    pre = z @ W + b
    threshold = 0.0
    if dictionary.activation.threshold_D is not None:
        threshold = np.maximum(dictionary.activation.threshold_D.double().numpy(), 0)
    acts = np.where(pre > threshold, pre, 0)
    return acts, acts @ dictionary.W_dec_DO.double().numpy() + dictionary.b_dec_O.double().numpy()


def _length(a):
    return math.sqrt(math.fsum(a**2))
