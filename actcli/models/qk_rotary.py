"""Rotary positions: which tables a model turns queries and keys by, and which dims are a plane.

A rotary embedding turns plane r of a head, two of its D dims, by the angle of the token's position:

    (a, b) -> (a cos - b sin, b cos + a sin)

(Su et al. 2021, "RoFormer"). Architectures differ in which dims are a plane, in how wide the tables
are (one column per plane, or each column twice), and in how many dims pass through. What there is
to choose from is listed here; which one a model means, its attention weights tell (`qk_rule`).

Tensor legend: T tokens, P positions, D head width, R rotary planes, W columns of a table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

_ROUNDING = 0.05  # of the squared radius, in the coarsest dtype that tables come in

Columns = Literal["halves", "pairs", "all"]
Planes = Literal["halves", "pairs"]


@dataclass(frozen=True)
class Rotary:
    """How a layer turns its queries and keys."""

    table: str
    """Name of the argument, or buffer, of the attention module that holds cos and sin."""

    columns: Columns
    """Which of its columns are one per plane: the first half, every second one, or all."""

    planes: Planes
    """Whether dim m of a head turns with dim m + R, or dim 2m with dim 2m + 1."""

    planes_R2: Tensor
    """int64: the two dims of each plane; all other dims pass through."""

    def __str__(self) -> str:
        return f"{self.table} ({self.columns} of its columns, planes in {self.planes})"

    def tables(self, given: Mapping[str, Any], n_tokens: int) -> tuple[Tensor, Tensor] | None:
        """Angles of the tokens as cos and sin (T, R), in float32.

        Args:
            given: what the attention module was called with, by name.
            n_tokens: T.

        Returns:
            None where that holds no such tables.
        """
        found = _as_tables(given.get(self.table), n_tokens)
        if found is None:
            return None
        cos_TR, sin_TR = (_chosen(each, self.columns) for each in found)
        return (cos_TR, sin_TR) if cos_TR.shape[-1] == len(self.planes_R2) else None


def rotaries(given: Mapping[str, Any], n_tokens: int, head_width: int) -> Iterator[Rotary]:
    """Every way to turn heads of this width by the tables among what attention was given."""
    for name, value in given.items():
        found = _as_tables(value, n_tokens)
        if found is None:
            continue
        for columns in _possible(*found):
            n_planes = _chosen(found[0], columns).shape[-1]
            if 2 * n_planes <= head_width:
                dims = torch.arange(2 * n_planes)
                yield Rotary(name, columns, "halves", dims.reshape(2, -1).T.contiguous())
                yield Rotary(name, columns, "pairs", dims.reshape(-1, 2))


def turned(vectors: Tensor, planes_R2: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn vectors (..., D) by angles whose cos and sin are (..., R)."""
    first, second = planes_R2.to(vectors.device).unbind(-1)
    a, b = vectors[..., first], vectors[..., second]
    out = (vectors + 0 * cos[..., :1]).clone()  # of the shape that both broadcast to
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out


def _as_tables(value: Any, n_tokens: int) -> tuple[Tensor, Tensor] | None:
    """Cos and sin (T, W): a pair of tensors, a complex one, or a buffer of both side by side."""
    if isinstance(value, Tensor) and value.is_complex():
        value = (value.real, value.imag)
    elif isinstance(value, Tensor) and value.ndim == 2 and value.shape[-1] % 2 == 0:
        value = value.chunk(2, dim=-1)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return None
    cos_TW, sin_TW = (_by_position(each, n_tokens) for each in value)
    if cos_TW is None or sin_TW is None or cos_TW.shape != sin_TW.shape:
        return None
    if not cos_TW[0].any():  # the first token is not turned: what is 0 there, is the sine
        cos_TW, sin_TW = sin_TW, cos_TW
    if sin_TW[0].any() or not _on_circles(cos_TW, sin_TW):
        return None
    return cos_TW, sin_TW


def _by_position(value: Any, n_tokens: int) -> Tensor | None:
    """The first T rows, if it is one row of numbers per position."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return None
    if value.shape[-2] < n_tokens or value.shape[:-2].numel() != 1 or value.shape[-1] == 0:
        return None
    return value.detach().float().reshape(value.shape[-2:])[:n_tokens]


def _on_circles(cos_TW: Tensor, sin_TW: Tensor) -> bool:
    """Whether every column keeps its radius (1, or the factor of a scaled embedding)."""
    radius_TW = cos_TW.square() + sin_TW.square()
    return bool((radius_TW - radius_TW[:1]).abs().max() <= _ROUNDING * radius_TW.max())


def _possible(cos_TW: Tensor, sin_TW: Tensor) -> Iterator[Columns]:
    both_TW = torch.cat([cos_TW, sin_TW])
    if both_TW.shape[-1] % 2 == 0:
        if torch.equal(*both_TW.chunk(2, dim=-1)):
            yield "halves"
        if torch.equal(both_TW[:, 0::2], both_TW[:, 1::2]):
            yield "pairs"
    yield "all"


def _chosen(table_TW: Tensor, columns: Columns) -> Tensor:
    if columns == "all":
        return table_TW
    return table_TW[:, 0::2] if columns == "pairs" else table_TW.chunk(2, dim=-1)[0]
