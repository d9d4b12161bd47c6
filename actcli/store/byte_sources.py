"""Where the bytes of a stored tensor come from: a file, a compressed member of one, or memory."""

import mmap
import os
import shutil
import tempfile
import zipfile
import zlib
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from actcli.errors import DumpError, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALIGNMENT = 8  # enough for the elements of every dtype


class Bytes(Protocol):
    """Where the bytes of a tensor come from."""

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on, counted from the tensor's first."""

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return these bytes without copying them; None where that is not possible."""

    def expect(self, offset: int, length: int) -> None:
        """Say that these bytes will be wanted soon."""

    def forget(self, offset: int, length: int) -> None:
        """Say that these bytes were viewed for the last time, so that they need no memory."""


class InFile:
    """Bytes at a place in an open file."""

    def __init__(self, path: Path, file_number: int, start: int) -> None:
        self._path, self._file_number, self._start = path, file_number, start

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` from an offset on."""
        place = self._start + offset
        while target:
            count = os.preadv(self._file_number, [target], place)
            if not count:
                raise DumpError(f"{self._path} was cut at byte {place:,} while being read")
            target, place = target[count:], place + count

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return bytes in place."""
        place = self._start + offset
        if place % _ALIGNMENT or not length:
            return None
        return memoryview(self._mapped)[place : place + length]

    def expect(self, offset: int, length: int) -> None:
        """Let the disk start."""
        if hasattr(os, "posix_fadvise"):
            advice = os.POSIX_FADV_WILLNEED
            os.posix_fadvise(self._file_number, self._start + offset, length, advice)

    def forget(self, offset: int, length: int) -> None:
        """Drop the pages from this process; the system still caches the file."""
        first = (self._start + offset) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED, first, self._start + offset + length - first)

    @cached_property
    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._file_number, 0, access=mmap.ACCESS_READ)


class InPackedMember:
    """Bytes of a compressed member of a zip file, unpacked to a temporary file at first use."""

    def __init__(self, path: Path, member: str, start: int, stack: ExitStack) -> None:
        self._path, self._member, self._start, self._stack = path, member, start, stack

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` from an offset on."""
        self._unpacked.read_into(target, offset)

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return bytes in place."""
        return self._unpacked.view(offset, length)

    def expect(self, offset: int, length: int) -> None:
        """Nothing to do: the member is unpacked as a whole."""

    def forget(self, offset: int, length: int) -> None:
        """Drop the pages from this process."""
        self._unpacked.forget(offset, length)

    @cached_property
    def _unpacked(self) -> InFile:
        file = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as packed:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise DumpError(
                f"cannot unpack {self._member} of {self._path}: {reason(error)}"
            ) from error
        file.flush()
        return InFile(self._path, file.fileno(), self._start)


class InMemory:
    """Bytes of a flat contiguous array."""

    def __init__(self, array: "NDArray[Any]") -> None:
        self._bytes: memoryview = array.view("u1").data

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` from an offset on."""
        target[:] = self._bytes[offset : offset + len(target)]

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return bytes in place."""
        return self._bytes[offset : offset + length]

    def expect(self, offset: int, length: int) -> None:
        """Nothing to do: it is there."""

    def forget(self, offset: int, length: int) -> None:
        """Nothing to do: it stays."""
