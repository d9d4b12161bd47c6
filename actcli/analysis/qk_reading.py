"""One query of one text being read; `qk_pairs` is the door.

Tensor legend: T tokens, A query heads, K key heads, D head width, C components, P keys that the
query sees, N pairs, X heads and keys as one axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.qk_effects import change_without, slope_of, visible_in
from actcli.analysis.qk_grid import Grid, against, at_turned
from actcli.analysis.qk_ledger import Ledger, checked_gap, contrast_weights
from actcli.analysis.qk_parts import Binary, KeyParts, QueryParts, query_parts
from actcli.analysis.qk_ranking import Ranking, ranking_of
from actcli.analysis.qk_rotation import Rotation
from actcli.analysis.qk_search import find_top
from actcli.decompositions.factors import Factors
from actcli.errors import UsageError
from actcli.models.qk import QkText
from actcli.reports.qk import QkPairs

_PSEUDO = ("delta", "bias")
_Importance = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class QkReading:
    """One query, with the key side already cut."""

    text: QkText
    q: Factors | None
    k: Factors | None
    rotation: Rotation
    keys: KeyParts
    binary: Binary | None
    query: int

    def answer(
        self,
        *,
        mode: str,
        rank: str,
        top_n: int,
        pairs: Sequence[tuple[int, int]] | None,
        ci: _Importance,
        sample: int,
    ) -> QkPairs:
        """Everything that is asked of this query; the arguments are those of `QkReader`."""
        slope_AP = slope_of(self.logits_AP, self.text.layer.softcap)
        ranking = ranking_of(rank, self.attention_AP, slope_AP=slope_AP)
        pairs_N2, method = self._chosen(ranking, top_n, pairs)
        series_ANP = self._series(pairs_N2)
        sum_AP = self.ledger.of_kinds("component", "component")
        return QkPairs(
            layer=self.text.layer.layer,
            sample=sample,
            query=self.query,
            mode=mode,
            rank=rank,
            keys_P=self.keys_P.numpy(),
            q_names=_names(self.q),
            k_names=_names(self.k),
            top_pairs=pairs_N2.to(torch.int32).numpy(),
            top_contrib=_array(series_ANP),
            sum=_array(sum_AP),
            visible=visible_in(series_ANP, sum_AP).numpy(),
            score=_array(ranking.scores(series_ANP)),
            method=method,
            **self._peaks(series_ANP),
            **self._beside(pairs_N2, series_ANP, ci),
            **({} if self.binary else self._balance(series_ANP)),
        )

    @cached_property
    def keys_P(self) -> Tensor:
        """Positions of the keys that the query sees."""
        return self.text.mask_TS[self.query].nonzero()[:, 0]

    @cached_property
    def logits_AP(self) -> Tensor:
        """The model's own, uncapped."""
        return self.text.logits_ATS[:, self.query, self.keys_P]

    @cached_property
    def attention_AP(self) -> Tensor:
        """The model's own."""
        return self.text.attention_ATS[:, self.query, self.keys_P]

    @cached_property
    def parts(self) -> QueryParts:
        """The query side."""
        return query_parts(self.text, self.q, self.rotation, query=self.query, binary=self.binary)

    @cached_property
    def grid(self) -> Grid:
        """All pairs of components."""
        kv_of_head_A = self.text.layer.kv_of_head_A
        return Grid.of(self.parts.rows_ACD, self.keys, self.rotation, kv_of_head_A, self.keys_P)

    @cached_property
    def ledger(self) -> Ledger:
        """All parts."""
        turned_kinds = {
            name: at_turned(self.grid.rotation, each[self.keys_P])
            for name, each in self.keys.kinds.items()
        }
        return Ledger(self.parts, turned_kinds, self.grid)

    def _chosen(
        self, ranking: Ranking, top_n: int, pairs: Sequence[tuple[int, int]] | None
    ) -> tuple[Tensor, str]:
        """Part numbers (N, 2), and how they were found."""
        if pairs is not None:
            return self._given(pairs), "given"
        best = find_top(self.grid, ranking, n=top_n)
        n_k = self.grid.shape[1]
        return torch.stack([best.index_N // n_k, best.index_N % n_k], dim=1), best.method

    def _given(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        limits = [n if self.binary else n + len(_PSEUDO) for n in self.grid.shape]
        for pair in pairs:
            if not all(0 <= part < limit for part, limit in zip(pair, limits, strict=True)):
                raise UsageError(
                    f"there is no pair {pair[0]}:{pair[1]} in layer {self.text.layer.layer}: "
                    f"{self.grid.shape[0]} components of queries and {self.grid.shape[1]} of keys"
                )
        return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)

    def _series(self, pairs_N2: Tensor) -> Tensor:
        """Contributions (A, N, P), float64, of pairs of any parts."""
        n_k = self.grid.shape[1]
        plain_N = (pairs_N2 < torch.tensor(self.grid.shape)).all(dim=1)
        shape = (len(self.grid.kv_heads), len(pairs_N2), len(self.keys_P))
        series_ANP = torch.empty(shape, dtype=torch.float64)
        series_ANP[:, plain_N] = self.grid.series(
            (pairs_N2[plain_N] * torch.tensor([n_k, 1])).sum(1)
        )
        for place in (~plain_N).nonzero()[:, 0].tolist():
            q, k = pairs_N2[place].tolist()
            q_A1D = self._query_part(q)[:, None]
            series_ANP[:, place] = against(q_A1D, self._key_part(k), self.grid.kv_heads)[:, 0]
        return series_ANP

    def _query_part(self, number: int) -> Tensor:
        """What one part of the query side is, (A, D)."""
        n_q = self.grid.shape[0]
        if number >= n_q:
            return self.parts.kinds[_PSEUDO[number - n_q]]
        return self.parts.rows_ACD[:, number]

    def _key_part(self, number: int) -> Tensor:
        """What one part of the key side is at each key, turned, (P, K, D)."""
        n_k = self.grid.shape[1]
        if number >= n_k:
            return self.ledger.turned_kinds[_PSEUDO[number - n_k]]
        if self.grid.whole_PKD is not None:
            return self.grid.whole_PKD
        weights_PK = self.grid.strength_PC[:, number, None] * self.grid.ratio_PK
        return at_turned(self.grid.rotation, weights_PK[..., None] * self.grid.k_KCD[:, number])

    def _peaks(self, series_ANP: Tensor) -> dict[str, Any]:
        n_keys = len(self.keys_P)
        where_N = _first_peak(series_ANP)
        centered_ANP = series_ANP - series_ANP.mean(dim=-1, keepdim=True)
        return {
            "peak": _at(series_ANP, where_N),
            "peak_head": (where_N // n_keys).to(torch.int32).numpy(),
            "peak_key": self.keys_P[where_N % n_keys].to(torch.int32).numpy(),
            "centered_peak": _at(centered_ANP, _first_peak(centered_ANP)),
        }

    def _beside(self, pairs_N2: Tensor, series_ANP: Tensor, ci: _Importance) -> dict[str, Any]:
        """Activations and causal importances of the pairs' components."""
        q_N, k_N = pairs_N2.unbind(dim=1)
        key_N = self.keys_P[_first_peak(series_ANP) % len(self.keys_P)]
        query_N = torch.full_like(key_N, self.query)
        q_acts_TC = self.parts.acts_C.expand(self.query + 1, -1) if self.q else None
        return {
            "q_act": _looked_up(q_acts_TC, query_N, q_N),
            "k_act": _looked_up(self.keys.acts_TC if self.k else None, key_N, k_N),
            "q_ci": None if ci[0] is None else _looked_up(ci[0], query_N, q_N),
            "k_ci": None if ci[1] is None else _looked_up(ci[1], key_N, k_N),
        }

    def _balance(self, series_ANP: Tensor) -> dict[str, Any]:
        """What is held against the model's own logits."""
        split = self.ledger.split()
        gap, tolerance = checked_gap(self.text, split, self.logits_AP)
        softcap, sinks_A = self.text.layer.softcap, self.text.layer.sinks_A
        change_ANP = change_without(self.logits_AP, series_ANP, softcap=softcap, sinks_A=sinks_A)
        weights_AP = contrast_weights(self.attention_AP)
        return {
            "ground_truth": _array(self.logits_AP),
            "attention": _array(self.attention_AP),
            "d_attn": _array(change_ANP),
            "residual": {name: _array(each) for name, each in split.items()},
            "q_marginals": _array(self.ledger.q_marginals(weights_AP)),
            "k_marginals": _array(self.ledger.k_marginals(weights_AP)),
            "ledger_gap": gap,
            "tolerance": tolerance,
            "softcap": softcap,
            "sinks_A": None if sinks_A is None else _array(sinks_A),
        }


def _names(factors: Factors | None) -> tuple[str, ...]:
    components = ("exact",) if factors is None else tuple(map(str, factors.ids_C))
    return (*components, *_PSEUDO)


def _array(values: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().to(torch.float32).contiguous().numpy()
    return found


def _first_peak(series_ANP: Tensor) -> Tensor:
    """Where each pair is largest: head times keys + key, the first of equal ones; (N,)."""
    sizes_NX = series_ANP.transpose(0, 1).flatten(1).abs().to(torch.float32).numpy()
    return torch.from_numpy(sizes_NX.argmax(axis=1))


def _at(series_ANP: Tensor, where_N: Tensor) -> NDArray[np.float32]:
    return _array(series_ANP.transpose(0, 1).flatten(1).gather(1, where_N[:, None])[:, 0])


def _looked_up(values_TC: Tensor | None, token_N: Tensor, part_N: Tensor) -> NDArray[np.float32]:
    """Values of components at tokens; NaN for other parts."""
    found_N = torch.full((len(part_N),), torch.nan)
    if values_TC is not None:
        known_N = part_N < values_TC.shape[1]
        found_N[known_N] = values_TC[token_N[known_N], part_N[known_N]].to(torch.float32)
    return _array(found_N)
