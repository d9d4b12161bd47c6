"""Which tokens of which samples are real: the `mask` of a dump, read piece by piece.

Axis letters: N samples, T tokens, P real tokens, counted row by row through (N, T).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from actcli.errors import DumpError
from actcli.store.reader import StoredTensor

_BLOCK_ELEMENTS = 1 << 20
_DTYPES = ("U8", "I8", "BOOL")


class TokenMask:
    """A stored mask (N, T): 0 at padding, anything else at real tokens."""

    def __init__(self, tensor: StoredTensor) -> None:
        """Look through the mask once.

        Raises:
            DumpError: it does not have two axes, or is of another dtype than U8, I8 and BOOL.
        """
        if len(tensor.shape) != len("NT") or tensor.dtype not in _DTYPES:
            raise DumpError(
                f"{tensor.name!r} holds {tensor.dtype} {list(tensor.shape)}, expected "
                f"(samples, tokens) of dtype {', '.join(_DTYPES)}"
            )
        self._tensor = tensor
        self.shape = tensor.shape
        counts_N = [is_real_BT.sum(axis=1) for _rows, is_real_BT in self._blocks()]
        self._ends_N = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts_N]))

    @property
    def n_real(self) -> int:
        """Real tokens of all samples."""
        return int(self._ends_N[-1])

    @property
    def n_masked(self) -> int:
        """Places of (N, T) that hold no token."""
        n, n_tokens = self.shape
        return n * n_tokens - self.n_real

    @property
    def starts_N(self) -> NDArray[np.int64]:
        """Real tokens before each sample."""
        return self._ends_N[:-1]

    @property
    def counts_N(self) -> NDArray[np.int64]:
        """Real tokens of each sample."""
        return np.diff(self._ends_N)

    def read(self, rows: range) -> NDArray[np.bool_]:
        """Return which tokens of some samples are real, (rows, T)."""
        is_real: NDArray[np.bool_] = self._tensor.read_rows(rows.start, rows.stop) != 0
        return is_real

    def find(self, rows_P: NDArray[np.int64], numbers_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places on the token axis of real tokens.

        Args:
            rows_P: their samples, not falling.
            numbers_P: how many real tokens of the sample come before each.
        """
        found_P = np.empty(rows_P.size, np.int64)
        for rows, is_real_BT in self._blocks(wanted=rows_P):
            first, end = np.searchsorted(rows_P, [rows.start, rows.stop])
            order_BT = np.argsort(~is_real_BT, axis=1, kind="stable")  # real ones come first
            found_P[first:end] = order_BT[rows_P[first:end] - rows.start, numbers_P[first:end]]
        return found_P

    def _blocks(
        self, *, wanted: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[range, NDArray[np.bool_]]]:
        """Go through the samples in blocks, or through the blocks of some of them (not falling)."""
        n, n_tokens = self.shape
        size = max(1, _BLOCK_ELEMENTS // max(1, n_tokens))
        blocks = range(-(-n // size)) if wanted is None else np.unique(wanted // size).tolist()
        for block in blocks:
            rows = range(block * size, min(n, (block + 1) * size))
            yield rows, self.read(rows)
