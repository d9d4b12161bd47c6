"""Logits of a model, its own and changed ones side by side, in pieces bounded in the vocabulary.

Tensor legend: B samples of a batch, T tokens, V vocabulary, N tokens that count, R of them in one
piece.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["zero", "spliced"]

_PIECE_BYTES = 256 << 20
_BYTES_PER_LOGIT = 40
"""Of both in float32, their log-softmax, and what is summed."""


class LogitsChunk(NamedTuple):
    """Logits of some tokens, float32 on the model's device."""

    original_RV: Tensor
    other_RV: Tensor
    next_R: Tensor
    """The id of the token that follows in the sample, int64; -1 where none does."""


@dataclass
class LogitsPair:
    """The model's own logits and others, of the tokens of a batch that count."""

    kind: Kind
    numbers: tuple[int, ...]
    """Which dictionaries this is of; 0 in place of a target is the same for all that share it."""

    original_BTV: Tensor
    other_BTV: Tensor | None
    """As the head gives them; None when they are no longer held."""

    view: Callable[[Tensor], Tensor]
    """From what the head gives to logits, element by element."""

    places_2N: Tensor
    """Sample of the batch and token of each one that counts."""

    next_N: Tensor

    def chunks(self) -> Iterator[LogitsChunk]:
        """Go through the tokens, so many at a time that memory is bounded in the vocabulary."""
        assert self.other_BTV is not None, "the logits are valid until the next pair"
        n_vocabulary = self.original_BTV.shape[-1]
        step = max(1, _PIECE_BYTES // (_BYTES_PER_LOGIT * n_vocabulary))
        for start in range(0, len(self.next_N), step):
            rows, tokens = self.places_2N[:, start : start + step]
            yield LogitsChunk(
                self.view(self.original_BTV[rows, tokens][None])[0].float(),
                self.view(self.other_BTV[rows, tokens][None])[0].float(),
                self.next_N[start : start + step],
            )


@dataclass(frozen=True)
class LogitsBatch:
    """A batch of samples, the model's own logits, and a way to ask for others."""

    samples_N: NDArray[np.int64]
    """Sample of each token that counts."""

    positions_N: NDArray[np.int64]
    _pairs: Callable[[], Iterator[LogitsPair]]

    def pairs(self) -> Iterator[LogitsPair]:
        """Run the model with each change; a pair is valid until the next is asked for."""
        return self._pairs()
