"""What contributions do: the softmax with and without them, and which are seen in a picture.

Tensor legend: A query heads, P keys that the query sees, N pairs.
"""

import torch
from torch import Tensor

_VISIBLE = 0.05


def attention_of(
    logits_AxP: Tensor, *, softcap: float | None = None, sinks_A: Tensor | None = None
) -> Tensor:
    """Attention from uncapped logits of the keys seen: cap, sink, softmax; in float64.

    Args:
        logits_AxP: (A, ..., P).
        softcap: cap * tanh(logit / cap).
        sinks_A: logits of a further column, whose share nobody gets.
    """
    capped = logits_AxP.double()
    if softcap is not None:
        capped = softcap * torch.tanh(capped / softcap)
    if sinks_A is None:
        return capped.softmax(dim=-1)
    sinks = sinks_A.to(capped).view(-1, *[1] * (capped.ndim - 1))
    with_sink = torch.cat([capped, sinks.expand(*capped.shape[:-1], 1)], dim=-1)
    return with_sink.softmax(dim=-1)[..., :-1]


def change_without(
    logits_AP: Tensor,
    series_ANP: Tensor,
    *,
    softcap: float | None = None,
    sinks_A: Tensor | None = None,
) -> Tensor:
    """How the attention changes when a pair's contribution is taken away, (A, N, P)."""
    before_AP = attention_of(logits_AP, softcap=softcap, sinks_A=sinks_A)
    left_ANP = logits_AP[:, None].double() - series_ANP
    after_ANP = attention_of(left_ANP, softcap=softcap, sinks_A=sinks_A)
    return after_ANP - before_AP[:, None]


def slope_of(logits_AP: Tensor, softcap: float | None) -> Tensor | None:
    """How much of a small change of the logit is left by the soft cap: 1 - tanh(logit / cap)^2."""
    if softcap is None:
        return None
    return 1 - torch.tanh(logits_AP / softcap) ** 2


def visible_in(series_ANP: Tensor, sum_AP: Tensor) -> Tensor:
    """Which pairs (A, N) reach 5 % of the range of the head's sum (of 1.0 where that is 0)."""
    range_A = sum_AP.amax(dim=1) - sum_AP.amin(dim=1)
    range_A = torch.where(range_A > 0, range_A, torch.ones_like(range_A))
    return series_ANP.abs().amax(dim=2) >= _VISIBLE * range_A[:, None]
