"""Pairs from weights alone: how components of the two sides meet at each offset.

    S[o, h, i, j] = <R_o u~_i[h], R_0 u~_j[kv head of h]>,   u~_c = u_c |v_c| sign_c
    z = (S - mean) / std, of each head over all offsets and all alive pairs; std of a sample (n - 1)

R_o turns to position o with the model's tables, sign_c is that of the activation where the
component fires. A q/k norm gives its gain only, so that the size of S is arbitrary there, and z is
not; no 1/sqrt(D) scale. Pairs are ranked by z as by contributions, offsets in place of keys.

z is bilinear too, -mean/std being one more number of a query's vector that meets a 1, so the search
of `qk_search` finds the best; mean and std come from sums of vectors and from D x D products.
Nothing of size offsets x heads x C x C is held.

Tensor legend: O offsets, A query heads, K key heads, D head width, C alive components, N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actcli.analysis.qk_grid import Grid
from actcli.analysis.qk_parts import lengths, rotation_of
from actcli.analysis.qk_ranking import Ranking, ranking_of
from actcli.analysis.qk_rotation import Rotation
from actcli.analysis.qk_search import find_top
from actcli.decompositions.factors import Factors
from actcli.errors import UsageError
from actcli.models.qk import QkSide, QkText
from actcli.reports.qk import QkStatic

ALIVE = 0.001
"""A component whose mean causal importance is not above this is left out."""


def read_static(
    text: QkText,
    q: Factors | None,
    k: Factors | None,
    *,
    rank: str = "peak",
    n_offsets: int = 33,
    top_n: int = 20,
    alive: float = ALIVE,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> QkStatic:
    """Rank pairs of one layer by their weights.

    Args:
        text: any text of at least `n_offsets` tokens: only its tables of positions are used, if it
            has any.
        q: factors of the query side.
        k: factors of the key side.
        rank: peak (largest |z|), centered (largest |z - its mean over offsets|) or mean-abs.
        n_offsets: offsets 0 to n_offsets - 1.
        top_n: how many pairs.
        alive: components with a mean causal importance above this take part; all where it is not
            known.
        pairs: component numbers of pairs to follow, in place of the strongest.

    Raises:
        UsageError: a side is not decomposed, the text is too short, nothing is alive, a pair's
            component is not, or the rank is not one of the three.
    """
    if q is None or k is None:
        side = "q" if q is None else "k"
        raise UsageError(
            f"static mode needs components on both sides, and side {side} of layer "
            f"{text.layer.layer} is not decomposed: use mode weighted"
        )
    if rank == "attn":
        raise UsageError("rank attn is about the attention of a text: static mode has none")
    field = _field(text, (q, k), (_alive(q, alive), _alive(k, alive)), n_offsets)
    ranking = ranking_of(rank, torch.ones(len(field.std_A), n_offsets))
    if pairs is not None:
        index_N = _given(field, pairs)
    else:
        index_N = find_top(field.grid, ranking, n=top_n).index_N
    return _answer(text, field, ranking, index_N)


@dataclass(frozen=True)
class _Field:
    """z of all alive pairs, unmaterialised."""

    grid: Grid
    ids: tuple[Tensor, Tensor]
    """Numbers of the alive components, (C,) each."""

    mean_A: Tensor
    std_A: Tensor


def _field(
    text: QkText, factors: tuple[Factors, Factors], alive: tuple[Tensor, Tensor], n_offsets: int
) -> _Field:
    n_tokens = len(text.attn_input_TH)
    if not 1 <= n_offsets <= n_tokens:
        raise UsageError(
            f"{n_offsets} offsets need a text of as many tokens, and this one has {n_tokens}"
        )
    rotation = rotation_of(text).at(slice(n_offsets))
    q_ACD = rotation.ordered(_written(text.layer.q, factors[0], alive[0], text.q_factor_TAD))
    k_KCD = rotation.ordered(_written(text.layer.k, factors[1], alive[1], text.k_factor_TKD))
    k_KCD = rotation.at(slice(1)).turned(k_KCD)
    back = Rotation(rotation.order_D, rotation.cos_TR, -rotation.sin_TR)  # of the key instead
    mean_A, std_A = _moments(q_ACD, k_KCD[text.layer.kv_of_head_A], rotation)
    shift_AC1 = (-mean_A / std_A).float()[:, None, None].expand(-1, q_ACD.shape[1], 1)
    grid = Grid(
        q_ACD=torch.cat([q_ACD / std_A.float()[:, None, None], shift_AC1], dim=-1),
        k_KCD=torch.cat([k_KCD, torch.ones_like(k_KCD[..., :1])], dim=-1),
        strength_PC=torch.ones(n_offsets, k_KCD.shape[1]),
        ratio_PK=torch.ones(n_offsets, len(k_KCD)),
        rotation=back,
        kv_heads=tuple(text.layer.kv_of_head_A.tolist()),
    )
    q_ids, k_ids = (torch.tensor(each.ids_C)[at] for each, at in zip(factors, alive, strict=True))
    return _Field(grid, (q_ids, k_ids), mean_A, std_A)


def _alive(factors: Factors, threshold: float) -> Tensor:
    """Places of the alive components, by falling mean causal importance; all if not known."""
    if factors.mean_ci_C is None:
        return torch.arange(len(factors.ids_C))
    order = factors.mean_ci_C.argsort(descending=True, stable=True)
    kept = order[factors.mean_ci_C[order] > threshold]
    if not len(kept):
        raise UsageError(
            f"no component has a mean causal importance above {threshold:g}; the largest is "
            f"{float(factors.mean_ci_C.max()):.3g}"
        )
    return kept


def _written(side: QkSide, factors: Factors, alive: Tensor, factor_TAD: Tensor | None) -> Tensor:
    """u~ of the alive components, (heads, C, D)."""
    rows_CO = (factors.U_CO * lengths(factors, None, None)[:, None])[alive]
    rows_ACD = rows_CO.view(len(rows_CO), side.n_heads, -1).transpose(0, 1)
    if factor_TAD is None:
        return rows_ACD
    gain_AD = factor_TAD[0]
    return rows_ACD * (gain_AD / gain_AD.abs().mean(dim=-1, keepdim=True))[:, None]


def _moments(q_ACD: Tensor, k_ACD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of S over offsets and pairs, (A,) each, without S.

    Sums over pairs are products of sums; sums of squares are those of D x D matrices, since
    sum over i, j of <q_i, k_j>^2 = <Q^T Q, K^T K>.
    """
    n_offsets = len(rotation.cos_TR)
    count = n_offsets * q_ACD.shape[1] * k_ACD.shape[1]
    k_AD, k_ADD = k_ACD.double().sum(dim=1), k_ACD.double().mT @ k_ACD.double()
    total_A, squares_A = torch.zeros_like(k_AD[:, 0]), torch.zeros_like(k_AD[:, 0])
    for offset in range(n_offsets):
        turned_ACD = rotation.at(slice(offset, offset + 1)).turned(q_ACD.double())
        total_A += (turned_ACD.sum(dim=1) * k_AD).sum(dim=-1)
        squares_A += ((turned_ACD.mT @ turned_ACD) * k_ADD).sum(dim=(-1, -2))
    mean_A = total_A / count
    variance_A = (squares_A - count * mean_A**2).clamp(min=0) / max(count - 1, 1)
    std_A = variance_A.sqrt()
    return mean_A, torch.where(std_A > 0, std_A, torch.ones_like(std_A))


def _given(field: _Field, pairs: Sequence[tuple[int, int]]) -> Tensor:
    places = [{int(each): place for place, each in enumerate(ids)} for ids in field.ids]
    for pair in pairs:
        for side, number, known in zip("qk", pair, places, strict=True):
            if number not in known:
                raise UsageError(f"component {number} of side {side} is not there, or not alive")
    index = [places[0][q] * len(places[1]) + places[1][k] for q, k in pairs]
    return torch.tensor(index, dtype=torch.int64)


def _answer(text: QkText, field: _Field, ranking: Ranking, index_N: Tensor) -> QkStatic:
    z_ANO = field.grid.series(index_N)
    raw_ANO = z_ANO * field.std_A[:, None, None] + field.mean_A[:, None, None]
    (q_ids, k_ids), n_k = field.ids, len(field.ids[1])
    return QkStatic(
        layer=text.layer.layer,
        offsets=np.arange(z_ANO.shape[2]),
        q_alive=q_ids.numpy(),
        k_alive=k_ids.numpy(),
        top_pairs=torch.stack([q_ids[index_N // n_k], k_ids[index_N % n_k]], dim=1).numpy(),
        raw=raw_ANO.permute(2, 0, 1).float().numpy(),
        z=z_ANO.permute(2, 0, 1).float().numpy(),
        mean_A=field.mean_A.numpy(),
        std_A=field.std_A.numpy(),
        score=ranking.scores(z_ANO).float().numpy(),
    )
