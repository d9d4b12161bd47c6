"""Which samples and tokens the rows of a dump's tensors are of.

Activations are (N, L, T, d), (N, T, d), or (P, d) for tokens one after another. Which places hold
tokens is told by the dump's `mask`, or by -1 in its `token_ids`. A dump of chosen positions holds
these alone, beside the ids of all tokens.

Axis letters: N samples, T places of a sample, P places of several samples, row by row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actcli.capture.positions import kept_positions
from actcli.capture.token_rules import Places
from actcli.errors import DumpError
from actcli.samples.token_rows import PADDING
from actcli.store.reader import Dump, StoredTensor

MASK, TOKEN_IDS = "mask", "token_ids"
_MASK_DTYPES = ("U8", "I8", "BOOL", "I32", "I64")
_ID_DTYPES = ("I32", "I64", "U16", "U32", "I16", "U8")
_BLOCK_ROWS, _LEAST_BLOCKS = 128, 64
_PLACES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TokenGrid:
    """The places (N, T) of a dump; the last sample may be cut short."""

    n_samples: int
    n_places: int
    """Places of a sample, T."""

    total: int
    """All places; N * T, unless blocks of rows stand for samples."""

    has_samples: bool
    """False if blocks of rows stand for samples, which are not known."""

    mask: StoredTensor | None = None
    ids: StoredTensor | None = None
    """Ids of all tokens of the samples, also where only some places are held."""

    held_positions: tuple[int, ...] | None = None
    """The positions that the places are of, where the dump holds only some; negative ones count
    from a sample's own end."""

    def places(self, start: int, stop: int) -> Places:
        """Describe consecutive places of the flattened grid."""
        first, last = start // self.n_places, -(-stop // self.n_places)
        numbers_P = np.arange(start, stop)
        samples_P = numbers_P // self.n_places
        cut = slice(start - first * self.n_places, stop - first * self.n_places)
        is_real_BT, positions_BT, lengths_B = self._rows(first, last)
        ids_P = self._ids_at(first, last, positions_BT, cut)
        return Places(
            samples_P,
            positions_BT.reshape(-1)[cut],
            lengths_B[samples_P - first],
            is_real_BT.reshape(-1)[cut],
            ids_P,
        )

    def count_real(self) -> int:
        """Count the places that hold tokens."""
        if self.mask is None and self.ids is None:
            return self.total
        step = max(1, _PLACES_AT_ONCE // self.n_places) * self.n_places
        return sum(
            int(self.places(start, min(start + step, self.total)).is_real_P.sum())
            for start in range(0, self.total, step)
        )

    def ids_of(self, sample: int) -> NDArray[np.int64] | None:
        """Return the token ids of a sample (its tokens,), without padding; None if unknown."""
        if self.ids is None:
            return None
        ids_T = self._read(self.ids, sample, sample + 1)[0].astype(np.int64)
        is_real_T = ids_T != PADDING
        if self.held_positions is None and self.mask is not None:
            is_real_T &= self._read(self.mask, sample, sample + 1)[0] != 0
        real_ids: NDArray[np.int64] = ids_T[is_real_T]
        return real_ids

    def _rows(
        self, first: int, last: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Whether there is a token (B, T), which of its sample (B, T), and how many it has (B,)."""
        shape = (last - first, self.n_places)
        is_real_BT = np.ones(shape, np.bool_)
        is_real_BT.reshape(-1)[self.total - first * self.n_places :] = False
        if self.mask is not None:
            is_real_BT &= self._read(self.mask, first, last) != 0
        ids = None if self.ids is None else self._read(self.ids, first, last)
        if self.held_positions is not None:
            width = max((*self.held_positions, -1)) + 1 if ids is None else ids.shape[1]
            lengths_B = np.full(shape[0], width) if ids is None else (ids != PADDING).sum(axis=1)
            index_BT, is_there_BT = kept_positions(self.held_positions, lengths_B)
            return is_real_BT & is_there_BT, index_BT, lengths_B
        if ids is not None:
            is_real_BT &= ids != PADDING
        positions_BT = np.maximum(is_real_BT.cumsum(axis=1) - 1, 0)
        return is_real_BT, positions_BT, is_real_BT.sum(axis=1)

    def _ids_at(
        self, first: int, last: int, positions_BT: NDArray[np.int64], cut: slice
    ) -> NDArray[np.int64] | None:
        if self.ids is None:
            return None
        ids = self._read(self.ids, first, last)
        if self.held_positions is not None:
            order_BS = np.argsort(ids == PADDING, axis=1, kind="stable")  # real ones come first
            ids = np.take_along_axis(ids, np.take_along_axis(order_BS, positions_BT, 1), 1)
        return ids.reshape(-1)[cut].astype(np.int64)

    def _read(self, tensor: StoredTensor, first: int, last: int) -> NDArray[np.int64]:
        """Rows of the mask or the ids, (B, their width); beyond the end of flat ones padding."""
        if len(tensor.shape) == 2:
            rows_BT: NDArray[np.int64] = tensor.read_rows(first, last)
            return rows_BT
        rows = np.full((last - first) * self.n_places, PADDING, np.int64)
        end = min(last * self.n_places, self.total)
        rows[: end - first * self.n_places] = tensor.read_rows(first * self.n_places, end)
        return rows.reshape(last - first, self.n_places)


def find_grid(dump: Dump, shape: tuple[int, ...], *, key: str) -> TokenGrid:
    """Find the samples and tokens that the places of activations are of.

    Args:
        dump: the open dump.
        shape: of one of its activations: (N, T), or (P,) for tokens one after another.
        key: its key, for messages.

    Raises:
        DumpError: the mask or the ids are of another shape or dtype.
    """
    mask, ids = _integers(dump, MASK, _MASK_DTYPES), _integers(dump, TOKEN_IDS, _ID_DTYPES)
    held = _held_positions(dump)
    if len(shape) == 1:
        given = [each.shape for each in (mask, ids) if each is not None]
        grids = [each for each in given if len(each) == 2 and each[0] * each[1] == shape[0]]
        if not grids:
            return _blocks(shape[0], mask=mask, ids=ids, dump=dump, key=key)
        shape = grids[0]
    if held is not None and len(held) != shape[1]:
        held = None
    _check_fits(dump, mask, shape, key=key)
    _check_fits(dump, ids, shape if held is None else (shape[0], None), key=key)
    return TokenGrid(
        shape[0], shape[1], shape[0] * shape[1], True, mask=mask, ids=ids, held_positions=held
    )


def _blocks(
    total: int, *, mask: StoredTensor | None, ids: StoredTensor | None, dump: Dump, key: str
) -> TokenGrid:
    """Rows that nothing says the samples of: neighbours are taken together, as they are alike."""
    _check_fits(dump, mask, (total,), key=key)
    _check_fits(dump, ids, (total,), key=key)
    n_places = max(1, min(_BLOCK_ROWS, total // _LEAST_BLOCKS))
    return TokenGrid(-(-total // n_places), n_places, total, has_samples=False, mask=mask, ids=ids)


def _held_positions(dump: Dump) -> tuple[int, ...] | None:
    found = dump.manifest.get("positions")
    return tuple(map(int, found)) if isinstance(found, list) else None


def _integers(dump: Dump, key: str, dtypes: tuple[str, ...]) -> StoredTensor | None:
    info = dump.header.tensors.get(key)
    if info is None:
        return None
    if info.dtype not in dtypes or len(info.shape) not in (1, 2):
        raise DumpError(
            f"{key!r} in {dump.path} holds {info.dtype} {list(info.shape)}, expected (samples, "
            f"tokens) of dtype {', '.join(dtypes)}: rename it if it is something else"
        )
    return dump.tensor(key)


def _check_fits(
    dump: Dump, tensor: StoredTensor | None, shape: tuple[int | None, ...], *, key: str
) -> None:
    if tensor is None:
        return
    fits = len(tensor.shape) == len(shape) and all(
        wanted in (None, found) for found, wanted in zip(tensor.shape, shape, strict=False)
    )
    if not fits:
        raise DumpError(
            f"{tensor.name!r} in {dump.path} is {list(tensor.shape)}, which does not fit {key!r} "
            f"with {' x '.join(str(each) for each in shape)} places: each place of activations "
            f"needs one entry; write the dump again, or remove what belongs to other data"
        )
