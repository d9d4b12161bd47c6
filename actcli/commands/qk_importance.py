"""Causal importances of a text's components, for binary mode: what their networks read, captured.

Tensor legend: T tokens, H what a module reads, C components.
"""

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from actcli.commands.qk_setup import QkSetup

_SIDES: tuple[Literal["q", "k"], ...] = ("q", "k")
Importances = "tuple[Tensor | None, Tensor | None]"


def importances(
    setup: "QkSetup", tokens_T: "Tensor"
) -> "dict[int, tuple[Tensor | None, Tensor | None]]":
    """Return causal importances (T, C) of the two sides of each layer; None where there are none.

    Raises:
        ModelError: a network of causal importances is damaged or of a kind that is not known.
    """
    decomposition = setup.decomposition
    modules = {
        name
        for layer in setup.layers.values()
        for side in _SIDES
        for name in decomposition.ci_modules(layer, side)
    }
    inputs = _inputs(setup, tokens_T, modules) if modules else {}

    def of(number: int, side: Literal["q", "k"]) -> "Tensor | None":
        layer = setup.layers[number]
        names = decomposition.ci_modules(layer, side)
        read = {name: inputs[name] for name in names}
        return decomposition.causal_importance(read, layer, side)

    return {number: (of(number, "q"), of(number, "k")) for number in setup.layers}


def _inputs(setup: "QkSetup", tokens_T: "Tensor", modules: set[str]) -> "dict[str, Tensor]":
    """What modules read in one forward pass over the whole text, (T, H) each, in float32."""
    import torch

    found: dict[str, Tensor] = {}

    def keep(name: str, _module: object, args: Any) -> None:
        found[name] = args[0][0].detach().to(device="cpu", dtype=torch.float32, copy=True)

    net = setup.adapter.net
    with ExitStack() as hooks:
        for name in modules:
            module = net.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(partial(keep, name)))
        with torch.no_grad():
            setup.adapter.forward({"tokens": tokens_T[None].to(setup.adapter.device)})
    return found
