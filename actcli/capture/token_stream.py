"""The tokens that dictionaries are judged on: from a dump, or from a model that runs.

Both give the same: activations of the tokens that count, without padding, in the order of samples
and positions, never all at once.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actcli.capture.token_rules import TokenRules
from actcli.capture.token_stream_count import TokenBatch
from actcli.capture.token_stream_dump import open_dumped_tokens
from actcli.capture.token_stream_model import open_model_tokens
from actcli.reports.sae_subject import TokenSet

__all__ = ["TokenBatch", "TokenRules", "TokenStream", "open_dumped_tokens", "open_model_tokens"]


class TokenStream(Protocol):
    """Tokens with their activations."""

    @property
    def name(self) -> str:
        """The dump, or the model and its samples."""
        ...

    @property
    def model(self) -> str | None:
        """What the model is called, where that is known."""
        ...

    @property
    def places(self) -> Mapping[str, tuple[str, int | None]]:
        """Site (or key of the dump) and layer of each key that was asked for."""
        ...

    @property
    def widths(self) -> Mapping[str, int]:
        """Numbers per token of each key."""
        ...

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        ...

    @property
    def n_tokens(self) -> int:
        """At most so many tokens will be counted."""
        ...

    def batches(self) -> Iterator[TokenBatch]:
        """Yield the tokens that count; each batch is valid until the next. May be asked again."""
        ...

    def token_set(self) -> TokenSet:
        """Return which tokens were counted, when all batches have been read."""
        ...

    def ids_of(self, sample: int) -> NDArray[np.int64] | None:
        """Return the token ids of a sample, by position; None where they are not known."""
        ...

    def known_widths(self) -> dict[str, int]:
        """Return the width of everything that could be asked for, by key or site."""
        ...
