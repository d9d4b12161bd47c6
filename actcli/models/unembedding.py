"""From the residual stream to logits: the model's own final norm and head, in float32.

    z = T(norm(h) W^T + b)        T: identity, c * z, or s * tanh(z / s)

Every layer of a lens goes through the one final norm of the model, not through the norm of the next
block. Norm and product are computed in float32 also where the weights are in half precision; those
are then widened a block of the vocabulary at a time, so that the head is never held twice.

Tensor legend: R rows, H hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actcli.models.norms import Norm

_BLOCK_BYTES = 32 << 20  # of widened weights at a time
_FIT = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far a head transform may be off, relative to the largest logit, by dtype."""


@dataclass(frozen=True)
class HeadTransform:
    """What happens to the output of the head before it is called logits."""

    kind: Literal["identity", "scale", "softcap"] = "identity"
    value: float = 1.0
    """The factor c, or the cap s."""

    def apply_(self, logits: Tensor) -> Tensor:
        """Change the logits in place."""
        if self.kind == "scale":
            return logits.mul_(self.value)
        if self.kind == "softcap":
            return logits.div_(self.value).tanh_().mul_(self.value)
        return logits


class Unembedding(Protocol):
    """What a lens needs of a model."""

    d_model: int
    vocab_size: int
    has_raw: bool
    """Whether the head can read a residual stream that did not go through `normed`."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def normed(self, resid_RH: Tensor) -> Tensor:
        """Return what the head reads for a residual stream: the model's final norm, in float32."""
        ...

    def logits_into(self, normed_RH: Tensor, out_RV: Tensor) -> None:
        """Write the logits for what the head reads into a float32 buffer."""
        ...

    def describe(self) -> dict[str, Any]:
        """How it computes, for reports."""
        ...


class HeadFormula:
    """The unembedding written out: norm, further linear maps, head, transform."""

    def __init__(
        self,
        norm: Norm | None,
        maps: Sequence[nn.Module],
        head: nn.Module,
        transform: HeadTransform,
        *,
        names: Mapping[str, str | None],
    ) -> None:
        """Args as traced.

        Args:
            norm: the final norm, None where the model has none.
            maps: linear maps between norm and head (OPT-350m projects out).
            head: the linear head.
            transform: what follows it.
            names: module paths by role, for `describe`.
        """
        self._norm, self._maps, self._transform = norm, maps, transform
        weight_VH, bias_V = _weights(head)
        self._weight_VH = weight_VH
        self._bias_V = None if bias_V is None else bias_V.float()
        self._names = names
        self.vocab_size, self.d_model = weight_VH.shape[0], weight_VH.shape[1]
        self.has_raw = not self._maps

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self._weight_VH.device

    def normed(self, resid_RH: Tensor) -> Tensor:
        """Return what the head reads, in float32."""
        out_RH = resid_RH.to(self.device).float()
        if self._norm is not None:
            out_RH = self._norm(out_RH)
        for each in self._maps:
            weight, bias = _weights(each)
            out_RH = F.linear(out_RH, weight.float(), None if bias is None else bias.float())
        return out_RH

    def logits_into(self, normed_RH: Tensor, out_RV: Tensor) -> None:
        """Write the logits for what the head reads into a float32 buffer."""
        weight_VH = self._weight_VH
        if weight_VH.dtype == torch.float32:
            torch.mm(normed_RH, weight_VH.T, out=out_RV)
        else:
            rows = max(1, _BLOCK_BYTES // (4 * weight_VH.shape[1]))
            for start in range(0, len(weight_VH), rows):
                wide_VH = weight_VH[start : start + rows].float()
                torch.mm(normed_RH, wide_VH.T, out=out_RV[:, start : start + rows])
        if self._bias_V is not None:
            out_RV += self._bias_V
        self._transform.apply_(out_RV)

    def describe(self) -> dict[str, Any]:
        """Norm, head and transform, as they were found."""
        norm = self._norm
        return {
            "method": "formula",
            **self._names,
            "norm_class": None if norm is None else type(norm.module).__name__,
            "norm_kind": None if norm is None else norm.kind,
            "norm_eps": None if norm is None else norm.eps,
            "norm_gain": None if norm is None else norm.convention,
            "head_bias": self._bias_V is not None,
            "transform": self._transform.kind,
            "transform_value": self._transform.value,
            "weights_dtype": str(self._weight_VH.dtype).removeprefix("torch."),
        }


class TailReplay:
    """The model's own code after its last block, run on any residual stream.

    For tails that have no formula here: the model runs, and the output of its last block is
    replaced. Exact for whatever follows, at the cost of a forward pass, in the model's dtype.
    """

    def __init__(
        self, run: Callable[[int, Tensor], Tensor], *, d_model: int, vocab_size: int, like: Tensor
    ) -> None:
        """Args.

        Args:
            run: takes a number of tokens T and the stream (1, T, H), gives logits (1, T, V).
            d_model: H.
            vocab_size: V.
            like: a weight, for device and dtype.
        """
        self._run, self._like = run, like
        self.d_model, self.vocab_size = d_model, vocab_size
        self.has_raw = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._like.device

    def normed(self, resid_RH: Tensor) -> Tensor:
        """Return the stream as it is: the model's tail does the rest."""
        return resid_RH.to(self.device)

    def logits_into(self, normed_RH: Tensor, out_RV: Tensor) -> None:
        """Write the model's logits for this stream."""
        stream_1RH = normed_RH.to(self._like.dtype)[None]
        out_RV.copy_(self._run(len(normed_RH), stream_1RH)[0])

    def describe(self) -> dict[str, Any]:
        """That it is a replay."""
        dtype = str(self._like.dtype).removeprefix("torch.")
        return {"method": "replay of the model's own tail", "weights_dtype": dtype}


def _weights(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = linear.weight, getattr(linear, "bias", None)
    assert isinstance(weight, Tensor)
    return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None


def find_transform(
    head_out: Tensor, logits: Tensor, known: Sequence[float] = ()
) -> HeadTransform | None:
    """Find T of logits = T(head output), from values large enough for a cap to show.

    Args:
        head_out: what the head module gave.
        logits: what the model called logits; same shape.
        known: numbers of the configuration; a fitted value that is one of them (or its inverse) to
            within rounding is taken to be it.

    Returns:
        None if it is none of identity, scale, soft cap.
    """
    if head_out.shape != logits.shape:
        return None
    before, after = head_out.double().flatten(), logits.double().flatten()
    limit = _FIT.get(logits.dtype, 3e-2) * float(after.abs().max())
    factor = float((before * after).sum() / (before * before).sum())
    candidates = [
        HeadTransform(),
        HeadTransform("scale", _known_value(factor, known)),
        HeadTransform("softcap", _known_value(_fitted_cap(before, after), known)),
    ]
    errors = [(each.apply_(before.clone()) - after).abs() for each in candidates]
    best = min(range(len(candidates)), key=lambda number: float(errors[number].mean()))
    return candidates[best] if float(errors[best].max()) <= limit else None


def _known_value(fitted: float, known: Sequence[float]) -> float:
    for number in known:
        for value in (number, 1 / number if number else math.inf):
            if math.isclose(value, fitted, rel_tol=1e-2):
                return value
    return fitted


def _fitted_cap(before: Tensor, after: Tensor) -> float:
    """The s of |after| = s * tanh(|before| / s) at the largest value, by bisection."""
    place = int(before.abs().argmax())
    larger, smaller = float(before[place].abs()), float(after[place].abs())
    if not 0 < smaller < larger:
        return 1e30
    low, high = smaller, smaller * 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        if middle * math.tanh(larger / middle) > smaller:
            high = middle
        else:
            low = middle
    return math.sqrt(low * high)
