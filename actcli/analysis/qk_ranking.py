"""What makes a pair strong, as arithmetic on its contributions c (heads, keys).

Every rank is one form, mean or max over heads and keys of w_t |g_t c_t - sum_s o_s g_s c_s|:

    peak       max of |c|
    centered   max of |c - mean over keys|          (softmax ignores what is equal at all keys)
    attn       max of p_t |g c_t - sum_s p_s g c_s| (first-order change of the attention p; g is the
               slope of a soft cap at the logit, else 1)
    mean-abs   mean of |c|

With |c_t| <= m b_t (m what a pair's vectors allow, b_t >= 0 the key side's weight), the form is at
most m times max or mean over t of w_t ((1 - 2 o_t) b_t g_t + sum_s o_s b_s g_s), or of b_t without
a center.

Tensor legend: A query heads, P keys, C components of the key side, N pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.errors import UsageError, nearest
from actcli.reports.qk import RANKS


@dataclass(frozen=True)
class Ranking:
    """One rank at one query."""

    center_AP: Tensor | None = None
    """o."""

    weight_AP: Tensor | None = None
    """w; 1 if None."""

    slope_AP: Tensor | None = None
    """g; 1 if None."""

    by_mean: bool = False

    def scores(self, series_ANP: Tensor) -> Tensor:
        """The form, (N,)."""
        strengths_ANP = series_ANP
        if self.slope_AP is not None:
            strengths_ANP = strengths_ANP * self.slope_AP.to(series_ANP)[:, None]
        if self.center_AP is not None:
            center_AN1 = (strengths_ANP * self.center_AP.to(series_ANP)[:, None]).sum(-1, True)
            strengths_ANP = strengths_ANP - center_AN1
        if self.weight_AP is not None:
            strengths_ANP = strengths_ANP * self.weight_AP.to(series_ANP)[:, None]
        sizes_ANP = strengths_ANP.abs()
        return sizes_ANP.mean(dim=(0, 2)) if self.by_mean else sizes_ANP.amax(dim=(0, 2))

    def ceiling(self, head: int, weights_PC: Tensor, *, own: float = 2.0) -> Tensor:
        """The factor of m in the bound, (C,), for one head.

        With `own` 0 that of a sum of magnitudes: what float32 products are rounded by.
        """
        sizes_PC = weights_PC.abs().double()  # near p = 1, little is left of large numbers
        if self.slope_AP is not None:
            sizes_PC = sizes_PC * self.slope_AP[head, :, None]
        if self.center_AP is not None:
            center_P1 = self.center_AP[head, :, None].double()
            sizes_PC = (1 - own * center_P1) * sizes_PC + (center_P1 * sizes_PC).sum(0, True)
        if self.weight_AP is not None:
            sizes_PC = sizes_PC * self.weight_AP[head, :, None]
        return (sizes_PC.mean(dim=0) if self.by_mean else sizes_PC.amax(dim=0)).float()

    def join(self, total: Tensor, of_head: Tensor) -> None:
        """Take one head's scores into those of the heads before, in place; `finish` after all."""
        if self.by_mean:
            total += of_head
        else:
            torch.maximum(total, of_head, out=total)

    def finish(self, total: Tensor, *, n_heads: int) -> None:
        """Make the mean of the sum over heads, in place."""
        if self.by_mean:
            total /= n_heads


def ranking_of(rank: str, attention_AP: Tensor, *, slope_AP: Tensor | None = None) -> Ranking:
    """Make a rank; `attention_AP` gives the shape, and p.

    Raises:
        UsageError: there is no such rank.
    """
    if rank == "peak":
        return Ranking()
    if rank == "mean-abs":
        return Ranking(by_mean=True)
    if rank == "centered":
        return Ranking(center_AP=torch.full_like(attention_AP, 1 / attention_AP.shape[1]))
    if rank == "attn":
        return Ranking(attention_AP, attention_AP, slope_AP)
    raise UsageError(f"there is no rank {rank!r}: {nearest(rank, RANKS)}")
