"""What the capture engine asks of any source of samples.

Tensor legend: N samples, B rows of a batch, T tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from actcli.store.header import TensorInfo

Rows = range | NDArray[np.int64]
"""Numbers of samples; a range where they are consecutive."""


def as_index(rows: Rows) -> slice | NDArray[np.int64]:
    """Return what picks these rows of an array, without a copy where they are consecutive."""
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


class SampleBatch(NamedTuple):
    """Some samples, as a model reads them."""

    rows: Rows
    """Their numbers, in the order of the batch."""

    inputs: Mapping[str, NDArray[Any]]
    """What the model reads, by the name that its adapter expects; batch first. `tokens` (B, T) are
    padded on the right to the longest sample of the batch; `mask` (B, T) bool, true at real tokens,
    is there only if some are padding."""

    stored: Mapping[str, NDArray[Any]]
    """What a dump keeps beside the activations, by key; batch first, as wide as in the dump."""


class SampleSource(Protocol):
    """Samples by number, as many as it says."""

    def __len__(self) -> int: ...

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest sample."""
        ...

    @property
    def largest_token(self) -> int:
        """The largest token id in any sample."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Tokens of each sample, (N,); None where all have `n_tokens`."""
        ...

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """What a dump keeps beside the activations: whole tensors by key."""
        ...

    def batch(self, rows: Rows) -> SampleBatch:
        """Return the samples of these numbers, in this order."""
        ...

    def manifest(self) -> dict[str, Any]:
        """Where they come from, for the manifest of a dump."""
        ...
