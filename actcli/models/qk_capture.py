"""What attention modules read, were given and gave in one forward pass over one text.

Tensor legend: T tokens, S keys, H hidden, A heads, K key/value heads, D head width, O outputs of a
projection.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actcli.errors import ModelError
from actcli.models.adapter import HookPoint, ModelAdapter
from actcli.models.transformer import HuggingFaceTransformer

Side = Literal["q", "k"]


@dataclass
class Taken:
    """One attention module in one forward; all batches have one row."""

    attn: nn.Module
    points: dict[Side, HookPoint]
    """Where queries and keys are read: after their norms, before the rotary embedding."""

    n_tokens: int
    given: dict[str, Any] = field(default_factory=dict)
    """What the module was called with, by the names of its parameters; then its buffers."""

    read: dict[str, Tensor] = field(default_factory=dict)
    """By module: the first argument of each matrix in attention, and of the norms of q and k."""

    gave: dict[str, Tensor] = field(default_factory=dict)
    """By module: what these gave."""

    attention_ATS: Tensor | None = None
    """Attention weights, in the model's dtype."""

    def vectors(self, side: Side) -> Tensor:
        """Queries (T, A, D) or keys (T, K, D), in the model's dtype."""
        point = self.points[side]
        return point.view(self.gave[point.module])[0]

    def rows(self, values: Tensor) -> Tensor:
        """What a projection read or gave, as (T, width)."""
        return values.reshape(self.n_tokens, -1)


def take(adapter: ModelAdapter, tokens_T: Tensor, layers: Iterable[int]) -> dict[int, Taken]:
    """Run the model once, with attention shown, and keep what these layers did.

    Raises:
        ModelError: not a model of the package transformers, or queries and keys were not found.
        CaptureError: the model does not show its attention weights.
    """
    if not isinstance(adapter, HuggingFaceTransformer):
        raise ModelError(
            f"queries and keys are taken apart in models of the package transformers; this one is "
            f"of the family {adapter.family}"
        )
    n_tokens = len(tokens_T)
    taken = {layer: _prepared(adapter, layer, n_tokens) for layer in sorted(set(layers))}
    adapter.prepare(["attn_weights"])
    with ExitStack() as hooks:
        for layer, each in taken.items():
            _hook(adapter, layer, each, hooks)
        with torch.no_grad():  # what is kept may be changed later on
            adapter.forward({"tokens": tokens_T[None].to(adapter.device)})
    return taken


def _prepared(adapter: HuggingFaceTransformer, layer: int, n_tokens: int) -> Taken:
    if not 0 <= layer < adapter.n_layers:
        raise ModelError(
            f"there is no layer {layer}: the model has layers 0-{adapter.n_layers - 1}"
        )
    path = adapter.blocks[layer].attn
    q, k = (adapter.layer_points(side, layer) for side in ("q", "k"))
    if path is None or q is None or k is None:
        raise ModelError(
            f"queries and keys of layer {layer} were not found in "
            f"{type(adapter.net).__name__}: no split of its projections explains its attention"
        )
    (block,) = adapter.points("layer_outputs", [layer])
    attn = adapter.net.get_submodule(f"{block.module}.{path}")
    return Taken(attn, {"q": q, "k": k}, n_tokens)


def _hook(adapter: ModelAdapter, layer: int, taken: Taken, hooks: ExitStack) -> None:
    (weights,) = adapter.points("attn_weights", [layer])

    def keep_given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.given |= _by_name(module, args, kwargs)

    def keep_attention(_module: object, _args: object, output: Any) -> None:
        taken.attention_ATS = weights.view(output[weights.item or 0])[0].detach().clone()

    def keep(name: str, _module: object, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        taken.read[name] = (args[0] if args else next(iter(kwargs.values()))).detach().clone()
        taken.gave[name] = output.detach().clone()

    hooks.enter_context(taken.attn.register_forward_pre_hook(keep_given, with_kwargs=True))
    shower = adapter.net.get_submodule(weights.module)
    hooks.enter_context(shower.register_forward_hook(keep_attention))
    for name, module in _worth_keeping(adapter.net, taken).items():
        named: Callable[..., None] = partial(keep, name)
        hooks.enter_context(module.register_forward_hook(named, with_kwargs=True))


def _worth_keeping(net: nn.Module, taken: Taken) -> Mapping[str, nn.Module]:
    """The matrices inside attention, and what gives queries and keys, by path."""
    inside = set(taken.attn.modules())
    places = {point.module for point in taken.points.values()}
    return {
        name: module
        for name, module in net.named_modules()
        if name in places or (module in inside and _is_matrix(module))
    }


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    forward: Any = module.forward
    named: dict[str, Any] = {}
    for name, value in inspect.signature(forward).bind_partial(*args, **kwargs).arguments.items():
        named |= value if isinstance(value, dict) else {name: value}  # its **kwargs are a dict
    return named | dict(module.named_buffers())
