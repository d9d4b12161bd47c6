"""Sums over the vocabulary, a strip of a few rows at a time.

With z the logits, m their largest in a row, w = (z - m) log2 e, and w_q the same of the final
state, whose distribution is q, and p = 2^w / sum 2^w:

    rest            sum of 2^w outside the top k
    plogp           sum 2^w w
    cross           sum 2^w w_q
    reverse         sum (q / 2) w
    mixed           sum M log2 M, M = (p + q) / 2
    squares, plain  sum z^2, sum z
    product         sum z w_q
    target          the target's logit, taken from these very logits
    above_target    how many logits are strictly larger; the same for `contrast`

Tensor legend: R rows of a chunk, S rows of a strip, V vocabulary, k largest.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actcli.analysis.lens_top import Top, largest

LOG2_E = 1.4426950408889634
OF_BOTH = frozenset({"cross", "reverse", "mixed", "product", "plain"})
"""Sums of a state and the final one together; the final state itself has none."""

_OF_TOKENS = frozenset({"target", "above_target", "contrast", "above_contrast"})
_TINY = 2.0**-126  # the smallest normal float32: what stands for 0 where a logarithm is taken


@dataclass(frozen=True)
class RowSums:
    """What is kept of the logits of some rows."""

    peak_R: Tensor
    top_Rk: Tensor
    """2^w of the top k."""

    ids_Rk: Tensor
    by_name: dict[str, Tensor]
    """Each (R,)."""


@dataclass(frozen=True)
class _Strip:
    """The same few rows of all buffers."""

    logits_SV: Tensor
    """z, and later w, in place."""

    final_SV: Tensor
    half_q_SV: Tensor
    powers_SV: Tensor
    scratch_SV: Tensor


class Strips:
    """The buffers that strips need, and the passes over them."""

    def __init__(
        self, vocab: int, *, chunk_rows: int, strip_rows: int, needs_q: bool, device: torch.device
    ) -> None:
        """Allocate: one buffer of a chunk, another where q is needed, and two of a strip."""

        def buffer(rows: int) -> Tensor:
            return torch.empty(rows, vocab, dtype=torch.float32, device=device)

        self._rows = min(strip_rows, chunk_rows)
        self._final_RV, self._half_q_RV = buffer(chunk_rows), buffer(chunk_rows if needs_q else 0)
        self._powers_SV, self._scratch_SV = buffer(self._rows), buffer(self._rows)

    def final_logits(self, n_rows: int) -> Tensor:
        """Where the final state's logits are to be written, before `add_up_final`."""
        return self._final_RV[:n_rows]

    def add_up_final(
        self,
        logits_RV: Tensor,
        tokens_R: Mapping[str, Tensor],
        *,
        k: int,
        names: Collection[str],
    ) -> RowSums:
        """Add up the final state's logits, and keep what the states are compared with.

        Sums of a state and the final one are 0 here.
        """
        own = set(names) - OF_BOTH
        sums = self._add_up(logits_RV, tokens_R, k=k, names=own, is_final=True)
        zero_R = torch.zeros_like(sums.peak_R)
        return replace(sums, by_name=dict.fromkeys(OF_BOTH & {*names}, zero_R) | sums.by_name)

    def add_up(
        self,
        logits_RV: Tensor,
        tokens_R: Mapping[str, Tensor],
        *,
        k: int,
        names: Collection[str],
    ) -> RowSums:
        """Add up the sums of these names; the logits are overwritten.

        Args:
            logits_RV: contiguous; compared with the final state's, added up before.
            tokens_R: token ids by `target` and `contrast`; sums of those not here are left out.
            k: how many of the largest are told from the rest.
            names: the sums wanted, beside `rest`.
        """
        return self._add_up(logits_RV, tokens_R, k=k, names=names, is_final=False)

    def _add_up(
        self,
        logits_RV: Tensor,
        tokens_R: Mapping[str, Tensor],
        *,
        k: int,
        names: Collection[str],
        is_final: bool,
    ) -> RowSums:
        top = largest(logits_RV, k)
        peak_R = top.values_Rk[:, 0].contiguous()
        top_Rk = torch.exp2((top.values_Rk - peak_R[:, None]) * LOG2_E)
        names = {"rest", *names} - {
            name for name in names if name in _OF_TOKENS and name.split("_")[-1] not in tokens_R
        }
        sums = {name: torch.zeros_like(peak_R) for name in names}
        sums |= {name: _logits_at(logits_RV, ids_R) for name, ids_R in tokens_R.items()}
        for start in range(0, len(logits_RV), self._rows):
            rows = slice(start, min(start + self._rows, len(logits_RV)))
            strip = self._strip(logits_RV, rows)
            into = {name: sum_R[rows] for name, sum_R in sums.items()}
            _sum_plain(strip, into)
            _centre(strip, peak_R[rows])
            _sum_rest(strip, Top(top_Rk[rows], top.ids_Rk[rows]), into)
            total_S1 = (into["rest"] + top_Rk[rows].sum(dim=1)).unsqueeze(1)
            _sum_powers(strip, total_S1, into)
            if is_final and len(self._half_q_RV):
                torch.mul(strip.powers_SV, 0.5 / total_S1, out=strip.half_q_SV).clamp_(min=_TINY)
        return RowSums(peak_R, top_Rk, top.ids_Rk, sums)

    def _strip(self, logits_RV: Tensor, rows: slice) -> _Strip:
        count = rows.stop - rows.start
        return _Strip(
            logits_RV[rows],
            self._final_RV[rows],
            self._half_q_RV[rows],
            self._powers_SV[:count],
            self._scratch_SV[:count],
        )


def _logits_at(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    return logits_RV.gather(1, ids_R.clamp(min=0).unsqueeze(1)).squeeze(1)


def _sum_plain(strip: _Strip, into: Mapping[str, Tensor]) -> None:
    """The sums of the logits as they are: before centring, which may round two into one."""
    logits_SV, scratch_SV = strip.logits_SV, strip.scratch_SV
    for name in ("target", "contrast"):
        if f"above_{name}" in into:  # as floats, which is several times faster than as booleans
            torch.gt(logits_SV, into[name].unsqueeze(1), out=scratch_SV)
            torch.sum(scratch_SV, dim=1, out=into[f"above_{name}"])
    if "plain" in into:
        torch.sum(logits_SV, dim=1, out=into["plain"])
    if "squares" in into:
        _sum_product(logits_SV, logits_SV, scratch_SV, into["squares"])
    if "product" in into:
        _sum_product(logits_SV, strip.final_SV, scratch_SV, into["product"])


def _centre(strip: _Strip, peak_S: Tensor) -> None:
    """From z to w, and 2^w. The largest becomes exactly 0, whatever its size."""
    strip.logits_SV.sub_(peak_S.unsqueeze(1)).mul_(LOG2_E)
    torch.exp2(strip.logits_SV, out=strip.powers_SV)


def _sum_rest(strip: _Strip, top: Top, into: Mapping[str, Tensor]) -> None:
    """The sum outside the top k, which a difference of sums would lose in rounding."""
    strip.powers_SV.scatter_(1, top.ids_Rk, 0.0)
    torch.sum(strip.powers_SV, dim=1, out=into["rest"])
    strip.powers_SV.scatter_(1, top.ids_Rk, top.values_Rk)


def _sum_powers(strip: _Strip, total_S1: Tensor, into: Mapping[str, Tensor]) -> None:
    powers_SV, scratch_SV = strip.powers_SV, strip.scratch_SV
    if "plogp" in into:
        _sum_product(powers_SV, strip.logits_SV, scratch_SV, into["plogp"])
    if "cross" in into:
        _sum_product(powers_SV, strip.final_SV, scratch_SV, into["cross"])
    if "reverse" in into:
        _sum_product(strip.half_q_SV, strip.logits_SV, scratch_SV, into["reverse"])
    if "mixed" in into:  # the powers are not needed any more
        torch.addcmul(strip.half_q_SV, powers_SV, 0.5 / total_S1, out=powers_SV)
        torch.log2(powers_SV, out=scratch_SV)
        _sum_product(powers_SV, scratch_SV, scratch_SV, into["mixed"])


def _sum_product(first_SV: Tensor, second_SV: Tensor, scratch_SV: Tensor, into_S: Tensor) -> None:
    torch.sum(torch.mul(first_SV, second_SV, out=scratch_SV), dim=1, out=into_S)
