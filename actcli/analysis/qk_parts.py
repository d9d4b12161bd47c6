"""The two sides of a logit as sums of vectors: components, delta and bias.

A projection y = x W^T + b is cut into sum over c of (x . v_c) u_c, plus delta = x (W - (V U)^T)^T,
plus b; the sum is exact. A q/k norm, held at the scale it has, multiplies every part by the same
numbers: gain times 1/rms of that token (and head). The query side is turned to its position and
carries the model's scale; the key side is turned where it is used. A side that is not decomposed is
one component, the whole of x W^T.

In binary mode the activation (x . v_c) becomes 1 where the causal importance is above the
threshold (strictly) and else 0; delta and bias take no part. Gauge `unit` writes u_c |v_c| sign_c,
which does not depend on how v and u share their length and sign; `raw` writes u_c.

Tensor legend: T tokens, H hidden, A query heads, K key heads, D head width (in the order of
`qk_rotation`), O outputs K*D or A*D, C components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.analysis.qk_rotation import Rotation
from actcli.decompositions.factors import Factors
from actcli.errors import UsageError
from actcli.models.qk import QkSide, QkText

GAUGES = ("unit", "raw")
_COLUMNS = 512


@dataclass(frozen=True)
class Binary:
    """What is on in binary mode, and how long components are."""

    q_ci_TC: Tensor
    k_ci_TC: Tensor
    threshold: float = 0.01
    gauge: str = "unit"


@dataclass(frozen=True)
class KeyParts:
    """The key side of a text, before it is turned."""

    rows_KCD: Tensor
    """u_c, times the norm's gain."""

    acts_TC: Tensor
    """x . v_c."""

    strength_TC: Tensor
    """The same; 1 and 0 in binary mode."""

    ratio_TK: Tensor
    """What the norm makes of a token and head, beside the gain; 1 without a norm."""

    kinds: dict[str, Tensor]
    """(T, K, D) each: components together, delta, bias; only the first in binary mode."""

    exact: bool
    """Not decomposed: then there are no rows."""


@dataclass(frozen=True)
class QueryParts:
    """The query side of one token, turned to its position and scaled."""

    rows_ACD: Tensor
    """What each component writes here."""

    acts_C: Tensor
    kinds: dict[str, Tensor]
    """(A, D) each."""


def rotation_of(text: QkText) -> Rotation:
    """The rotation of a text's layer, at all its positions."""
    none = text.attn_input_TH.new_zeros(len(text.attn_input_TH), 0, dtype=torch.float32)
    tables = (none, none)
    if text.cos_TR is not None and text.sin_TR is not None:
        tables = (text.cos_TR, text.sin_TR)
    return Rotation.of(text.planes_R2, tables, width=text.layer.head_width)


def key_parts(
    text: QkText, factors: Factors | None, rotation: Rotation, *, binary: Binary | None = None
) -> KeyParts:
    """Cut the key side of all tokens."""
    side, width = text.layer.k, text.layer.head_width
    acts_TC, kinds = _cut(side, factors, text.attn_input_TH)
    gain_KD, ratio_TK = _separated(text.k_factor_TKD, (len(acts_TC), side.n_heads, width))
    rows_KCD = _rows(side, factors, acts_TC, binary, of_key=True) * gain_KD[:, None]
    if binary is not None:
        strength_TC = (binary.k_ci_TC > binary.threshold).float()
        sums_TKD = (strength_TC @ rows_KCD).transpose(0, 1)
        kinds = {"component": sums_TKD * ratio_TK[..., None]}
    else:
        strength_TC = acts_TC
        factor = gain_KD * ratio_TK[..., None]
        kinds = {name: _heads(each, side.n_heads) * factor for name, each in kinds.items()}
    kinds = {name: rotation.ordered(each) for name, each in kinds.items()}
    rows_KCD = rotation.ordered(rows_KCD)
    return KeyParts(rows_KCD, acts_TC, strength_TC, ratio_TK, kinds, exact=factors is None)


def query_parts(
    text: QkText,
    factors: Factors | None,
    rotation: Rotation,
    *,
    query: int,
    binary: Binary | None = None,
) -> QueryParts:
    """Cut the query side at one token."""
    side, here = text.layer.q, slice(query, query + 1)
    acts_1C, kinds_1O = _cut(side, factors, text.attn_input_TH[here])
    if factors is None:
        rows_ACD = _heads(kinds_1O["component"], side.n_heads)[0][:, None]
    else:
        all_TC = acts_1C if binary is None else activations(factors, text.attn_input_TH)
        rows_ACD = _rows(side, factors, all_TC, binary, of_key=False)
        rows_ACD = rows_ACD * _strength(acts_1C, binary, query)[:, None]
    kinds = {name: _heads(each, side.n_heads)[0] for name, each in kinds_1O.items()}
    if binary is not None:
        kinds = {"component": rows_ACD.sum(dim=1)}
    turn = _Turn(text, rotation, query)
    kinds = {name: turn(each[:, None])[:, 0] for name, each in kinds.items()}
    return QueryParts(turn(rows_ACD), acts_1C[0], kinds)


def activations(factors: Factors, input_TH: Tensor) -> Tensor:
    """Activations x . v_c (T, C), summed in float64: so that copies of a component stay equal."""
    input_TH = input_TH.double()
    blocks = torch.split(factors.V_HC, _COLUMNS, dim=1)
    return torch.cat([(input_TH @ each.double()).float() for each in blocks], dim=1)


@dataclass(frozen=True)
class _Turn:
    """What happens to a query's vectors behind the projection: norm, rotation, scale."""

    text: QkText
    rotation: Rotation
    query: int

    def __call__(self, vectors_ACD: Tensor) -> Tensor:
        if self.text.q_factor_TAD is not None:
            vectors_ACD = vectors_ACD * self.text.q_factor_TAD[self.query][:, None]
        tables = self.rotation.at(torch.tensor([self.query], device=vectors_ACD.device))
        return tables.turned(self.rotation.ordered(vectors_ACD)) * self.text.layer.scale


def _cut(
    side: QkSide, factors: Factors | None, input_TH: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Activations (T, C) and the projection (T, O) by kind."""
    whole_TO = input_TH @ side.weight_OH.T
    if factors is None:
        acts_TC = whole_TO.new_ones(len(whole_TO), 1)
        seen_TO = whole_TO
    else:
        acts_TC = activations(factors, input_TH)
        seen_TO = acts_TC @ factors.U_CO
    zeros_TO = torch.zeros_like(whole_TO)
    bias_TO = zeros_TO if side.bias_O is None else zeros_TO + side.bias_O
    return acts_TC, {"component": seen_TO, "delta": whole_TO - seen_TO, "bias": bias_TO}


def _rows(
    side: QkSide, factors: Factors | None, acts_TC: Tensor, binary: Binary | None, *, of_key: bool
) -> Tensor:
    """What components write, (heads, C, D), before any norm."""
    if factors is None:
        return acts_TC.new_zeros(side.n_heads, 0, side.weight_OH.shape[0] // side.n_heads)
    rows_CO = factors.U_CO
    if binary is not None and binary.gauge == "unit":
        ci_TC = binary.k_ci_TC if of_key else binary.q_ci_TC
        rows_CO = rows_CO * lengths(factors, acts_TC, ci_TC > binary.threshold)[:, None]
    return _heads(rows_CO, side.n_heads).transpose(0, 1)


def lengths(factors: Factors, acts_TC: Tensor | None, fires_TC: Tensor | None) -> Tensor:
    """|v_c| sign_c, (C,).

    sign_c is the decomposition's own (of the mean activation where the component fires, over a
    harvest); else of the mean activation over this text, where it fires there or else everywhere;
    + for 0 or where nothing is known.
    """
    sign_C = factors.sign_C
    if sign_C is None and acts_TC is not None and fires_TC is not None:
        weights_TC = torch.where(fires_TC.any(dim=0), fires_TC, torch.ones_like(fires_TC))
        sign_C = (acts_TC * weights_TC).sum(dim=0)
    length_C = factors.V_HC.norm(dim=0)
    return length_C if sign_C is None else torch.where(sign_C < 0, -length_C, length_C)


def _strength(acts_1C: Tensor, binary: Binary | None, query: int) -> Tensor:
    if binary is None:
        return acts_1C[0]
    return (binary.q_ci_TC[query] > binary.threshold).float()


def _heads(vectors_TO: Tensor, n_heads: int) -> Tensor:
    return vectors_TO.view(len(vectors_TO), n_heads, -1)


def _separated(factor_TKD: Tensor | None, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Write a norm's factor as gain (K, D) times ratio (T, K).

    Raises:
        UsageError: it is no such product.
    """
    n_tokens, n_heads, width = shape
    if factor_TKD is None:
        return torch.ones(n_heads, width), torch.ones(n_tokens, n_heads)
    gain_KD = factor_TKD[0]
    best_K1 = gain_KD.abs().argmax(dim=-1, keepdim=True)
    top_TK = factor_TKD.gather(-1, best_K1.expand(n_tokens, n_heads, 1))[..., 0]
    ratio_TK = torch.where(top_TK[0] == 0, torch.ones_like(top_TK), top_TK / top_TK[0])
    apart = (factor_TKD - gain_KD * ratio_TK[..., None]).abs().amax()
    if not apart <= 1e-5 * factor_TKD.abs().amax():
        raise UsageError("the key norm of this model is not a gain times one number a token")
    return gain_KD, ratio_TK
