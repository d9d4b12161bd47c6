"""Which features may be active, told by one product in bfloat16, and their products in float32.

With z~ and w~ rounded to bfloat16, dz = z - z~, dw = w - w~, and u = 2^-24 the rounding of the
float32 sums inside the product of K terms (products of two bfloat16 are exact in float32):

    |z.w - fl(z~.w~)| <= |dz| |w| + |z~| |dw| + K u |z~| |w~|

by Cauchy and Schwarz. The lengths of the roundings are measured: they are less than half of the
2^-8 of each number that is the most they can be. Feature d of token n may be active only if z.w + b
is above its floor f, so only if z~.w~ + (b - f) + that margin is above 0. All of it is one product:
z~ is lengthened by (1, 1, 1, |dz|, |z~|, 1), w~ by (b - f in three parts of bfloat16, |w|,
|dw| + K u |w~|, slack). Its result is rounded to bfloat16 too, which never changes a sign, and the
sign is all that is read.

Candidates are then multiplied in float32, feature by feature: each column of W_enc is read once
for all its tokens, and the tokens of a chunk stay in the cache.

Tensor legend: N tokens, I input width, D features, C candidates, A augmented width.
"""

import time
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_EXTRA = 32
"""Columns that are appended; a multiple of what kernels take at once."""

_UNIT = 2.0**-24
_UP = 1 + 2.0**-7
"""What a number is multiplied with before it is rounded to bfloat16, not to become smaller."""

_SMALL, _LARGE = 2.0**-40, 2.0**40
"""Between these, squares and products neither underflow nor overflow."""

_FASTER = 0.7
_BLOCK = 1024
_WORTH_WHILE = 1 << 20


class Prefilter:
    """Prepared weights of one encoder."""

    def __init__(self, W_DI: Tensor, augmented_DA: Tensor) -> None:
        """Take W_enc with contiguous columns, and augmented; `of` makes them."""
        self._W_DI, self._augmented_DA = W_DI, augmented_DA
        self._room = torch.empty(0, dtype=torch.bfloat16)
        self._mask = torch.empty(0, dtype=torch.bool)
        self._tokens = torch.empty(0, augmented_DA.shape[1], dtype=torch.bfloat16)
        self._rounded = torch.empty(0, W_DI.shape[1])

    @classmethod
    def of(
        cls,
        W_ID: Tensor,
        b_D: Tensor,
        floor: Tensor | float,
        *,
        scale_D: Tensor | None,
    ) -> "Prefilter | None":
        """Prepare; None where the bound would not hold, or the product does not sum in float32.

        Args:
            W_ID: Encoder weights.
            b_D: Their bias.
            floor: No feature is active unless (z @ W + b) * scale is above it, (D,) or ().
            scale_D: Positive, else None is returned; None for 1.
        """
        floor_D = torch.as_tensor(floor, dtype=torch.float32).expand(len(b_D))
        if scale_D is not None:
            floor_D = floor_D / scale_D
        W_DI = W_ID.t().contiguous()
        finite = torch.stack([b_D, floor_D]).abs().max() < _LARGE
        positive = scale_D is None or bool((scale_D > 0).all())
        if not (finite and positive and _in_range(W_DI) and _sums_in_float32(len(W_ID))):
            return None
        augmented_DA = torch.zeros(len(b_D), len(W_ID) + _EXTRA, dtype=torch.bfloat16)
        for first in range(0, len(b_D), _BLOCK):
            rows = slice(first, first + _BLOCK)
            _augment_weights(augmented_DA[rows], W_DI[rows], b_D[rows], floor_D[rows])
        return cls(W_DI, augmented_DA)

    def __call__(self, z_NI: Tensor, *, most: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the candidates of some tokens (N, I), by feature and then by token.

        Args:
            z_NI: What the encoder reads; so many tokens that their products fit the buffer.
            most: How many candidates there may be.

        Returns:
            Token, feature and z.w of each (C,); None if there are more candidates, or tokens of a
            length for which the bound does not hold.
        """
        tokens_NA = self._augmented(z_NI)
        if tokens_NA is None:
            return None
        n, n_features = len(z_NI), len(self._W_DI)
        if self._room.numel() < n * n_features:
            self._room = torch.empty(n * n_features, dtype=torch.bfloat16)
            self._mask = torch.empty(n * n_features, dtype=torch.bool)
        products_DN = self._room[: n * n_features].view(n_features, n)
        torch.mm(self._augmented_DA, tokens_NA.t(), out=products_DN)
        mask_DN = torch.gt(products_DN, 0, out=self._mask[: n * n_features].view(n_features, n))
        index_C = places(mask_DN)
        if len(index_C) > most:
            return None
        features_C = index_C // n
        tokens_C = index_C - features_C * n
        return tokens_C, features_C, self._products(z_NI, tokens_C, features_C)

    def _augmented(self, z_NI: Tensor) -> Tensor | None:
        n, width = z_NI.shape
        if len(self._tokens) < n:
            self._tokens = torch.zeros(n, width + _EXTRA, dtype=torch.bfloat16)
            self._rounded = torch.empty(n, width)
        out_NA, rounded_NI = self._tokens[:n], self._rounded[:n]
        out_NA[:, :width] = z_NI
        rounded_NI.copy_(out_NA[:, :width])
        if not _in_range(rounded_NI):
            return None
        length_N = torch.linalg.vector_norm(rounded_NI, dim=-1)
        lost_N = torch.linalg.vector_norm(rounded_NI.sub_(z_NI), dim=-1)
        out_NA[:, width : width + 3] = 1
        out_NA[:, width + 3] = lost_N * _UP
        out_NA[:, width + 4] = length_N * _UP
        out_NA[:, width + 5] = 1
        return out_NA

    def _products(self, z_NI: Tensor, tokens_C: Tensor, features_C: Tensor) -> Tensor:
        ends_D = torch.bincount(features_C, minlength=len(self._W_DI)).cumsum(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            wanted = torch.sparse_csr_tensor(
                torch.cat([ends_D.new_zeros(1), ends_D]),
                tokens_C,
                torch.zeros(len(tokens_C)),
                (len(self._W_DI), len(z_NI)),
                check_invariants=False,
            )
        found: Tensor = torch.sparse.sampled_addmm(wanted, self._W_DI, z_NI.t(), beta=0.0)
        return found.values()


def places(mask: Tensor) -> Tensor:
    """Return the places of all true elements of a contiguous mask, as if it had one dimension."""
    if mask.device.type == "cpu":  # numpy is several times faster at this than torch
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def is_worth_while(W_ID: Tensor) -> bool:
    """Whether the product is large, and faster in bfloat16 on this device."""
    return W_ID.device.type == "cpu" and W_ID.numel() >= _WORTH_WHILE and _is_faster()


def _augment_weights(out_DA: Tensor, W_DI: Tensor, b_D: Tensor, floor_D: Tensor) -> None:
    width = W_DI.shape[1]
    sums = (width + _EXTRA) * _UNIT * 1.01
    out_DA[:, :width] = W_DI
    rounded_DI = out_DA[:, :width].float()
    length_D = torch.linalg.vector_norm(rounded_DI, dim=-1)
    lost_D = torch.linalg.vector_norm(W_DI - rounded_DI, dim=-1)
    rest_D = b_D - floor_D
    slack_D = 2 * sums * (b_D.abs() + floor_D.abs())
    for place in range(3):
        out_DA[:, width + place] = rest_D
        rest_D = rest_D - out_DA[:, width + place].float()
    out_DA[:, width + 3] = torch.linalg.vector_norm(W_DI, dim=-1) * _UP
    out_DA[:, width + 4] = (lost_D + 2 * sums * length_D) * _UP
    out_DA[:, width + 5] = slack_D * _UP


def _in_range(vectors: Tensor) -> bool:
    """Whether the largest number of each row is 0, or far from where float32 ends."""
    most = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=-1)
    return bool(((most == 0) | ((most > _SMALL) & (most < _LARGE))).all())


@lru_cache
def _sums_in_float32(width: int) -> bool:
    """Whether a small term survives between large ones that cancel."""
    terms_I = torch.ones(width + _EXTRA)
    half = (len(terms_I) - 1) // 2
    terms_I[0] = 2.0**-10
    terms_I[1 + half : 1 + 2 * half] = -1
    terms_I[1 + 2 * half :] = 0
    rows_NI = terms_I.expand(64, -1).bfloat16().contiguous()
    found_NN = torch.mm(rows_NI, torch.ones_like(rows_NI).t())
    return bool((found_NN == 2.0**-10).all())


@lru_cache
def _is_faster() -> bool:
    """Measure once: processors with bfloat16 units gain a factor of two and more."""
    one, two = torch.ones(256, 1024), torch.ones(1024, 1024)
    half, other = one.bfloat16(), two.bfloat16()
    full_s = _shortest(lambda: torch.mm(one, two))
    return _shortest(lambda: torch.mm(half, other)) < _FASTER * full_s


def _shortest(work: Callable[[], object], rounds: int = 5) -> float:
    taken = []
    for _round in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
