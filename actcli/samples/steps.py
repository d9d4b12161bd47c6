"""Rows of 2048 games: `steps.npy`, or shards `steps-*.npy`, memory-mapped.

A row is found by its field names: `board` packs 16 tile exponents into 64 bits, cell i (row-major,
0 = top left) in bits 63-4i..60-4i; where bit i of `tile_65536_mask` is set the cell is 65536
(exponent 16), which does not fit into four bits.

Tensor legend: B rows, T cells (16).
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.builtin import find_builtin, is_builtin
from actcli.errors import SamplesError
from actcli.samples.npy import map_npy

N_CELLS = 16
TILE_65536 = 16
SINGLE_FILE = "steps.npy"
_SHARD = re.compile(r"steps-(\d+)\.npy")
_SHIFTS_T = np.arange(60, -4, -4, dtype=np.uint64)
_SURVEY_ROWS = 1 << 16


@dataclass(frozen=True)
class Survey:
    """What a look at the chosen rows tells before any work starts."""

    largest_tile: int
    """The highest exponent on a chosen board."""

    sha256: str
    """Hash of the chosen boards in their order."""


class StepsData:
    """All rows of a steps folder, addressed by one index over the concatenated shards."""

    def __init__(self, folder: Path, shards: list[Path]) -> None:
        self.folder, self.shards = folder, shards
        self._rows = [_open_shard(path) for path in shards]
        _check_same_fields(shards, self._rows)
        self._starts = np.cumsum([0] + [len(rows) for rows in self._rows])
        if not len(self):
            raise SamplesError(f"{folder} holds no rows: its step files are empty")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def boards(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the tile exponents (B, 16) of the rows at these indices, in their order."""
        boards_BT = np.empty((len(indices), N_CELLS), dtype=np.uint8)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shard_of):
            chosen = shard_of == shard
            boards_BT[chosen] = decode(self._rows[shard][indices[chosen] - self._starts[shard]])
        return boards_BT

    def survey(self, indices: NDArray[np.int64]) -> Survey:
        """Look through the chosen rows once, in bounded memory."""
        digest, largest = hashlib.sha256(), 0
        for start in range(0, len(indices), _SURVEY_ROWS):
            boards_BT = self.boards(indices[start : start + _SURVEY_ROWS])
            digest.update(boards_BT.tobytes())
            largest = max(largest, int(boards_BT.max()))
        return Survey(largest, digest.hexdigest())

    def fingerprint(self) -> dict[str, Any]:
        """Names and sizes of the files, for the manifest of a dump."""
        files = [{"file": path.name, "bytes": path.stat().st_size} for path in self.shards]
        return {"folder": str(self.folder), "rows": len(self), "files": files}


def open_steps(dataset: str) -> StepsData:
    """Open a folder of step files, or one that is built in (`demo://2048-steps`).

    Raises:
        SamplesError: nothing there, empty, damaged, no `board` field, shards that do not fit
            together, or numbers missing in their row.
    """
    if is_builtin(dataset):
        folder = find_builtin(dataset, holding=SINGLE_FILE, error=SamplesError)
    else:
        folder = Path(dataset).expanduser()
    return StepsData(folder, _find_shards(folder))


def decode(rows: NDArray[np.void]) -> NDArray[np.uint8]:
    """Return the tile exponents (B, 16) of packed rows."""
    nibbles_BT = (rows["board"].astype(np.uint64)[:, None] >> _SHIFTS_T) & np.uint64(0xF)
    boards_BT = nibbles_BT.astype(np.uint8)
    if "tile_65536_mask" in (rows.dtype.names or ()):
        bits_BT = rows["tile_65536_mask"][:, None] >> np.arange(N_CELLS, dtype=np.uint16)
        boards_BT[(bits_BT & 1).astype(bool)] = TILE_65536
    return boards_BT


def _find_shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise SamplesError(f"{folder} {what}: expected a folder with {SINGLE_FILE} or steps-*.npy")
    shards = sorted(_numbered(folder))
    single = folder / SINGLE_FILE
    if shards and single.exists():
        raise SamplesError(f"{folder} holds both {SINGLE_FILE} and steps-*.npy: remove one kind")
    if not shards and not single.exists():
        raise SamplesError(f"{folder} holds no steps: expected {SINGLE_FILE} or steps-*.npy")
    _check_no_gap(folder, [number for number, _path in shards])
    return [path for _number, path in shards] or [single]


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("steps-*.npy"):
        match = _SHARD.fullmatch(path.name)
        if match is None:
            raise SamplesError(f"{path} has no number: expected names like steps-00000.npy")
        yield int(match[1]), path


def _check_no_gap(folder: Path, numbers: list[int]) -> None:
    if not numbers:
        return
    first = min(numbers[0], 1)  # shards count from 0 or from 1
    missing = sorted(set(range(first, numbers[-1] + 1)) - set(numbers))
    if missing or len(set(numbers)) < len(numbers):
        named = ", ".join(f"steps-{number:05d}.npy" for number in missing[:3])
        what = f"{len(missing)} missing ({named})" if missing else "a number used twice"
        raise SamplesError(f"the shards in {folder} are not in one row: {what}")


def _open_shard(path: Path) -> NDArray[np.void]:
    rows = map_npy(path)
    fields = rows.dtype.names
    if fields is None or rows.ndim != 1:
        raise SamplesError(
            f"{path} holds {rows.dtype} {rows.shape}, expected rows with named fields"
        )
    if "board" not in fields:
        raise SamplesError(f"{path} has no field 'board'; it has: {', '.join(fields)}")
    for field in {"board", "tile_65536_mask"} & set(fields):
        if not np.issubdtype(rows.dtype[field], np.integer):
            raise SamplesError(f"{path}: field {field!r} is {rows.dtype[field]}, expected integers")
    return rows


def _check_same_fields(shards: list[Path], rows: list[NDArray[np.void]]) -> None:
    for path, each in zip(shards, rows, strict=True):
        if each.dtype != rows[0].dtype:
            raise SamplesError(
                f"{path} has other fields than {shards[0].name}: {each.dtype} and {rows[0].dtype}"
            )
