"""The rule that gives a layer's attention weights from its queries and keys, found by trying.

    logit[a, t, s] = scale * <turned q[t, a], turned k[s, kv head of a]>
    attention = softmax over the visible keys of  cap * tanh(logit / cap)  [and the sink's logit]

No architecture is known by name. What its module and configuration hold is tried (scales, tables
of angles, soft caps, sinks, masks), and a rule is believed only if it reproduces the model's own
attention weights.

Tensor legend: T tokens, S keys, A heads, K key/value heads, D head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor, nn

from actcli.errors import ModelError
from actcli.models.qk_capture import Taken
from actcli.models.qk_rotary import Rotary, rotaries, turned

_ROUNDINGS = 4.0  # of the dtype, for a logit as large as |q| |k| allows
_LARGEST_ERROR = 0.1  # of an attention weight, however coarse the dtype
_AS_GOOD = 1.25  # how much worse than the best a rule may be, if it is tried earlier
_RESOLUTION = 1e-7  # of attention weights in float32
_BLOCKED = -1e3  # what is added to the logit of a key that is not seen is below this


@dataclass(frozen=True)
class Rule:
    """From queries and keys to attention weights."""

    rotary: Rotary | None
    scale: float
    softcap: float | None
    sinks_A: Tensor | None

    def __str__(self) -> str:
        cap = "" if self.softcap is None else f", soft cap {self.softcap:g}"
        sink = "" if self.sinks_A is None else ", sinks"
        return f"scale {self.scale:.6g}{cap}{sink}, turned by {self.rotary or 'nothing'}"


def find_rule(taken: Taken, config: Any, *, layer: int) -> Rule:
    """Find the rule of a layer.

    Args:
        taken: a forward over ordinary tokens, more than a few.
        config: the model's configuration.
        layer: for the scale of models that divide by the layer's number, and for messages.

    Raises:
        ModelError: nothing that was tried explains the attention; says what was tried.
    """
    rules = list(_rules(taken, config, layer))
    errors = list(_errors(taken, rules))
    least = min(errors)
    best = rules[errors.index(least)]
    if not least <= error_limit(taken, best.scale):
        raise ModelError(_unexplained(taken, rules, layer=layer, best=f"{best}: {least:.2g}"))
    enough = _AS_GOOD * least + _RESOLUTION
    return next(rule for rule, error in zip(rules, errors, strict=True) if error <= enough)


def logits_of(
    taken: Taken, rotary: Rotary | None, tables: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """Logits (A, T, S) before cap and mask, of the model's own queries and keys, in float32."""
    q_TAD, k_TKD = taken.vectors("q").float(), taken.vectors("k").float()
    if rotary is not None and tables is not None:
        cos, sin = (each[:, None].to(q_TAD.device) for each in tables)
        q_TAD = turned(q_TAD, rotary.planes_R2, cos, sin)
        k_TKD = turned(k_TKD, rotary.planes_R2, cos, sin)
    k_TAD = k_TKD.repeat_interleave(q_TAD.shape[1] // k_TKD.shape[1], dim=1)
    return scale * (q_TAD.movedim(1, 0) @ k_TAD.permute(1, 2, 0))


def attention_of(
    logits_ATS: Tensor, mask_TS: Tensor, softcap: float | None, sinks_A: Tensor | None
) -> Tensor:
    """Attention weights (A, T, S): soft cap, mask, and the softmax with the sink's column."""
    if softcap is not None:
        logits_ATS = softcap * torch.tanh(logits_ATS / softcap)
    logits_ATS = logits_ATS.masked_fill(~mask_TS, -torch.inf)
    if sinks_A is None:
        return logits_ATS.softmax(dim=-1)
    sinks_AT1 = sinks_A.to(logits_ATS)[:, None, None].expand(-1, logits_ATS.shape[1], 1)
    return torch.cat([logits_ATS, sinks_AT1], dim=-1).softmax(dim=-1)[..., :-1]


def masks_of(taken: Taken) -> list[Tensor]:
    """Every mask (T, S), True where a query sees a key, that attention can have had.

    Those that it was given, as zeros and large negative numbers or as booleans of either sense;
    then the keys up to the query, and all.
    """
    masks: list[Tensor] = []
    for mask_TS in _masks(taken):
        if not any(torch.equal(mask_TS, each) for each in masks):
            masks.append(mask_TS)
    return masks


def _masks(taken: Taken) -> Iterator[Tensor]:
    n_tokens, device = taken.n_tokens, taken.vectors("q").device
    shape = (n_tokens, n_tokens)
    for value in taken.given.values():
        if isinstance(value, Tensor) and value.ndim >= 3 and min(value.shape[-2:]) >= n_tokens:
            masks = value[..., :n_tokens, :n_tokens].reshape(-1, *shape).to(device)
            yield from (each for each in _senses(masks) if bool(each.any(dim=-1).all()))
    everything_TS = torch.ones(shape, dtype=torch.bool, device=device)
    yield everything_TS.tril()
    yield everything_TS


def rule_error(taken: Taken, logits_ATS: Tensor, rule: Rule, mask_TS: Tensor) -> float:
    """Largest difference of the attention weights that a rule gives from the model's own."""
    assert taken.attention_ATS is not None
    found_ATS = attention_of(logits_ATS, mask_TS, rule.softcap, rule.sinks_A)
    return float((found_ATS - taken.attention_ATS.float()).abs().max())


def error_limit(taken: Taken, scale: float) -> float:
    """How far attention weights may be off by rounding: what the dtype does to the logits."""
    q, k = taken.vectors("q"), taken.vectors("k")
    longest = [float(each.float().norm(dim=-1).max()) for each in (q, k)]
    rounding = _ROUNDINGS * torch.finfo(q.dtype).eps * (1 + abs(scale) * longest[0] * longest[1])
    return min(rounding, _LARGEST_ERROR)


def position_bias(taken: Taken) -> str | None:
    """Name of an argument that adds to logits what depends on positions, as ALiBi does."""
    shape = (taken.n_tokens, taken.n_tokens)
    for name, value in taken.given.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 3:
            continue
        if "alibi" in name or "bias" in name:
            return name
        if value.shape[-2:] == shape and bool(((value > _BLOCKED) & (value != 0)).any()):
            return name
    return None


def _senses(masks: Tensor) -> Iterator[Tensor]:
    """What sees what in a mask that is the same for all heads."""
    first = masks[0]
    if not bool((masks == first).all()):
        return
    if first.dtype == torch.bool:
        yield from (first, ~first)
    elif first.is_floating_point() and bool(((first == 0) | (first <= _BLOCKED)).all()):
        yield first == 0


def _rules(taken: Taken, config: Any, layer: int) -> Iterator[Rule]:
    """All combinations, those that the module declares first."""
    _n_tokens, n_heads, width = taken.vectors("q").shape
    turns = (*rotaries(taken.given, taken.n_tokens, width), None)
    caps, sinks = _softcaps(taken.attn, config), _sinks(taken.attn, n_heads)
    for choice in product(turns, caps, sinks, _scales(taken.attn, layer, width)):
        rotary, softcap, sinks_A, scale = choice
        yield Rule(rotary, scale, softcap, sinks_A)


def _scales(attn: nn.Module, layer: int, width: int) -> list[float]:
    """The numbers of the module that its names call so, the usual one, and its variants."""
    named = [
        float(value)
        for name, value in vars(attn).items()
        if isinstance(value, (float, int)) and not isinstance(value, bool)
        if any(word in name for word in ("scal", "norm_factor", "multiplier")) and value > 0
    ]
    usual = width**-0.5
    found = [*named, usual, usual / (layer + 1), 1.0, *(1 / each for each in named)]
    return list(dict.fromkeys(found))


def _softcaps(attn: nn.Module, config: Any) -> list[float | None]:
    declared = list(vars(attn).items())
    declared += [(name, value) for name, value in vars(config).items() if "att" in name]
    named = [
        float(value)
        for name, value in declared
        if "softcap" in name and isinstance(value, (float, int)) and value > 0
    ]
    return [*dict.fromkeys(named), None]


def _sinks(attn: nn.Module, n_heads: int) -> list[Tensor | None]:
    own = attn.named_parameters(recurse=False)
    return [*(each.detach().float() for _name, each in own if each.shape == (n_heads,)), None]


def _errors(taken: Taken, rules: list[Rule]) -> Iterator[float]:
    """Of each rule, how far its attention weights are off with the mask that suits it best."""
    masks = masks_of(taken)
    for _same, group in groupby(rules, key=lambda rule: id(rule.rotary)):
        alike = list(group)
        rotary = alike[0].rotary
        tables = rotary.tables(taken.given, taken.n_tokens) if rotary else None
        dots_ATS = logits_of(taken, rotary, tables, 1.0)
        for rule in alike:
            logits_ATS = rule.scale * dots_ATS
            yield min(rule_error(taken, logits_ATS, rule, mask_TS) for mask_TS in masks)


def _unexplained(taken: Taken, rules: list[Rule], *, layer: int, best: str) -> str:
    kind = type(taken.attn).__name__
    bias = position_bias(taken)
    if bias is not None:
        return (
            f"attention of layer {layer} ({kind}) adds {bias!r} to its logits: what depends on "
            f"positions alone (as ALiBi does) belongs to no pair of components, so the parts would "
            f"not add up to the logit; models with rotary or learned positions are read"
        )
    scales = dict.fromkeys(f"{each.scale:.6g}" for each in rules)
    turns = dict.fromkeys(str(each.rotary or "nothing") for each in rules)
    caps = dict.fromkeys(f"{each.softcap:g}" for each in rules if each.softcap is not None)
    return (
        f"attention of layer {layer} ({kind}) is not what its queries and keys give by any rule "
        f"that actcli knows; tried the scales {', '.join(scales)}; turned by {', '.join(turns)}; "
        f"soft cap {', '.join(caps) or 'none'}; closest: {best}"
    )
