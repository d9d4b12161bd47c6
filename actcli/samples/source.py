"""What the capture engine asks of any source of samples.

Tensor legend: B rows of a batch, T tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from actcli.store.header import TensorInfo


class SampleBatch(NamedTuple):
    """Consecutive samples."""

    start: int
    """Number of the first one."""

    inputs: Mapping[str, NDArray[Any]]
    """What the model reads, by the name that its adapter expects; batch first."""

    stored: Mapping[str, NDArray[Any]]
    """What a dump keeps beside the activations, by key; batch first."""


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
    def stored(self) -> Mapping[str, TensorInfo]:
        """What a dump keeps beside the activations: whole tensors by key."""
        ...

    def batch(self, start: int, stop: int) -> SampleBatch:
        """Return the samples from `start` up to `stop`."""
        ...

    def manifest(self) -> dict[str, Any]:
        """Where they come from, for the manifest of a dump."""
        ...
