"""Rotary position embedding as planes: which two numbers of a head turn together, and how far.

At position t the plane m of a vector w turns as R_t w = (w1 cos - w2 sin, w2 cos + w1 sin), with
the tables' own cos and sin of (t, m); what a table was scaled with stays inside. Dimensions in no
plane pass. All vectors here have their dimensions in a new order: the planes' first, their second,
the rest; a dot product does not mind.

Tensor legend: T tokens, D head width, R planes, N pairs; `_` any axes.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """The planes of a head, and their tables at some positions."""

    order_D: Tensor
    """int64: old places of the dimensions."""

    cos_TR: Tensor
    sin_TR: Tensor
    """(T, 0) where nothing turns."""

    @classmethod
    def of(cls, planes_R2: Tensor | None, tables: tuple[Tensor, Tensor], *, width: int) -> Self:
        """Make it from a model's planes and its cos and sin (T, R); without planes, R is 0."""
        cos_TR, sin_TR = (each.float() for each in tables)
        if planes_R2 is None:
            return cls(torch.arange(width, device=cos_TR.device), cos_TR[:, :0], sin_TR[:, :0])
        turning = planes_R2.T.reshape(-1)
        passes = torch.ones(width, dtype=torch.bool, device=turning.device)
        passes[turning] = False
        return cls(torch.cat([turning, passes.nonzero()[:, 0]]), cos_TR, sin_TR)

    @property
    def n_planes(self) -> int:
        """R."""
        return self.cos_TR.shape[1]

    @property
    def growth_R(self) -> Tensor:
        """How much longer a plane's vector gets at most, over the positions."""
        return torch.hypot(self.cos_TR, self.sin_TR).amax(dim=0)

    def at(self, tokens: Tensor | slice) -> Self:
        """The tables of some positions (numbers)."""
        return type(self)(self.order_D, self.cos_TR[tokens], self.sin_TR[tokens])

    def ordered(self, vectors__D: Tensor) -> Tensor:
        """Bring a model's vectors into this order."""
        return vectors__D[..., self.order_D]

    def split(self, vectors__D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First and second dimensions of the planes, and the rest."""
        n = self.n_planes
        return vectors__D[..., :n], vectors__D[..., n : 2 * n], vectors__D[..., 2 * n :]

    def turned(self, vectors__TD: Tensor) -> Tensor:
        """R_t w of a vector for each position."""
        return self._turn(vectors__TD, self.sin_TR)

    def turned_back(self, vectors__TD: Tensor) -> Tensor:
        """The transpose of R_t on q: <q, R_t w> is <turned back q, w>."""
        return self._turn(vectors__TD, -self.sin_TR)

    def waves(self, q_ND: Tensor, k_ND: Tensor) -> Tensor:
        """<q, R_t k> of pairs for all positions, (N, T), from two numbers for each plane.

        A = q1 k1 + q2 k2 goes with cos, B = q2 k1 - q1 k2 with sin, the rest with 1.
        """
        (q1, q2, q_rest), (k1, k2, k_rest) = self.split(q_ND), self.split(k_ND)
        cos_RT, sin_RT = self.cos_TR.T.to(q_ND.dtype), self.sin_TR.T.to(q_ND.dtype)
        waves_NT = (q1 * k1 + q2 * k2) @ cos_RT
        waves_NT += (q2 * k1 - q1 * k2) @ sin_RT
        waves_NT += (q_rest * k_rest).sum(dim=-1, keepdim=True)
        return waves_NT

    def _turn(self, vectors__TD: Tensor, sin_TR: Tensor) -> Tensor:
        first, second, rest = self.split(vectors__TD)
        cos, sin = self.cos_TR.to(first.dtype), sin_TR.to(first.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
