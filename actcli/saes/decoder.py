"""Sums of decoder rows, weighted with the features that are active.

Tensor legend: N tokens, D features, O output width, M active features of all tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_DENSE = 0.1
"""Above this share of active features, a dense product is faster than adding rows up."""

_BUFFER_BYTES = 64 << 20


def weighted_rows(
    tokens_M: Tensor, features_M: Tensor, values_M: Tensor, W_DO: Tensor, *, n_tokens: int
) -> Tensor:
    """Return a @ W (N, O) for features a that are given as a list, by token.

    Args:
        tokens_M: int64, rising.
        features_M: int64, rows of W.
        values_M: float32.
        W_DO: Decoder rows.
        n_tokens: N.
    """
    counts_N = torch.bincount(tokens_M, minlength=n_tokens)
    starts_N = counts_N.cumsum(0) - counts_N
    if len(values_M) <= _DENSE * n_tokens * len(W_DO):
        return F.embedding_bag(
            features_M, W_DO, offsets=starts_N, per_sample_weights=values_M, mode="sum"
        )
    found_NO = W_DO.new_empty(n_tokens, W_DO.shape[1])
    step = max(1, _BUFFER_BYTES // (4 * len(W_DO)))
    for first in range(0, n_tokens, step):
        stop = min(first + step, n_tokens)
        last = int(starts_N[stop]) if stop < n_tokens else len(values_M)
        part = slice(int(starts_N[first]), last)
        acts_ND = W_DO.new_zeros(stop - first, len(W_DO))
        acts_ND[tokens_M[part] - first, features_M[part]] = values_M[part]
        torch.mm(acts_ND, W_DO, out=found_NO[first:stop])
    return found_NO
