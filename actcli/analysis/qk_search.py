"""The strongest pairs of a grid: exact, and without looking at every pair at every key.

A rotation cannot make |<q, R_t w>| larger than the sum over planes of |q_m| |w_m| (plus what passes
unturned), so that sum, times what the key side's weights allow, bounds a pair's score at all keys
at once: one small product for each head. Pairs are then scored exactly in the order of their
bounds until the next bound is below the n-th score. Where bounds say little, `stream` goes through
all pairs key by key, keeping one score for each, and only the best are scored again.

Scores are computed in float64 and compared as float32, so that equal pairs stay equal; then the
lower q, then the lower k part comes first.

Tensor legend: A query heads, C components, D head width, P keys, N or M pairs.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from actcli.analysis.qk_grid import Grid
from actcli.analysis.qk_ranking import Ranking
from actcli.analysis.qk_rotation import Rotation

_FIRST = 256
_GROWTH = 3  # so that four times as many are scored after each round
_ALL_PAIRS = 4096  # so few that streaming saves nothing
_HELD = 1 << 20  # numbers of a working array
_ROUNDING = 4e-6  # of |q| |w| b: what float32 products may be off


@dataclass
class Best:
    """The n best so far."""

    n: int
    index_N: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    score_N: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float32))
    method: str = "bound"

    def add(self, index_M: Tensor, score_M: Tensor) -> None:
        """Take more pairs in."""
        index = torch.cat([self.index_N, index_M])
        score = torch.cat([self.score_N, score_M])
        by_index = index.argsort()
        order = by_index[score[by_index].argsort(descending=True, stable=True)][: self.n]
        self.index_N, self.score_N = index[order], score[order]

    @property
    def last(self) -> float:
        """The score to beat."""
        return float(self.score_N[-1]) if len(self.score_N) == self.n else -1.0


def find_top(grid: Grid, ranking: Ranking, *, n: int) -> Best:
    """Find the n strongest pairs (fewer if there are fewer)."""
    best = Best(min(n, grid.n_pairs))
    if grid.whole_PKD is not None:
        best.method = "lines"
        _score_all(grid, ranking, torch.arange(grid.n_pairs), best)
        return best
    bounds, slack = _bounds(grid, ranking)
    return _verified(grid, ranking, bounds, slack, best)


def scores_of(grid: Grid, ranking: Ranking, index_N: Tensor) -> Tensor:
    """The scores of pairs, float32, a block at a time."""
    n_keys = len(grid.strength_PC)
    block = max(1, _HELD // (len(grid.kv_heads) * n_keys))
    parts = [ranking.scores(grid.series(each)).float() for each in torch.split(index_N, block)]
    return torch.cat(parts) if parts else torch.empty(0)


def _score_all(grid: Grid, ranking: Ranking, index_M: Tensor, best: Best) -> None:
    for each in torch.split(index_M, _HELD):
        best.add(each, scores_of(grid, ranking, each))


def _verified(grid: Grid, ranking: Ranking, bounds: Tensor, slack: float, best: Best) -> Best:
    """Score pairs by falling bound until no other can be among the best; marks them with -1."""
    batch, done = _FIRST, 0
    while (left := float(bounds.max())) > 0 and left + slack >= best.last:
        batch = min(batch, len(bounds) - done)
        if done + batch > max(_ALL_PAIRS, len(bounds) // 8):
            _streamed(grid, ranking, bounds, best)
            break
        index_M = bounds.topk(batch).indices
        best.add(index_M, scores_of(grid, ranking, index_M))
        bounds[index_M] = -1.0
        done += batch
        batch = _GROWTH * done
    if best.last <= 0:
        nothing_M = (bounds == 0).nonzero()[: best.n, 0]
        best.add(nothing_M, torch.zeros(len(nothing_M)))
    return best


def _bounds(grid: Grid, ranking: Ranking) -> tuple[Tensor, float]:
    """Upper bounds of all scores (C_q * C_k,), and how far rounding may have made them wrong."""
    rotation, slack = grid.rotation, 0.0
    bounds_CC = torch.zeros(grid.shape)
    for head, q_CD, k_CD in grid.heads():
        (q1, q2, q_rest), (k1, k2, k_rest) = rotation.split(q_CD), rotation.split(k_CD)
        ceiling_C = ranking.ceiling(head, grid.weights_PC(head))
        sizes_CR = torch.hypot(q1, q2)
        other_CR = torch.hypot(k1, k2) * rotation.growth_R
        for rows in torch.split(torch.arange(len(q_CD)), _block(grid)):
            allowed = sizes_CR[rows] @ other_CR.T
            if q_rest.shape[1]:
                allowed += (q_rest[rows] @ k_rest.T).abs_()
            allowed *= ceiling_C
            ranking.join(bounds_CC[rows[0] : rows[-1] + 1], allowed)
        slack = max(slack, _rounding(rotation, q_CD, k_CD, ceiling_C))
    ranking.finish(bounds_CC, n_heads=len(grid.kv_heads))
    return bounds_CC.view(-1), slack


def _rounding(rotation: Rotation, q_CD: Tensor, k_CD: Tensor, ceiling_C: Tensor) -> float:
    """What float32 may miss in a head's scores."""
    longest_C = k_CD.norm(dim=1) * max([1.0, *rotation.growth_R.tolist()])
    return _ROUNDING * float(q_CD.norm(dim=1).max() * (longest_C * ceiling_C).max())


def _block(grid: Grid) -> int:
    return max(1, _HELD // grid.shape[1])


def _streamed(grid: Grid, ranking: Ranking, bounds: Tensor, best: Best) -> None:
    """Score all pairs in float32, then those that may be among the best in float64."""
    best.method = "stream"
    rough = torch.cat(
        [
            stream(grid, ranking, rows).view(-1)
            for rows in torch.split(torch.arange(grid.shape[0]), _block(grid))
        ]
    )
    slack = max(
        _rounding(grid.rotation, q, k, ranking.ceiling(head, grid.weights_PC(head), own=0.0))
        for head, q, k in grid.heads()
    )
    bar = float(rough.topk(best.n).values[-1]) - 2 * slack
    _score_all(grid, ranking, ((rough >= bar) & (bounds > 0)).nonzero()[:, 0], best)


def stream(grid: Grid, ranking: Ranking, rows: Tensor) -> Tensor:
    """Scores in float32 of some components of the query side with all of the other, (C, C)."""
    total_CC = torch.zeros(len(rows), grid.shape[1])
    for head, q_CD, k_CD in grid.heads():
        ranking.join(total_CC, _of_head(grid, ranking, head, q_CD[rows], k_CD))
    ranking.finish(total_CC, n_heads=len(grid.kv_heads))
    return total_CC


def _of_head(grid: Grid, ranking: Ranking, head: int, q_CD: Tensor, k_CD: Tensor) -> Tensor:
    weights_PC = grid.weights_PC(head)
    if ranking.slope_AP is not None:
        weights_PC = weights_PC * ranking.slope_AP[head, :, None]
    center_CC = None
    if ranking.center_AP is not None:
        mixed_CD = _mixed(grid, weights_PC * ranking.center_AP[head, :, None], k_CD)
        center_CC = q_CD @ mixed_CD.T
    scores_CC = torch.zeros(len(q_CD), len(k_CD))
    work_CC = torch.empty_like(scores_CC)
    for key in range(len(weights_PC)):
        turned_CD = grid.rotation.at(slice(key, key + 1)).turned(k_CD)
        torch.mm(q_CD, (turned_CD * weights_PC[key][:, None]).T, out=work_CC)
        if center_CC is not None:
            work_CC -= center_CC
        work_CC.abs_()
        if ranking.weight_AP is not None:
            work_CC *= ranking.weight_AP[head, key]
        ranking.join(scores_CC, work_CC)
    ranking.finish(scores_CC, n_heads=len(weights_PC))
    return scores_CC


def _mixed(grid: Grid, weights_PC: Tensor, k_CD: Tensor) -> Tensor:
    """Sum over keys of weight times R_t w, (C, D)."""
    first, second, rest = grid.rotation.split(k_CD)
    cos_CR, sin_CR = weights_PC.T @ grid.rotation.cos_TR, weights_PC.T @ grid.rotation.sin_TR
    return torch.cat(
        [
            first * cos_CR - second * sin_CR,
            second * cos_CR + first * sin_CR,
            rest * weights_PC.sum(dim=0)[:, None],
        ],
        dim=-1,
    )
