"""All pairs at one query, unmaterialised: c[h, i, j, t] = b[t, j] <q[h, i], R_t w[j]>.

Head h reads its key head's w and b. Whatever is asked for, heads x C x C x keys are never held.

Tensor legend: A query heads, K key heads, D head width, C components (of either side), P keys that
the query sees, N pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.analysis.qk_parts import KeyParts
from actcli.analysis.qk_rotation import Rotation


@dataclass(frozen=True)
class Grid:
    """The two sides at the keys that one query sees."""

    q_ACD: Tensor
    """q: with activation, norm, rotation and scale in it."""

    k_KCD: Tensor
    """w: not turned."""

    strength_PC: Tensor
    """b without the norm's part."""

    ratio_PK: Tensor
    """The norm's part of b."""

    rotation: Rotation
    """At the keys."""

    kv_heads: tuple[int, ...]
    """The key head of each query head."""

    whole_PKD: Tensor | None = None
    """If the key side is not decomposed: its one component, turned."""

    @classmethod
    def of(
        cls, q_ACD: Tensor, keys: KeyParts, rotation: Rotation, kv_head_A: Tensor, keys_P: Tensor
    ) -> "Grid":
        """Make it of a query's rows and of the key side at the keys it sees."""
        at_keys = rotation.at(keys_P)
        whole = at_turned(at_keys, keys.kinds["component"][keys_P]) if keys.exact else None
        return cls(
            q_ACD=q_ACD,
            k_KCD=keys.rows_KCD,
            strength_PC=keys.strength_TC[keys_P],
            ratio_PK=keys.ratio_TK[keys_P],
            rotation=at_keys,
            kv_heads=tuple(kv_head_A.tolist()),
            whole_PKD=whole,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Components of the two sides."""
        n_k = 1 if self.whole_PKD is not None else self.k_KCD.shape[1]
        return self.q_ACD.shape[1], n_k

    @property
    def n_pairs(self) -> int:
        """How many pairs there are."""
        return self.shape[0] * self.shape[1]

    def weights_PC(self, head: int) -> Tensor:
        """Weights b for a query head."""
        return self.strength_PC * self.ratio_PK[:, self.kv_heads[head], None]

    def heads(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each query head: its number, q (C, D) and w (C, D)."""
        for head, kv_head in enumerate(self.kv_heads):
            yield head, self.q_ACD[head], self.k_KCD[kv_head]

    def series(self, index_N: Tensor) -> Tensor:
        """The contributions (A, N, P) of pairs i * C_k + j, in float64."""
        q_N, k_N = index_N // self.shape[1], index_N % self.shape[1]
        if self.whole_PKD is not None:
            return against(self.q_ACD[:, q_N], self.whole_PKD, self.kv_heads)
        n_keys = len(self.strength_PC)
        series_ANP = torch.empty(len(self.kv_heads), len(index_N), n_keys, dtype=torch.float64)
        acts_NP = self.strength_PC[:, k_N].T.double()
        for head, q_CD, k_CD in self.heads():
            waves_NP = self.rotation.waves(q_CD[q_N].double(), k_CD[k_N].double())
            ratio_P = self.ratio_PK[:, self.kv_heads[head]].double()
            torch.mul(waves_NP, acts_NP, out=series_ANP[head])
            series_ANP[head] *= ratio_P
        return series_ANP


def against(q_AND: Tensor, k_PKD: Tensor, kv_heads: tuple[int, ...]) -> Tensor:
    """Dot products of query vectors with turned keys, (A, N, P) in float64."""
    k_ADP = k_PKD.permute(1, 2, 0)[list(kv_heads)].double()
    return q_AND.double() @ k_ADP


def at_turned(rotation: Rotation, vectors_PKD: Tensor) -> Tensor:
    """Turn keys (P, K, D), each by its position."""
    return rotation.turned(vectors_PKD.transpose(0, 1)).transpose(0, 1)
