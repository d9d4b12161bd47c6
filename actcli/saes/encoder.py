"""From the vectors that an encoder reads to the list of features that are active.

Pre-activations are computed for so many tokens at once that they fit into one buffer, which is
used again. Where a processor multiplies bfloat16 much faster than float32, features that cannot be
active are told by a product in bfloat16 (`actcli.saes.prefilter`), and the others computed in
float32: the list is the same.

Tensor legend: N tokens, I input width, D features, M active features of all tokens, C candidates.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from actcli.saes.activations import Activation, Elementwise, Gated, Threshold, TopK
from actcli.saes.prefilter import Prefilter, is_worth_while, places

BUFFER_BYTES = 96 << 20
_DENSE = 0.2
"""Above this share of candidates, float32 for all of them is faster."""

_MISSES = 3
_SLACK = 1e-6


class Active(NamedTuple):
    """Active features by token, then by feature; values float32, never 0."""

    tokens_M: Tensor
    features_M: Tensor
    values_M: Tensor


class Encoder:
    """a = activation((z @ W_enc + b_enc) * scale), as a list.

    What is prepared for it once stays in memory: for the product in bfloat16 a copy of W_enc in
    that type, and a transposed one if its columns are not contiguous.
    """

    def __init__(
        self,
        W_ID: Tensor,
        b_D: Tensor,
        activation: Activation,
        *,
        scale_D: Tensor | None = None,
        prefilter: bool | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Prepare.

        Args:
            W_ID: Encoder weights, float32.
            b_D: Their bias.
            activation: What is applied to the pre-activations.
            scale_D: What these are multiplied with.
            prefilter: Whether to tell inactive features in bfloat16; None for where it is faster.
            buffer_bytes: For pre-activations.
        """
        self._W_ID, self._b_D, self._scale_D = W_ID, b_D, scale_D
        self._activation = activation
        self._buffer_bytes = buffer_bytes
        self._buffer = torch.empty(0, device=W_ID.device)
        self._mask = torch.empty(0, device=W_ID.device, dtype=torch.bool)
        self._misses = 0
        self._prefilter: Prefilter | None = None
        if isinstance(activation, Threshold | Gated) and (
            is_worth_while(W_ID) if prefilter is None else prefilter
        ):
            self._prefilter = Prefilter.of(W_ID, b_D, activation.floor(), scale_D=scale_D)

    @property
    def is_prefiltered(self) -> bool:
        """Whether features are told in bfloat16 first."""
        return self._prefilter is not None

    @torch.no_grad()
    def __call__(self, z_NI: Tensor) -> Active:
        """Return the active features of vectors (N, I)."""
        parts, first = [], 0
        for chunk_NI in self._chunks(z_NI):
            active = self._chunk(chunk_NI)
            parts.append(active._replace(tokens_M=active.tokens_M + first) if first else active)
            first += len(chunk_NI)
        if len(parts) == 1:
            return parts[0]
        return Active(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _chunks(self, z_NI: Tensor) -> Iterator[Tensor]:
        size = 4 if self._prefilter is None else 2
        most = max(1, self._buffer_bytes // (size * len(self._b_D)))
        pieces = max(1, -(-len(z_NI) // most))
        yield from z_NI.chunk(pieces)

    def _chunk(self, z_NI: Tensor) -> Active:
        if self._prefilter is not None and isinstance(self._activation, Threshold | Gated):
            found = self._prefilter(z_NI, most=int(_DENSE * len(z_NI) * len(self._b_D)))
            if found is not None:
                return _by_token(self._settle(self._activation, *found))
            self._misses += 1
            if self._misses == _MISSES:
                self._prefilter = None
            halves = z_NI.chunk(2)
            parts = [self._dense(each) for each in halves]
            parts[1:] = [
                each._replace(tokens_M=each.tokens_M + len(halves[0])) for each in parts[1:]
            ]
            return Active(*(torch.cat(each) for each in zip(*parts, strict=True)))
        return self._dense(z_NI)

    def _dense(self, z_NI: Tensor) -> Active:
        """All pre-activations in float32."""
        pre_ND = self._room(len(z_NI))
        if isinstance(self._activation, Threshold | Gated):
            torch.mm(z_NI, self._W_ID, out=pre_ND)
            return self._above_floor(self._activation, pre_ND)
        torch.addmm(self._b_D, z_NI, self._W_ID, out=pre_ND)
        if self._scale_D is not None:
            pre_ND *= self._scale_D
        if isinstance(self._activation, TopK):
            return _picked(*self._activation.pick(pre_ND))
        acts_ND = self._activation(pre_ND)
        tokens_M, features_M = acts_ND.nonzero(as_tuple=True)
        return Active(tokens_M, features_M, acts_ND[tokens_M, features_M])

    def _above_floor(self, activation: Elementwise, products_ND: Tensor) -> Active:
        """Bias and scale come only to products that may be active: the rest is read once."""
        mask_ND = self._mask[: products_ND.numel()].view(products_ND.shape)
        torch.gt(products_ND, self._floor(activation), out=mask_ND)
        index_C = places(mask_ND)
        tokens_C = index_C // products_ND.shape[1]
        features_C = index_C - tokens_C * products_ND.shape[1]
        return self._settle(activation, tokens_C, features_C, products_ND.flatten()[index_C])

    def _floor(self, activation: Elementwise) -> Tensor:
        """What z @ W must be above for a feature to be active, less rounding, (D,)."""
        floor_D = torch.as_tensor(activation.floor(), device=self._b_D.device)
        if self._scale_D is not None:
            floor_D = torch.where(self._scale_D > 0, floor_D / self._scale_D, -torch.inf)
        return floor_D - self._b_D - _SLACK * (floor_D.abs() + self._b_D.abs())

    def _room(self, n: int) -> Tensor:
        needed = n * len(self._b_D)
        if self._buffer.numel() < needed:
            self._buffer = torch.empty(needed, device=self._W_ID.device)
            self._mask = torch.empty(needed, device=self._W_ID.device, dtype=torch.bool)
        return self._buffer[:needed].view(n, len(self._b_D))

    def _settle(
        self, activation: Elementwise, tokens_C: Tensor, features_C: Tensor, products_C: Tensor
    ) -> Active:
        """What the candidates become, given their z.w."""
        pre_C = products_C + self._b_D[features_C]
        if self._scale_D is not None:
            pre_C = pre_C * self._scale_D[features_C]
        return _without_zeros(tokens_C, features_C, activation.of_features(features_C)(pre_C))


def _by_token(active: Active) -> Active:
    order_M = active.tokens_M.argsort(stable=True)
    return Active(*(each[order_M] for each in active))


def _without_zeros(tokens_C: Tensor, features_C: Tensor, values_C: Tensor) -> Active:
    kept_M = values_C.nonzero()[:, 0]
    if len(kept_M) == len(values_C):
        return Active(tokens_C, features_C, values_C)
    return Active(tokens_C[kept_M], features_C[kept_M], values_C[kept_M])


def _picked(features_NK: Tensor, values_NK: Tensor) -> Active:
    features_NK, order_NK = features_NK.sort(dim=-1)
    values_NK = values_NK.gather(-1, order_NK)
    tokens_M, places_M = values_NK.nonzero(as_tuple=True)
    return Active(tokens_M, features_NK[tokens_M, places_M], values_NK[tokens_M, places_M])
