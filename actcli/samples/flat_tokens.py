"""The token ids and offsets of a corpus, one text after another in flat arrays.

Tensor legend: F all tokens of a corpus, N samples, D texts.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actcli.samples.tokenizer import Encoding


@dataclass(frozen=True)
class FlatTokens:
    """The tokens of many samples, one sample after another."""

    ids_F: NDArray[np.int32]
    """Token ids."""

    offsets_F2: NDArray[np.int32] | None
    """Characters of each token; None where the tokenizer does not say."""

    starts_N: NDArray[np.int64]
    """Where each sample begins."""

    lengths_N: NDArray[np.int64]
    """Tokens of each sample."""

    document_ends_D: NDArray[np.int64] | None = None
    """Where the tokens of each text end, if samples are packed rows."""


class GrowingTokens:
    """Encodings, appended to flat arrays that grow."""

    def __init__(self) -> None:
        self._ids, self._offsets, self._lengths = array("i"), array("i"), array("q")
        self._has_offsets = True

    @property
    def n_tokens(self) -> int:
        """Tokens of all encodings so far."""
        return len(self._ids)

    def add(self, encoding: Encoding) -> None:
        """Append an encoding."""
        self._ids.frombytes(encoding.ids.tobytes())
        self._lengths.append(len(encoding.ids))
        if encoding.offsets is None:
            self._has_offsets = False
        else:
            self._offsets.frombytes(encoding.offsets.tobytes())

    def samples(self) -> FlatTokens:
        """Return them as samples, each encoding one."""
        lengths_N = np.frombuffer(self._lengths, dtype=np.int64)
        starts_N = np.cumsum(lengths_N) - lengths_N
        return FlatTokens(self._flat_ids(), self._flat_offsets(), starts_N, lengths_N)

    def rows(self, n_rows: int, *, chunk: int) -> FlatTokens:
        """Return them joined and cut into so many rows; what is left over is dropped."""
        n_tokens = n_rows * chunk
        offsets_F2 = self._flat_offsets()
        return FlatTokens(
            self._flat_ids()[:n_tokens],
            None if offsets_F2 is None else offsets_F2[:n_tokens],
            starts_N=np.arange(0, n_tokens, chunk, dtype=np.int64),
            lengths_N=np.full(n_rows, chunk, dtype=np.int64),
            document_ends_D=np.cumsum(np.frombuffer(self._lengths, dtype=np.int64)),
        )

    def _flat_ids(self) -> NDArray[np.int32]:
        return np.frombuffer(self._ids, dtype=np.int32)

    def _flat_offsets(self) -> NDArray[np.int32] | None:
        if not self._has_offsets:
            return None
        return np.frombuffer(self._offsets, dtype=np.int32).reshape(-1, 2)
