"""What some dictionaries do to a token before they read it, and undo in what they write.

Each gives the normalised token and the way back, which belongs to that very token: for a
transcoder too, the input's own mean and scale go onto the output.

Tensor legend: N tokens, I input width, O output width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Inverse = Callable[[Tensor], Tensor]


class Normalisation(Protocol):
    """A map of single tokens."""

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Inverse]:
        """Return the normalised tokens (N, I), and what maps outputs (N, O) back."""
        ...


@dataclass(frozen=True)
class Identity:
    """None at all."""

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Inverse]:
        """Return the tokens as they are."""
        return x_NI, lambda y_NO: y_NO


IDENTITY = Identity()


@dataclass(frozen=True)
class Standardised:
    """(x - mean) / (std + eps), with the standard deviation of n - 1.

    OpenAI's TopK, `normalize_activations: layer_norm` of SAELens, `input_unit_norm` of Matryoshka
    runs.
    """

    eps: float = 1e-5

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Inverse]:
        """Return the standardised tokens; outputs get the token's own scale and mean."""
        mean_N1 = x_NI.mean(-1, keepdim=True)
        centred_NI = x_NI - mean_N1
        std_N1 = centred_NI.std(-1, keepdim=True)
        return centred_NI / (std_N1 + self.eps), lambda y_NO: y_NO * std_N1 + mean_N1


@dataclass(frozen=True)
class Rescaled:
    """x * sqrt(d) / |x|: every token gets the length sqrt(d).

    `normalize_activations: constant_norm_rescale` of SAELens.
    """

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Inverse]:
        """Return the rescaled tokens; outputs get the token's own length."""
        factor_N1 = x_NI.shape[-1] ** 0.5 / x_NI.norm(dim=-1, keepdim=True)
        return x_NI * factor_N1, lambda y_NO: y_NO / factor_N1


@dataclass(frozen=True)
class InputOnly:
    """Another one, without the way back: transcoders of SAELens write outputs as they are."""

    inner: Normalisation

    def __call__(self, x_NI: Tensor) -> tuple[Tensor, Inverse]:
        """Return the normalised tokens; outputs stay as they are."""
        return self.inner(x_NI)[0], lambda y_NO: y_NO
