"""The k largest logits of each row, exactly, ties by the lower id.

On the CPU a row is looked at in blocks: the k + 1 largest numbers lie in the k + 1 blocks with the
largest maxima, so only those blocks are searched. Neither that search nor `torch.topk` promises an
order between equal numbers; rows with a tie among their k + 1 largest are done again, slowly.

Tensor legend: R rows, V vocabulary, k largest, C candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128


class Top(NamedTuple):
    """The largest logits and their ids, descending."""

    values_Rk: Tensor
    ids_Rk: Tensor


def largest(logits_RV: Tensor, k: int, *, block: int = BLOCK) -> Top:
    """Return the k largest logits of each row; equal ones by rising id.

    Args:
        logits_RV: contiguous.
        k: at most V.
        block: logits to a block, on the CPU.
    """
    most = min(k + 1, logits_RV.shape[1])
    by_blocks = logits_RV.device.type == "cpu" and logits_RV.shape[1] > 4 * most * block
    found = _by_blocks(logits_RV, most, block) if by_blocks else _at_once(logits_RV, most)
    tied_R = (found.values_Rk[:, 1:] == found.values_Rk[:, :-1]).any(dim=1)
    top = Top(found.values_Rk[:, :k].contiguous(), found.ids_Rk[:, :k].contiguous())
    for row in tied_R.nonzero().flatten().tolist():
        top.ids_Rk[row] = _one_by_one(logits_RV[row], k)
    return top


def _at_once(logits_RV: Tensor, k: int) -> Top:
    return Top(*torch.topk(logits_RV, k, dim=1))


def _by_blocks(logits_RV: Tensor, k: int, block: int) -> Top:
    vocab = logits_RV.shape[1]
    whole = vocab // block * block
    maxima = logits_RV[:, :whole].view(len(logits_RV), -1, block).amax(dim=2)
    if whole < vocab:
        maxima = torch.cat([maxima, logits_RV[:, whole:].amax(dim=1, keepdim=True)], dim=1)
    chosen_Rk = torch.topk(maxima, k, dim=1, sorted=False).indices
    ids_RC = (chosen_Rk.unsqueeze(2) * block + torch.arange(block)).flatten(1)
    beyond_RC = ids_RC >= vocab
    candidates_RC = logits_RV.gather(1, ids_RC.clamp_(max=vocab - 1))
    values_Rk, places_Rk = torch.topk(candidates_RC.masked_fill_(beyond_RC, -torch.inf), k, dim=1)
    return Top(values_Rk, ids_RC.gather(1, places_Rk))


def _one_by_one(logits_V: Tensor, k: int) -> Tensor:
    """The ids of the k largest: a stable sort keeps equal ones by rising id."""
    threshold = torch.topk(logits_V, k).values[-1]
    ids = (logits_V >= threshold).nonzero().flatten()
    order = torch.sort(logits_V[ids], descending=True, stable=True).indices
    return ids[order[:k]]
