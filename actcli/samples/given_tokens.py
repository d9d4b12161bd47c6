"""One text as token ids that are at hand already, such as those of a row of a dump.

Tensor legend: B rows of a batch, T tokens.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.samples.token_rows import PADDING, TokenRows


class GivenTokens(TokenRows):
    """A single sample of token ids (T,)."""

    def __init__(self, ids_T: NDArray[np.integer[Any]]) -> None:
        super().__init__(np.array([len(ids_T)], dtype=np.int64))
        self._ids_T = ids_T.astype(np.int32)

    @property
    def largest_token(self) -> int:
        """The largest token id."""
        return int(self._ids_T.max())

    def manifest(self) -> dict[str, Any]:
        """Nothing is known of where they come from."""
        return {}

    def _padded(self, rows_B: NDArray[np.int64], *, width: int) -> NDArray[np.int32]:
        padded_T = np.full(width, PADDING, dtype=np.int32)
        padded_T[: len(self._ids_T)] = self._ids_T
        return np.repeat(padded_T[None], len(rows_B), axis=0)
