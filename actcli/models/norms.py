"""What a normalisation layer computes, found by asking it: no class names, no attribute tables.

Two families cover every architecture that we know, x being one vector of H numbers:

    RMSNorm    y = g * x / sqrt(mean(x^2) + eps) (+ b)
    LayerNorm  y = g * (x - mean(x)) / sqrt(var(x) + eps) (+ b)      var without Bessel's correction

The gain g is the layer's `weight`, or 1 + `weight` (Gemma), or 1 (no weight). Which one, is read
off the layer's own output for vectors made for the purpose; eps is the attribute that explains it.

Tensor legend: R rows, H hidden.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

_PROBE_ROWS = 4
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference from the formula, relative to the largest output: rounding of the dtype."""

Kind = Literal["rms", "layer"]
Convention = Literal["weight", "1 + weight", "none"]


@dataclass(frozen=True)
class Norm:
    """A normalisation layer, understood."""

    module: nn.Module
    kind: Kind
    eps: float
    """Inside the root, added to the mean square or to the variance."""

    convention: Convention
    """How the gain is stored."""

    @property
    def gain(self) -> Tensor | None:
        """The factor (H,) of each dimension; None: 1.

        In the dtype of the weights, but 1 + weight in float32: half precision would round it.
        """
        weight = _parameter(self.module, "weight")
        if weight is None:
            return None
        return 1 + weight.float() if self.convention == "1 + weight" else weight

    @property
    def bias(self) -> Tensor | None:
        """What is added (H,) at the end; None: nothing."""
        return _parameter(self.module, "bias")

    def normalised(self, acts: Tensor) -> Tensor:
        """Return the activations (..., H) in float32, normalised, before gain and bias."""
        return _normalised(acts.float(), self.kind, self.eps)

    def __call__(self, acts: Tensor) -> Tensor:
        """Return what the layer gives for (..., H), computed in float32 whatever its dtype."""
        out = self.normalised(acts)
        if self.gain is not None:
            out = out * self.gain.float()
        return out if self.bias is None else out + self.bias.float()


def as_norm(module: nn.Module, width: int | None = None) -> Norm | None:
    """Return what a module normalises like; None if it is no norm.

    Args:
        module: called with random vectors, in its own dtype.
        width: length H of the vectors it reads; told by its weight, where it has one.
    """
    weight = _parameter(module, "weight")
    if any(True for _child in module.children()) or (weight is not None and weight.ndim != 1):
        return None
    width = width if weight is None else len(weight)
    if width is None or width < 2:
        return None
    like = weight if weight is not None else torch.zeros(0)
    probes_RH = _probes(width, like)
    try:
        with torch.inference_mode():
            outputs_RH = module(probes_RH)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError):
        return None  # it reads something else than vectors of that width
    if not isinstance(outputs_RH, Tensor) or outputs_RH.shape != probes_RH.shape:
        return None
    return _explained(module, probes_RH, outputs_RH)


def _explained(module: nn.Module, probes_RH: Tensor, outputs_RH: Tensor) -> Norm | None:
    """The formula that gives these outputs, if there is one: the best of the candidates."""
    scale = float(outputs_RH.float().abs().max())
    limit = _TOLERANCE.get(probes_RH.dtype, 4e-2) * max(scale, 1e-6)
    has_weight = _parameter(module, "weight") is not None
    conventions: tuple[Convention, ...] = ("weight", "1 + weight") if has_weight else ("none",)
    kinds: tuple[Kind, ...] = ("rms", "layer")
    candidates = [
        Norm(module, kind, eps, convention)
        for kind in kinds
        for convention in conventions
        for eps in _epsilons(module)
    ]
    with torch.inference_mode():
        errors = [float((each(probes_RH) - outputs_RH.float()).abs().max()) for each in candidates]
    best = min(range(len(candidates)), key=errors.__getitem__)
    return candidates[best] if errors[best] <= limit else None


def _epsilons(module: nn.Module) -> list[float]:
    """The small numbers among a layer's own attributes; PyTorch's default is the dtype's."""
    named = [
        value
        for name, value in vars(module).items()
        if "eps" in name and isinstance(value, float) and 0 < value < 1
    ]
    return named or [1e-5, float(torch.finfo(torch.float32).eps)]


def _probes(width: int, like: Tensor) -> Tensor:
    """Vectors (R, H) of falling size, so that eps shows, with means that are not 0."""
    generator = torch.Generator().manual_seed(0)
    rows_RH = torch.randn(_PROBE_ROWS, width, generator=generator) + 0.5
    rows_RH *= torch.tensor([3.0, 1.0, 0.1, 0.01])[:, None]
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return rows_RH.to(device=like.device, dtype=dtype)


def _normalised(acts: Tensor, kind: str, eps: float) -> Tensor:
    if kind == "layer":
        acts = acts - acts.mean(dim=-1, keepdim=True)
    return acts * torch.rsqrt(acts.square().mean(dim=-1, keepdim=True) + eps)


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value.detach() if isinstance(value, Tensor) else None
