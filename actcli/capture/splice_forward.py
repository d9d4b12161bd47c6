"""A forward pass of a language model up to its head, and where activations are replaced in it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from actcli.capture.hooks import hooked
from actcli.errors import CaptureError
from actcli.models.adapter import HookPoint, ModelAdapter
from actcli.models.transformer import HuggingFaceTransformer

_LOGITS = "logits"


class _HeadDone(Exception):
    """Raised when the head has run, to end the forward pass."""


class Target(NamedTuple):
    """A place in a model whose activation is read or replaced."""

    place: str
    """As it was asked for."""

    site: str
    layer: int | None
    point: HookPoint

    @property
    def is_stream_input(self) -> bool:
        """Whether it is the stream itself, of which the hooked module is only one reader."""
        return self.site == "resid_mid" and self.point.side == "input"


class Forward:
    """Runs a causal language model, and stops it behind its head.

    Attributes:
        adapter: the model.
        device: where it is.
        view: from what the head gives to logits, element by element.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        """Find the head.

        Raises:
            CaptureError: there is none that predicts the next token.
        """
        if adapter.point(_LOGITS) is None:
            raise CaptureError(
                f"this model ({adapter.family}) gives no logits over a vocabulary of tokens"
                f"{adapter.why_no(_LOGITS)}: cross-entropy and KL are for language models; "
                f"evaluate the dictionary without them"
            )
        if isinstance(adapter, HuggingFaceTransformer) and not adapter.is_causal:
            raise CaptureError(
                f"{type(adapter.net).__name__} sees the tokens behind a token, so it does not "
                f"predict the next one: evaluate the dictionary without cross-entropy and KL"
            )
        (head,) = adapter.points(_LOGITS, ())
        self.adapter, self.device = adapter, adapter.device
        self.view: Callable[[Tensor], Tensor] = head.view
        self._head = HookPoint(head.module, head.side, item=head.item)

    def head_output(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the head gives (B, T, V), in the model's dtype."""
        found: list[Tensor] = []

        def keep(logits_BTV: Tensor) -> None:
            found.append(logits_BTV)
            raise _HeadDone

        self.adapter.prepare((_LOGITS,))
        n_samples = len(inputs["tokens"])
        with hooked(self.adapter, self._head, keep), torch.inference_mode():
            try:
                self.adapter.forward(inputs)
            except _HeadDone:
                return found[0]
            except torch.OutOfMemoryError as error:
                raise CaptureError(
                    f"{self.device} is out of memory with {n_samples} samples in a batch: lower "
                    f"--batch-size or --batch-tokens"
                ) from error
        raise CaptureError(f"the head of the model (module {self._head.module}) did not run")
