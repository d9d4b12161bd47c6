"""Causal importances of SPD components: how much each may not be ablated, from 0 to 1, per token.

One function per module:    g = f(x), x (T, H) what the module reads
    mlp                     a small network per component on the one number a_c = x . v_c
    vector_mlp              a small network per component on x
    shared_mlp              one network from x to all components
One function for all modules, on their inputs side by side, modules in the order of their names:
    global_shared_mlp           one network
    global_shared_transformer   each input over its root mean square, a linear map to d_model,
                                blocks of attention (rotary, both ways: a token sees those behind
                                it) and MLP, a linear map to all components

The importance is the lower leaky of g, which for `leaky_hard` is min(max(g, 0), 1) (Bushnaq, Braun,
Sharkey, "Stochastic Parameter Decomposition", 2025, and the code that came with it). Within a
network a linear map is x @ W + b, and GELU (by the error function) stands between two of them.

Tensor legend: T tokens, H inputs, C components, M hidden units of the network, A heads, D their
width, F frequencies, K modules side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from actcli.decompositions.spd_config import CiConfig
from actcli.errors import ModelError, nearest

_LAYERWISE = ("mlp", "vector_mlp", "shared_mlp")
_GLOBAL = ("global_shared_mlp", "global_shared_transformer")
_SWISH = 10.0
_LEAK = 0.01


@dataclass(frozen=True)
class CausalImportances:
    """The functions of one run."""

    config: CiConfig
    state: Mapping[str, Tensor]
    """Their weights, keys as in the checkpoint without `ci_fn.`."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """V (H, C) and U of every decomposed module."""

    def check(self) -> None:
        """Refuse a kind that is not known.

        Raises:
            ModelError: names those that are.
        """
        for word, known in (
            (self.config.kind, (*_LAYERWISE, *_GLOBAL)),
            (self.config.sigmoid, tuple(_SIGMOIDS)),
        ):
            if word not in known:
                raise ModelError(
                    f"the run has causal importances of the kind {word!r}, which actcli cannot "
                    f"compute; it knows {', '.join(known)}; {nearest(word, known)}"
                )

    def reads(self, module: str) -> tuple[str, ...]:
        """The modules whose inputs it takes to know the importances of one module's components."""
        return (module,) if self.config.kind in _LAYERWISE else tuple(sorted(self.factors))

    def of(self, module: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Importances (T, C) of the components of one module.

        Args:
            module: its name in the run.
            inputs: what each module of `reads` reads, (T, H).

        Raises:
            ModelError: an unknown kind, or weights that are missing or do not fit.
        """
        self.check()
        given = {name: x_TH.to(torch.float32) for name, x_TH in inputs.items()}
        try:
            if self.config.kind in _LAYERWISE:
                g_TC = self._layerwise(module, given[module])
            else:
                g_TC = self._global(given)[module]
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"the causal importances ({self.config.kind}) of {module} cannot be computed from "
                f"what the checkpoint holds: {error}"
            ) from error
        return _SIGMOIDS[self.config.sigmoid](g_TC)

    def _layerwise(self, module: str, x_TH: Tensor) -> Tensor:
        weights = self._weights(f"_ci_fns.{module.replace('.', '-')}.layers.")
        if self.config.kind == "shared_mlp":
            return _network(x_TH, weights)
        if self.config.kind == "mlp":
            a_TC = x_TH @ self.factors[module][0].to(torch.float32)
            return _networks(a_TC[:, :, None], weights)[..., 0]
        return _networks(x_TH[:, None, :], weights)[..., 0]

    def _global(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(self.factors)  # as text: h.10 before h.2
        if self.config.kind == "global_shared_mlp":
            x_TK = torch.cat([inputs[name] for name in names], dim=-1)
            g_TC = _network(x_TK, self._weights("_global_ci_fn.layers."))
        else:
            x_TK = torch.cat([_rms_normed(inputs[name]) for name in names], dim=-1)
            g_TC = _transformer(x_TK, self._weights("_global_ci_fn."))
        ends = list(accumulate(self.factors[name][0].shape[1] for name in names))
        if g_TC.shape[1] != ends[-1]:
            raise KeyError(f"{g_TC.shape[1]} outputs for {ends[-1]} components")
        parts = (g_TC[:, start:end] for start, end in pairwise([0, *ends]))
        return dict(zip(names, parts, strict=True))

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        return _below(prefix, self.state)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value.to(torch.float32)
        for key, value in state.items()
        if key.startswith(prefix)
    }


def _network(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Linear maps `<n>.W` (in, out) and `<n>.b`, with GELU between them."""
    return _stacked(x, weights, lambda given, W: given @ W)


def _networks(x_TCM: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """One network per component: `<n>.W` (C, in, out)."""
    return _stacked(x_TCM, weights, lambda given, W: torch.einsum("tci,cio->tco", given, W))


def _stacked(
    x: Tensor, weights: Mapping[str, Tensor], product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    numbers = sorted(int(key.removesuffix(".W")) for key in weights if key.endswith(".W"))
    if not numbers:
        raise KeyError("it has no layers")
    for number in numbers:
        given = x if number == numbers[0] else F.gelu(x)
        W = weights[f"{number}.W"]
        x = product(given.expand(-1, W.shape[0], -1) if W.ndim == 3 else given, W)
        x = x + weights[f"{number}.b"]
    return x


def _transformer(x_TK: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Blocks that read what came before over its root mean square, and add to it."""
    x_TM = x_TK @ weights["_input_projector.W"] + weights["_input_projector.b"]
    for block in range(len({key.split(".")[1] for key in weights if key.startswith("_blocks.")})):
        own = _below(f"_blocks.{block}.", weights)
        x_TM = x_TM + _attention(_rms_normed(x_TM), _below("attn.", own))
        x_TM = x_TM + _network(_rms_normed(x_TM), _below("mlp.", own))
    return x_TM @ weights["_output_head.W"] + weights["_output_head.b"]


def _attention(x_TM: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Attention of every token to every token; the frequencies tell the width of a head."""
    n_tokens, frequencies_F = x_TM.shape[0], weights["rope.inv_freq"]
    angles_TF = torch.arange(n_tokens, device=x_TM.device)[:, None] * frequencies_F
    width = 2 * len(frequencies_F)
    q_ATD, k_ATD, v_ATD = (
        (x_TM @ weights[f"{name}_proj.weight"].T).view(n_tokens, -1, width).transpose(0, 1)
        for name in "qkv"
    )
    out_ATD = F.scaled_dot_product_attention(
        _rotated(q_ATD, angles_TF), _rotated(k_ATD, angles_TF), v_ATD
    )
    return out_ATD.transpose(0, 1).reshape(n_tokens, -1) @ weights["out_proj.weight"].T


def _rotated(x_ATD: Tensor, angles_TF: Tensor) -> Tensor:
    """Rotary positions: number m of the first half of a head and of the second are one plane."""
    first, second = x_ATD.chunk(2, dim=-1)
    cos, sin = angles_TF.cos(), angles_TF.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rms_normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])  # no gain; epsilon is that of the dtype


def _clamped(g: Tensor) -> Tensor:
    return g.clamp(0, 1)


def _upper_leaky(g: Tensor) -> Tensor:
    return torch.where(g > 1, 1 + _LEAK * (g - 1), _clamped(g))


def _swish(g: Tensor) -> Tensor:
    """A clamp with round corners: swish(g) - swish(g - 1), swish(y) = y sigmoid(10 y)."""
    return g * torch.sigmoid(_SWISH * g) - (g - 1) * torch.sigmoid(_SWISH * (g - 1))


_SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_hard": _clamped,
    "hard": _clamped,
    "lower_leaky_hard": _clamped,
    "upper_leaky_hard": _upper_leaky,
    "normal": torch.sigmoid,
    "swish_hard": _swish,
}
