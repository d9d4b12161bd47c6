"""Rows of token ids as samples, whatever they come from; short rows are padded on the right.

A dump keeps `token_ids` (N, T), -1 at padding, and `mask` (N, T), 1 at real tokens.

Tensor legend: N samples, B rows of a batch, T tokens.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.samples.source import Rows, SampleBatch
from actcli.store.header import TensorInfo

PADDING = -1
"""What stands for no token in a dump and in a file of token ids."""

_TOKENS_AT_ONCE = 1 << 20


class TokenRows(ABC):
    """Samples that are rows of token ids, of one length or of several."""

    def __init__(self, lengths_N: NDArray[np.int64]) -> None:
        self._lengths_N = lengths_N
        self._longest = int(lengths_N.max())

    @property
    @abstractmethod
    def largest_token(self) -> int:
        """The largest token id in any sample."""

    @property
    def n_truncated(self) -> int:
        """How many samples were longer than allowed, and cut."""
        return 0

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Where they come from, for the manifest of a dump."""

    @abstractmethod
    def _padded(self, rows_B: NDArray[np.int64], *, width: int) -> NDArray[np.int32]:
        """Token ids of some samples (B, width), -1 beyond a sample's length."""

    def __len__(self) -> int:
        return len(self._lengths_N)

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest sample."""
        return self._longest

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Tokens of each sample, (N,); None where all have `n_tokens`."""
        ragged = bool((self._lengths_N < self._longest).any())
        return self._lengths_N if ragged else None

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """`token_ids` (N, T) int32 and `mask` (N, T) uint8."""
        shape = (len(self), self.n_tokens)
        return {"token_ids": TensorInfo("I32", shape), "mask": TensorInfo("U8", shape)}

    def batch(self, rows: Rows) -> SampleBatch:
        """Tokens (B, T), padded with 0 to the longest of the batch, and a mask if there is any."""
        rows_B = np.asarray(rows, dtype=np.int64)
        ids_BT = self._padded(rows_B, width=self.n_tokens)
        mask_BT = ids_BT != PADDING
        width = int(self._lengths_N[rows_B].max())
        inputs: dict[str, NDArray[Any]] = {
            "tokens": np.where(mask_BT, ids_BT, 0)[:, :width].astype(np.int64)
        }
        if not mask_BT[:, :width].all():
            inputs["mask"] = mask_BT[:, :width]
        stored = {"token_ids": ids_BT, "mask": mask_BT.astype(np.uint8)}
        return SampleBatch(rows, inputs, stored)

    def _sha256(self) -> str:
        return rows_sha256(self._padded(rows, width=self.n_tokens) for rows in self._blocks())

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """Consecutive rows, so many at once that memory is bounded."""
        return row_blocks(len(self), width=self.n_tokens)


def row_blocks(n_rows: int, *, width: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of consecutive rows, about a million tokens' worth at a time."""
    step = max(1, _TOKENS_AT_ONCE // width)
    for start in range(0, n_rows, step):
        yield np.arange(start, min(start + step, n_rows), dtype=np.int64)


def rows_sha256(blocks: Iterable[NDArray[np.integer[Any]]]) -> str:
    """Return the sha256 of all rows: ids as little-endian int32, -1 after each row.

    Args:
        blocks: rows (B, T) of ids, padded on the right with -1; how wide does not matter.
    """
    digest = hashlib.sha256()
    for block_BT in blocks:
        closed = np.pad(block_BT, ((0, 0), (0, 1)), constant_values=PADDING)
        kept = np.ones(closed.shape, dtype=np.bool_)
        kept[:, 1:] = closed[:, :-1] != PADDING  # the tokens, and the first -1 behind them
        digest.update(closed[kept].astype("<i4").tobytes())
    return digest.hexdigest()
