"""Decompositions that need no training: the singular vectors of a model's own Q and K.

    svd[:r]        W = sum over c of s_c u_c v_c^T, of the whole projection: components of all heads
    svd-head[:r]   the same for the rows of each head: a component writes in one head alone

Component c reads along v_c (unit length) and writes along s_c u_c. They come by falling singular
value, in `svd-head` head after head: component c is the (c mod r)-th of head c // r. A singular
vector has no sign of its own: the largest number of v_c is made positive.

Tensor legend: H hidden, C components, O outputs, D head width.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from actcli.decompositions.factors import Factors, Side
from actcli.errors import UsageError

if TYPE_CHECKING:
    from actcli.models.qk import QkLayer

Kind = Literal["svd", "svd-head"]


class SingularVectors:
    """The singular vectors of Q and K of every layer; each layer is computed once."""

    def __init__(self, kind: Kind, *, rank: int | None, n_layers: int) -> None:
        """Compute nothing yet.

        Args:
            kind: of the whole projection, or of each head.
            rank: how many components, in `svd-head` per head; None for all.
            n_layers: layers of the model.

        Raises:
            UsageError: the rank is below 1.
        """
        if rank is not None and rank < 1:
            raise UsageError(f"{kind}:{rank} asks for no components; give a rank of at least 1")
        self._kind, self._rank, self._n_layers = kind, rank, n_layers
        self._known: dict[tuple[int, Side], Factors] = {}

    @property
    def name(self) -> str:
        """`svd:8` and the like."""
        return self._kind if self._rank is None else f"{self._kind}:{self._rank}"

    def layers(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self._n_layers))

    def factors(self, layer: "QkLayer", side: Side) -> Factors:
        """The leading singular vectors of one side.

        Raises:
            UsageError: the weights have no so high a rank.
        """
        key = (layer.layer, side)
        if key not in self._known:
            self._known[key] = self._computed(layer, side)
        return self._known[key]

    def ci_modules(self, layer: "QkLayer", side: Side) -> tuple[str, ...]:
        """None: singular vectors have no causal importances."""
        del layer, side
        return ()

    def causal_importance(
        self, inputs_by_module: Mapping[str, Tensor], layer: "QkLayer", side: Side
    ) -> None:
        """None."""
        del inputs_by_module, layer, side

    def _computed(self, layer: "QkLayer", side: Side) -> Factors:
        weight_OH = (layer.q if side == "q" else layer.k).weight_OH.to(torch.float32)
        n_outputs = weight_OH.shape[0]
        width = n_outputs if self._kind == "svd" else layer.head_width
        most = min(width, weight_OH.shape[1])
        rank = most if self._rank is None else self._rank
        if rank > most:
            raise UsageError(
                f"{self.name}: {side} of layer {layer.layer} has rank {most} at most"
                f"{'' if self._kind == 'svd' else ' in each head'}; give {self._kind}:{most}"
            )
        parts = weight_OH.view(-1, width, weight_OH.shape[1]).unbind()
        blocks = [_leading(part_DH, rank) for part_DH in parts]
        U_CO = torch.zeros(rank * len(blocks), n_outputs)
        for number, (_V, U_CD) in enumerate(blocks):
            U_CO[number * rank :][:rank, number * width :][:, :width] = U_CD
        V_HC = torch.cat([V for V, _U in blocks], dim=1)
        return Factors(V_HC, U_CO, ids_C=tuple(range(len(U_CO))))


def _leading(weight_OH: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """V (H, C) and U (C, O) of the largest singular values."""
    left_OC, values_C, right_CH = torch.linalg.svd(weight_OH, full_matrices=False)
    largest_C1 = right_CH.abs().argmax(dim=1, keepdim=True)
    sign_C1 = right_CH.gather(1, largest_C1).sign()
    U_CO = sign_C1 * values_C[:, None] * left_OC.T
    return (sign_C1 * right_CH)[:rank].T.contiguous(), U_CO[:rank].contiguous()
