"""Queries and keys of a layer as linear maps, and the rule from them to its attention weights.

For the query of token t and the key of token s, with x what the projections read,

    q[t] = f_q[t] * (W_q x[t] + b_q)        k[s] = f_k[s] * (W_k x[s] + b_k)
    logit[a, t, s] = scale * <turn(t) q[t, a], turn(s) k[s, kv head of a]>

so that with the factors f (the norms of queries and keys at the scale that they had, 1 without) and
the turns of the rotary embedding held fixed, a logit is bilinear in W_q and W_k: what any split of
these into parts needs to add up. Nothing is known of architectures: weights, norms, tables, scale,
soft cap and sinks are found by values, and believed only where they give the model's own queries,
keys and attention weights (see `qk_side` and `qk_rule`).

Tensor legend: T tokens, S keys, H hidden, A heads, K key/value heads, D head width, R rotary
planes, O outputs of a projection.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actcli.errors import ModelError
from actcli.models.adapter import ModelAdapter
from actcli.models.qk_capture import Taken, take
from actcli.models.qk_rotary import Rotary, turned
from actcli.models.qk_rule import (
    Rule,
    attention_of,
    error_limit,
    find_rule,
    logits_of,
    masks_of,
    position_bias,
    rule_error,
)
from actcli.models.qk_side import QkSide, check_linear, factor_of, find_side

__all__ = ["QkLayer", "QkSide", "QkText", "qk_layer", "qk_layers", "qk_texts"]

_PROBE_TOKENS = 13  # enough for windows and angles to show
_ORDINARY = 1000  # token ids to choose the probe from


@dataclass(frozen=True)
class QkLayer:
    """What the weights of a layer fix."""

    layer: int
    q: QkSide
    k: QkSide
    head_width: int
    kv_of_head_A: Tensor
    """int64: which key head a query head reads."""

    scale: float
    softcap: float | None
    """cap * tanh(logit / cap) comes after the sum: parts are parts of the logit before it."""

    sinks_A: Tensor | None
    """float32: the logit of a further column of the softmax, which takes attention to nothing."""

    rotary: Rotary | None
    """How queries and keys are turned; None: not at all."""

    dtype: torch.dtype
    """Of the model's own queries and keys: what its logits are rounded to."""

    @property
    def rule(self) -> Rule:
        """From queries and keys to attention weights."""
        return Rule(self.rotary, self.scale, self.softcap, self.sinks_A)


@dataclass(frozen=True)
class QkText:
    """One text in one layer; every tensor on the CPU, numbers in float32."""

    layer: QkLayer
    attn_input_TH: Tensor
    """What the projections read."""

    q_factor_TAD: Tensor | None
    k_factor_TKD: Tensor | None
    """The norm of queries or keys: normed = factor * projection; None: no norm."""

    planes_R2: Tensor | None
    """int64: the two dims of D that each rotary plane turns; None: no rotary embedding."""

    cos_TR: Tensor | None
    sin_TR: Tensor | None
    """Of this text's positions, as the model made them; factors of scaled tables are in them."""

    mask_TS: Tensor
    """bool: which keys a query sees."""

    logits_ATS: Tensor
    """From the model's own queries and keys, before soft cap and mask."""

    attention_ATS: Tensor
    """The model's own attention weights."""

    def rotated(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Turn vectors as the query or key of a token is turned.

        Args:
            vectors: (..., D).
            positions: int64, token numbers of this text, of a shape that broadcasts to `...`.

        Returns:
            The vectors themselves where the layer has no rotary embedding.
        """
        if self.planes_R2 is None or self.cos_TR is None or self.sin_TR is None:
            return vectors
        return turned(vectors, self.planes_R2, self.cos_TR[positions], self.sin_TR[positions])

    def softmax(self, logits_ATS: Tensor) -> Tensor:
        """Attention weights (A, T, S) that other logits would give: cap, mask and sinks as here."""
        return attention_of(logits_ATS, self.mask_TS, self.layer.softcap, self.layer.sinks_A)


def qk_layer(adapter: ModelAdapter, layer: int) -> QkLayer:
    """Find the queries and keys of one layer; see `qk_layers`."""
    return qk_layers(adapter, [layer])[layer]


def qk_layers(adapter: ModelAdapter, layers: Iterable[int]) -> dict[int, QkLayer]:
    """Find weights and rule of layers, in one forward pass over a few ordinary tokens.

    Raises:
        ModelError: the family is not of the package transformers, there is no such layer, or
            its attention weights are not explained; says what was tried.
        CaptureError: the model does not show its attention weights.
    """
    taken = take(adapter, _probe_tokens(adapter), layers)
    return {layer: _layer(adapter, layer, each) for layer, each in taken.items()}


def qk_texts(
    adapter: ModelAdapter, tokens_T: Tensor, layers: Iterable[int] | Mapping[int, QkLayer]
) -> dict[int, QkText]:
    """Run the model on one text, and take apart what these layers did with it.

    Args:
        adapter: a model of the package transformers.
        tokens_T: token ids.
        layers: numbers; or what `qk_layers` found, which spares looking for it again.

    Raises:
        ModelError: as `qk_layers`; or weights and rule do not give what the model did here.
        CaptureError: the model does not show its attention weights.
    """
    known = dict(layers) if isinstance(layers, Mapping) else qk_layers(adapter, layers)
    taken = take(adapter, tokens_T, known)
    return {layer: _text(known[layer], each) for layer, each in taken.items()}


def _probe_tokens(adapter: ModelAdapter) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randperm(min(adapter.vocab_size, _ORDINARY), generator=generator)
    return ordinary[: min(_PROBE_TOKENS, adapter.max_tokens)]


def _layer(adapter: ModelAdapter, layer: int, taken: Taken) -> QkLayer:
    config = getattr(adapter.net, "config", None)
    rule = find_rule(taken, config, layer=layer)
    q, k = find_side(adapter.net, taken, "q"), find_side(adapter.net, taken, "k")
    kv_of_head_A = torch.arange(q.n_heads) // (q.n_heads // k.n_heads)
    sinks_A = None if rule.sinks_A is None else rule.sinks_A.cpu()
    return QkLayer(
        *(layer, q, k, q.head_width, kv_of_head_A),
        *(rule.scale, rule.softcap, sinks_A, rule.rotary, taken.vectors("q").dtype),
    )


def _text(layer: QkLayer, taken: Taken) -> QkText:
    assert taken.attention_ATS is not None
    q_factor_TAD, k_factor_TKD = factor_of(layer.q, taken, "q"), factor_of(layer.k, taken, "k")
    x_TH = check_linear(layer.q, q_factor_TAD, taken, "q")
    if not torch.equal(x_TH, check_linear(layer.k, k_factor_TKD, taken, "k")):
        raise ModelError(f"queries and keys of layer {layer.layer} read different vectors")
    tables = layer.rotary.tables(taken.given, taken.n_tokens) if layer.rotary else None
    logits_ATS = logits_of(taken, layer.rotary, tables, layer.scale)
    mask_TS = _proven_mask(layer, taken, logits_ATS)
    cos_TR, sin_TR = (each.cpu() for each in tables) if tables else (None, None)
    return QkText(
        *(layer, x_TH, _on_cpu(q_factor_TAD), _on_cpu(k_factor_TKD)),
        *(layer.rotary.planes_R2 if tables and layer.rotary else None, cos_TR, sin_TR),
        *(mask_TS.cpu(), logits_ATS.cpu(), taken.attention_ATS.float().cpu()),
    )


def _proven_mask(layer: QkLayer, taken: Taken, logits_ATS: Tensor) -> Tensor:
    """The mask with which these logits give the model's own attention weights."""
    limit, closest = error_limit(taken, layer.scale), float("inf")
    for mask_TS in masks_of(taken):
        error = rule_error(taken, logits_ATS, layer.rule, mask_TS)
        if error <= limit:
            return mask_TS
        closest = min(closest, error)
    bias = position_bias(taken)
    why = f"; it adds {bias!r} to its logits" if bias else ""
    raise ModelError(
        f"in this text, attention of layer {layer.layer} is not what its queries and keys give: "
        f"weights differ by {closest:.2g}, at most {limit:.2g} is rounding{why} ({layer.rule})"
    )


def _on_cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.cpu()
