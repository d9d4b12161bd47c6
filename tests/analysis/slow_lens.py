"""The statistics of a lens, one row and one token at a time, in float64 with exact sums.

Tensor legend: as in `actcli.analysis.lens_statistics`.
"""

import math

import numpy as np


def slow_statistics(logits_V, final_V, target, k):
    """By column name, for the logits of one row and the final state's."""
    logits, final = [list(map(float, each)) for each in (logits_V, final_V)]
    p, q = _softmax(logits), _softmax(final)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    order = sorted(range(len(p)), key=lambda token: (-logits[token], token))[:k]
    dot = math.fsum(a * b for a, b in zip(logits, final, strict=True))
    lengths = math.sqrt(math.fsum(a * a for a in logits)) * math.sqrt(
        math.fsum(b * b for b in final)
    )
    return {
        "top_ids": order,
        "top_p": [p[token] for token in order],
        "rest_mass": math.fsum(p[token] for token in range(len(p)) if token not in order),
        "top1_agree": order[0] == min(range(len(q)), key=lambda token: (-final[token], token)),
        "entropy_bits": -math.fsum(a * math.log2(a) for a in p if a),
        "kl_to_final_bits": _kl(logits, final),
        "kl_from_final_bits": _kl(final, logits),
        "js_bits": (_plain_kl(p, m) + _plain_kl(q, m)) / 2,
        "cos_to_final": dot / lengths if lengths else np.nan,
        "p_target": p[target],
        "nll_target_bits": -_log_softmax(logits)[target] / math.log(2),
        "rank_target": 1 + sum(each > logits[target] for each in logits),
    }


def _log_softmax(logits):
    most = max(logits)
    log_sum = math.log(math.fsum(math.exp(each - most) for each in logits))
    return [each - most - log_sum for each in logits]


def _softmax(logits):
    return [math.exp(each) for each in _log_softmax(logits)]


def _kl(first, second):
    logs = zip(_log_softmax(first), _log_softmax(second), strict=True)
    return math.fsum(math.exp(a) * (a - b) for a, b in logs) / math.log(2)


def _plain_kl(p, m):
    return math.fsum(a * math.log2(a / b) for a, b in zip(p, m, strict=True) if a)
