"""Write a dump row by row: the one writer of activations.

All shapes are known at the start, so every row has its place: rows land there with `pwrite`, in any
order, and memory does not grow with the number of samples. The header, whose room is kept free, is
written last, when the results of the run are known. The work goes on in a `.partial` file of its
own beside the target and is renamed when complete: what has the final name is whole.

Where the file system allows it, whole pages bypass the page cache (`O_DIRECT`): writing then costs
next to no processor time beside the model. Its rule is that address, position and length are
multiples of a page, so the data section starts on one and tensors of whole-page rows come first.
"""

import contextlib
import errno
import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from actcli.errors import DumpError, reason
from actcli.store.header import TensorInfo

PAGE = 4096
"""Alignment of direct writes, in bytes."""

_ROOM_FOR_RESULTS = 1 << 14
_ROOM_FOR_A_TENSOR = 1 << 8  # what the manifest comes to say of it
_WRITE_BYTES = 1 << 28
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class DumpWriter:
    """An open dump that is being written; use as a context manager, and end with `commit`.

    Leaving the context without `commit` removes the partial file and touches nothing else.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        *,
        metadata: Mapping[str, str] | None = None,
        force: bool = False,
    ) -> None:
        """Make the partial file and reserve its space on disk.

        Args:
            path: the final name.
            tensors: what will be written, in the order in which the header lists it.
            metadata: what is known of it now; `commit` may give more.
            force: whether a file of that name may be replaced, once the new one is complete.

        Raises:
            DumpError: the file exists, the folder is not writable, or the disk is too small.
        """
        check_target(path, force=force)
        self.path, self._target, self._force = path, path.resolve(), force
        self.partial = self._target.with_name(f"{path.name}.{token_hex(4)}.partial")
        self.tensors = dict(tensors)
        self._offsets = _lay_out(self.tensors)
        header = self._header(metadata or {})
        room = len(header) + _ROOM_FOR_RESULTS + _ROOM_FOR_A_TENSOR * len(self.tensors)
        self._base = -(-room // PAGE) * PAGE
        self.n_bytes = self._base + sum(info.nbytes for info in self.tensors.values())
        self._file = self._direct = -1
        try:
            self._open()
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise self._failure(error) from error
            raise

    def write_rows(self, key: str, start: int, rows: memoryview) -> None:
        """Write the bytes of rows `start`, `start + 1`, ... of a tensor.

        Raises:
            DumpError: the disk is full or gone.
        """
        assert rows.nbytes % self.row_bytes(key) == 0, f"{key}: not a whole number of rows"
        position = self._position(key, start)
        assert position + rows.nbytes <= self._position(key, 0) + self.tensors[key].nbytes, key
        try:
            self._write(rows.cast("B"), position)
        except OSError as error:
            raise self._failure(error) from error

    def read_row(self, key: str, row: int) -> bytes:
        """Return the bytes of one row, as they are in the file."""
        return os.pread(self._file, self.row_bytes(key), self._position(key, row))

    def row_bytes(self, key: str) -> int:
        """Size of one row: the tensor without its first axis."""
        return _row_bytes(self.tensors[key])

    def commit(self, metadata: Mapping[str, str]) -> None:
        """Write the metadata, flush, and give the file its name.

        Raises:
            DumpError: the disk is full or gone.
        """
        header = self._header(metadata)
        assert len(header) <= self._base, "the metadata outgrew the room that was left for it"
        length = struct.pack("<Q", self._base - 8)
        try:
            os.pwrite(self._file, length + header[8:].ljust(self._base - 8), 0)
            os.fsync(self._file)
            self._close()
            if is_converted(self.path):
                self._convert(metadata)
            else:
                self._publish(self.partial)
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def _convert(self, metadata: Mapping[str, str]) -> None:
        """Make the format that was asked for; what was captured survives if that fails."""
        from actcli.store.export import export

        converted = self.partial.with_name(self.partial.name + self.path.suffix)
        try:
            export(self.partial, converted, metadata=metadata)
            self._publish(converted)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            kept = self._target.with_name(f"{self.path.name}.{token_hex(4)}.safetensors")
            self.partial.replace(kept)
            raise DumpError(
                f"cannot write {self.path}: {reason(error)}; "
                f"the dump is complete and kept as {kept}"
            ) from error
        finally:
            converted.unlink(missing_ok=True)

    def _publish(self, file: Path) -> None:
        """Give a complete file its name; without `force`, only if nobody has taken it meanwhile."""
        if not self._force and self._target.exists():
            raise OSError(errno.EEXIST, "somebody else wrote it meanwhile (--force replaces it)")
        file.replace(self._target)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        """The 8-byte length and the JSON, without the padding."""
        entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        for key, info in self.tensors.items():
            start = self._offsets[key]
            entries[key] = {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "data_offsets": [start, start + info.nbytes],
            }
        return bytes(8) + json.dumps(entries, separators=(",", ":")).encode()

    def _position(self, key: str, row: int) -> int:
        return self._base + self._offsets[key] + row * self.row_bytes(key)

    def _open(self) -> None:
        self._file = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if is_converted(self.path):  # the converted file stands beside the first one for a while
            _check_free(2 * self.n_bytes, folder=self._target.parent)
        _reserve(self._file, self.n_bytes, folder=self._target.parent)
        with contextlib.suppress(OSError, AttributeError):  # not every system has it
            self._direct = os.open(self.partial, os.O_WRONLY | os.O_DIRECT)

    def _write(self, rows: memoryview, position: int) -> None:
        done = 0
        while done < rows.nbytes:
            piece = rows[done : done + _WRITE_BYTES]
            done += self._write_piece(piece, position + done)

    def _write_piece(self, piece: memoryview, position: int) -> int:
        if self._direct >= 0 and position % PAGE == 0 and piece.nbytes % PAGE == 0:
            try:
                return os.pwrite(self._direct, piece, position)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise  # an address that is not on a page gives EINVAL: write it buffered
        return os.pwrite(self._file, piece, position)

    def _close(self) -> None:
        for handle in (self._file, self._direct):
            if handle >= 0:
                os.close(handle)
        self._file = self._direct = -1

    def _discard(self) -> None:
        self._close()
        self.partial.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> DumpError:
        why = reason(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self._target.parent).free
            needed = self.n_bytes * (2 if is_converted(self.path) else 1)
            why = f"{why}: it needs {needed:,} bytes and {free:,} are free"
        kept = "; the file that was there is untouched" if self.path.exists() else ""
        return DumpError(f"cannot write {self.path}: {why}{kept}")


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a target that cannot become a file, before any work is done for it.

    Raises:
        DumpError: it exists and `force` is not given, it is a folder, or its folder is missing
            or not writable.
    """
    if path.is_dir():
        raise DumpError(f"cannot write {path}: it is a folder; give a file name")
    if path.exists() and not force:
        raise DumpError(f"{path} exists: choose another --output, or --force to replace it")
    make_folder(path.absolute().parent)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, that files can be written into.

    Raises:
        DumpError: it cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DumpError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DumpError(f"cannot write into {folder}: permission denied")


def _reserve(file: int, n_bytes: int, *, folder: Path) -> None:
    """Take the space on disk now, so that the disk cannot fill up half-way.

    Raises:
        OSError: there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, n_bytes)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    _check_free(n_bytes, folder=folder)
    os.ftruncate(file, n_bytes)


def _check_free(n_bytes: int, *, folder: Path) -> None:
    if shutil.disk_usage(folder).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_converted(path: Path) -> bool:
    """Whether a dump of that name is made from a finished safetensors file beside it."""
    return path.suffix != ".safetensors"


def _lay_out(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Where each tensor begins in the data section: whole-page rows first, then wide elements."""
    offsets, end = {}, 0
    order = sorted(tensors, key=lambda key: _untidiness(tensors[key]))
    for key in order:
        offsets[key] = end
        end += tensors[key].nbytes
    return offsets


def _untidiness(info: TensorInfo) -> tuple[bool, int]:
    return _row_bytes(info) % PAGE != 0, -info.itemsize


def _row_bytes(info: TensorInfo) -> int:
    return max(1, info.nbytes // max(1, info.shape[0])) if info.shape else info.itemsize
