"""The ledger of one query: sums over pairs by kind, held against the model's own logits.

Tensor legend: A query heads, K key heads, D head width, C components, P keys that the query sees,
Q parts of the query side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.analysis.qk_grid import Grid, against
from actcli.analysis.qk_parts import QueryParts
from actcli.errors import ModelError
from actcli.models.qk import QkText

LEDGER_TOLERANCE = 1e-4
"""Of the largest |logit| of the query, or of 1: what float32 may lose over sums of a few thousand
numbers. Models in 16 bit round their own logits more coarsely: see `tolerance_of`."""


@dataclass(frozen=True)
class Ledger:
    """All parts of one query."""

    query: QueryParts
    turned_kinds: Mapping[str, Tensor]
    """The key side by kind at the keys seen, turned: (P, K, D) each."""

    grid: Grid

    def of_kinds(self, q: str, k: str) -> Tensor:
        """Sum over all pairs of two kinds, (A, P) in float64."""
        q_A1D = self.query.kinds[q][:, None]
        return against(q_A1D, self.turned_kinds[k], self.grid.kv_heads)[:, 0]

    def split(self) -> dict[str, Tensor]:
        """The sums of all pairs of kinds; together they are the logits."""
        return {
            f"{q}:{k}": self.of_kinds(q, k) for q in self.query.kinds for k in self.turned_kinds
        }

    def q_marginals(self, weights_AP: Tensor) -> Tensor:
        """Each part of the query side with all of the key side, (A, Q), summed with weights."""
        pseudo = [each for name, each in self.query.kinds.items() if name != "component"]
        parts_AQD = torch.cat([self.query.rows_ACD, torch.stack(pseudo, dim=1)], dim=1)
        keys_PKD = torch.stack(list(self.turned_kinds.values())).sum(dim=0, dtype=torch.float64)
        keys_APD = keys_PKD[:, list(self.grid.kv_heads)].transpose(0, 1)
        mixed_AD1 = torch.einsum("ap,apd->ad", weights_AP, keys_APD)[..., None]
        return (parts_AQD.double() @ mixed_AD1)[..., 0]

    def k_marginals(self, weights_AP: Tensor) -> Tensor:
        """Each part of the key side with all of the query side, (A, C + 2)."""
        query_AD = torch.stack(list(self.query.kinds.values())).sum(dim=0)
        marginals = [self._of_components(query_AD, weights_AP)]
        for name in ("delta", "bias"):
            series_A1P = against(query_AD[:, None], self.turned_kinds[name], self.grid.kv_heads)
            marginals.append((series_A1P * weights_AP[:, None]).sum(dim=-1))
        return torch.cat(marginals, dim=1)

    def _of_components(self, query_AD: Tensor, weights_AP: Tensor) -> Tensor:
        grid = self.grid
        if grid.whole_PKD is not None:
            series_A1P = against(query_AD[:, None], grid.whole_PKD, grid.kv_heads)
            return (series_A1P * weights_AP[:, None]).sum(dim=-1)
        n_keys, rows = len(grid.strength_PC), []
        for head, kv_head in enumerate(grid.kv_heads):
            back_PD = grid.rotation.turned_back(query_AD[head].expand(n_keys, -1))
            per_key_PC = (back_PD @ grid.k_KCD[kv_head].T) * grid.weights_PC(head)
            rows.append(weights_AP[head] @ per_key_PC.double())
        return torch.stack(rows)


def contrast_weights(attention_AP: Tensor) -> Tensor:
    """Attended keys minus an average key: p / sum p - 1 / P, in float64."""
    p_AP = attention_AP.double()
    total_A1 = p_AP.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return p_AP / total_A1 - 1 / attention_AP.shape[1]


def checked_gap(
    text: QkText, split: Mapping[str, Tensor], logits_AP: Tensor
) -> tuple[float, float]:
    """Return the largest |sum of all parts - logit|, and its tolerance.

    Raises:
        ModelError: the gap is larger, or no number.
    """
    total_AP = torch.stack(list(split.values())).sum(dim=0)
    gap = float((total_AP - logits_AP).abs().max())
    tolerance = tolerance_of(text, logits_AP)
    if not gap <= tolerance:
        raise ModelError(
            f"the parts of layer {text.layer.layer} do not add up to the model's logits: they miss "
            f"them by {gap:.3g}, and {tolerance:.3g} is rounding; are the weights and activations "
            f"finite?"
        )
    return gap, tolerance


def tolerance_of(text: QkText, logits_AP: Tensor) -> float:
    """How far the sum may be from the logits: 1e-4 (or 4 eps of the dtype) of the largest."""
    unit = max(LEDGER_TOLERANCE, 4 * torch.finfo(text.layer.dtype).eps)
    return unit * max(1.0, float(logits_AP.abs().max()))
