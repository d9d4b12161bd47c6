"""From sums over the vocabulary to the columns of the logit lens.

With z the logits of a state, m their largest, w = (z - m) log2 e, s = sum 2^w and so p = 2^w / s,
and the same with the index q for the model's own output Q:

    entropy_bits         H(P) = log2 s - sum(2^w w) / s
    kl_to_final_bits     KL(P||Q) = sum(2^w w)/s - sum(2^w w_q)/s - log2 s + log2 s_q
    kl_from_final_bits   KL(Q||P) = -H(Q) - sum(q w) + log2 s
    js_bits              H(M) - (H(P) + H(Q)) / 2 with M = (P + Q) / 2
    cos_to_final         <z, z_q> / (|z| |z_q|), logits as they are; NaN where one is all zero
    nll_target_bits      log2 s - w_target; p_target = 2^-nll
    rank_target          1 + number of logits strictly larger than the target's
    rest_mass            (s - sum of 2^w over the top k) / s, the difference summed as such

No epsilon stands in a logarithm. Sums are float32, what is here is float64; what cannot be
negative is cut at 0, so that rounding does not make it so.

Tensor legend: P states, R rows, k largest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.lens_strips import LOG2_E

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class LensSums:
    """What the kernel counted; arrays (P, R), for the final state (1, R)."""

    peak: Floats
    """m."""

    top: Floats
    """(P, R, k): 2^w of the top k."""

    top_ids: NDArray[np.int64]
    """(P, R, k)."""

    by_name: dict[str, Floats]
    """The sums of `lens_strips` by name; those that nothing asked for are missing."""

    @property
    def total(self) -> Floats:
        """The sum s."""
        return np.asarray(self.by_name["rest"] + self.top.sum(axis=-1))

    @property
    def entropy(self) -> Floats:
        """H in bits."""
        bits = np.log2(self.total) - self.by_name["plogp"] / self.total
        return _not_negative(bits)


def columns_of(sums: LensSums, final: LensSums, *, is_final_P: NDArray[np.bool_]) -> Columns:
    """Compute every column whose sums are there.

    Args:
        sums: of each state.
        final: of the model's own output.
        is_final_P: states that are the final one: their distances are 0, exactly.
    """
    by_name, total = sums.by_name, sums.total
    columns: Columns = {
        "top_ids": sums.top_ids.astype(np.int32),
        "top_p": _f32(sums.top / total[..., None]),
        "rest_mass": _f32(by_name["rest"] / total),
        "top1_agree": sums.top_ids[..., 0] == final.top_ids[..., 0],
    }
    if "plogp" in by_name:
        columns["entropy_bits"] = _f32(sums.entropy)
    for name in ("target", "contrast"):
        columns |= _of_token(sums, name)
    columns |= {
        name: _f32(np.where(is_final_P[:, None], here, column))
        for name, (here, column) in _distances(sums, final).items()
    }
    return columns


def _of_token(sums: LensSums, name: str) -> Columns:
    columns: Columns = {}
    if name in sums.by_name:
        logit = sums.by_name[name]
        nll = _not_negative(np.log2(sums.total) - (logit - sums.peak) * LOG2_E)
        columns[f"nll_{name}_bits"] = _f32(nll)
        columns[f"p_{name}"] = _f32(np.exp2(-nll))
    if f"above_{name}" in sums.by_name:
        above = sums.by_name[f"above_{name}"]
        rank = np.where(np.isnan(sums.by_name[name]), 0, above + 1)
        columns[f"rank_{name}"] = rank.astype(np.int32)
    return columns


def _distances(sums: LensSums, final: LensSums) -> dict[str, tuple[float, Floats]]:
    """By name: what it is of the final state itself, and what it is of the others."""
    by_name, total, found = sums.by_name, sums.total, {}
    if "cross" in by_name:
        crossed = (by_name["plogp"] - by_name["cross"]) / total
        kl = crossed - np.log2(total) + np.log2(final.total)
        found["kl_to_final_bits"] = (0.0, _not_negative(kl))
    if "reverse" in by_name:
        kl = np.log2(total) - final.entropy - 2 * by_name["reverse"]
        found["kl_from_final_bits"] = (0.0, _not_negative(kl))
    if "mixed" in by_name:
        js = -by_name["mixed"] - (sums.entropy + final.entropy) / 2
        found["js_bits"] = (0.0, np.minimum(_not_negative(js), 1.0))
    if "product" in by_name:
        product = by_name["product"] / LOG2_E + final.peak * by_name["plain"]
        with np.errstate(invalid="ignore"):
            cosine = product / np.sqrt(by_name["squares"] * final.by_name["squares"])
        found["cos_to_final"] = (1.0, np.clip(cosine, -1.0, 1.0))
    return found


def _not_negative(values: Floats) -> Floats:
    return np.maximum(values, 0.0) + 0.0


def _f32(values: Floats) -> NDArray[np.float32]:
    return values.astype(np.float32)
