"""Token ids from an `.npy` file, memory-mapped: one row a sample, short rows padded with -1.

Tensor legend: N samples, B rows of a batch, T tokens.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.errors import SamplesError, UsageError
from actcli.samples.npy import map_npy
from actcli.samples.token_rows import PADDING, TokenRows, row_blocks

_LARGEST = np.iinfo(np.int32).max


class _Survey(NamedTuple):
    lengths_N: NDArray[np.int64]
    largest_token: int
    n_truncated: int


class TokenSamples(TokenRows):
    """Rows of token ids in a file."""

    def __init__(self, path: Path, ids_NT: NDArray[np.integer[Any]], survey: _Survey) -> None:
        """Take rows that were looked through; `open_token_file` does both."""
        super().__init__(survey.lengths_N)
        self.path, self._ids_NT, self._survey = path, ids_NT, survey

    @property
    def largest_token(self) -> int:
        """The largest token id in any sample."""
        return self._survey.largest_token

    @property
    def n_truncated(self) -> int:
        """How many samples were longer than allowed, and cut."""
        return self._survey.n_truncated

    def manifest(self) -> dict[str, Any]:
        """The file, its size, and a hash of the tokens used."""
        return {
            "files": [{"file": self.path.name, "bytes": self.path.stat().st_size}],
            "n_truncated": self.n_truncated,
            "tokens_sha256": self._sha256(),
        }

    def _padded(self, rows_B: NDArray[np.int64], *, width: int) -> NDArray[np.int32]:
        return self._ids_NT[rows_B, :width].astype(np.int32)


def open_token_file(
    path: Path,
    *,
    limit: int | None = None,
    max_tokens: int | None = None,
    chunk: int | None = None,
) -> TokenSamples:
    """Open rows (N, T) of token ids; a single axis is one row, or a corpus for `chunk`.

    Args:
        path: an `.npy` file of integers; -1 pads short rows on the right.
        limit: take the first rows alone.
        max_tokens: cut longer rows.
        chunk: cut a corpus on a single axis into rows of this many tokens; the remainder is left.

    Raises:
        SamplesError: unreadable, empty, not integers, an id below -1 or beyond 32 bits, or
            padding that is not at the end of a row, or all of one.
        UsageError: `chunk` for rows, or longer than the corpus.
    """
    ids_NT = _as_rows(path, map_npy(path), chunk=chunk)[:limit]
    survey = _look_through(path, ids_NT, max_tokens=max_tokens)
    return TokenSamples(path, ids_NT, survey)


def _as_rows(path: Path, ids: NDArray[Any], *, chunk: int | None) -> NDArray[np.integer[Any]]:
    if not np.issubdtype(ids.dtype, np.integer):
        raise SamplesError(f"{path} holds {ids.dtype} values, expected integers: token ids")
    if ids.ndim not in (1, 2) or not ids.size:
        raise SamplesError(
            f"{path} holds an array of shape {list(ids.shape)}, expected token ids as "
            f"(samples, tokens), or one sample as (tokens)"
        )
    if chunk is None:
        return np.atleast_2d(ids)
    if ids.ndim == 2:
        raise UsageError(
            f"--chunk packs a corpus on a single axis, but {path} holds rows of shape "
            f"{list(ids.shape)}: leave --chunk out"
        )
    if len(ids) < chunk:
        raise UsageError(f"{path} holds {len(ids)} tokens, fewer than one row of --chunk {chunk}")
    return ids[: len(ids) // chunk * chunk].reshape(-1, chunk)


def _look_through(
    path: Path, ids_NT: NDArray[np.integer[Any]], *, max_tokens: int | None
) -> _Survey:
    """Check every id, a block of rows at a time."""
    lengths_N = np.zeros(len(ids_NT), dtype=np.int64)
    largest = 0
    for rows_B in row_blocks(*ids_NT.shape[:1], width=ids_NT.shape[1]):
        block_BT = ids_NT[rows_B[0] : rows_B[-1] + 1]
        lengths_N[rows_B] = _lengths(path, block_BT, first=int(rows_B[0]))
        largest = max(largest, int(block_BT[:, :max_tokens].max()))
    allowed = ids_NT.shape[1] if max_tokens is None else max_tokens
    n_truncated = int((lengths_N > allowed).sum())
    return _Survey(np.minimum(lengths_N, allowed), largest, n_truncated)


def _lengths(path: Path, block_BT: NDArray[Any], *, first: int) -> NDArray[np.int64]:
    is_token = block_BT != PADDING
    lengths_B: NDArray[np.int64] = is_token.sum(axis=1, dtype=np.int64)
    after_padding = is_token & (np.arange(block_BT.shape[1]) >= lengths_B[:, None])
    _refuse(
        path,
        block_BT,
        (block_BT < PADDING) | (block_BT > _LARGEST),
        first=first,
        expected=f"expected token ids from 0 to {_LARGEST}, or -1 where a short row is padded",
    )
    _refuse(
        path,
        block_BT,
        after_padding,
        first=first,
        expected="behind padding (-1): pad short rows at their end alone",
    )
    if not lengths_B.all():
        row = first + int(np.argmin(lengths_B))
        raise SamplesError(f"{path}: row {row} is padding (-1) alone, expected token ids")
    return lengths_B


def _refuse(
    path: Path, block_BT: NDArray[Any], is_bad: NDArray[np.bool_], *, first: int, expected: str
) -> None:
    if is_bad.any():
        row, column = np.argwhere(is_bad)[0]
        value = block_BT[row, column]
        raise SamplesError(f"{path}: row {first + row}, column {column}, is {value}; {expected}")
