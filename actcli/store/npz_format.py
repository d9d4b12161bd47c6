"""Headers of `.npz` files: a zip whose members are `.npy` files, read without numpy."""

import ast
import json
import struct
import zipfile
from math import prod
from pathlib import Path
from typing import IO, NamedTuple

from actcli.errors import DumpError
from actcli.store.header import METADATA_KEY, DumpHeader, Place, TensorInfo

NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
"""How a `.npy` header writes each dtype; there is no word for BF16."""

_WORDS = {descr: word for word, descr in NUMPY_DTYPES.items()}
_MAGIC = b"\x93NUMPY"
_LOCAL_HEADER = struct.Struct("<26xHH")


class NpyHeader(NamedTuple):
    """What stands before the data of a `.npy` file."""

    descr: str
    shape: tuple[int, ...]
    length: int
    """Bytes before the data."""


def member_names(path: Path) -> list[str]:
    """Return the names of the members of a zip file.

    Raises:
        DumpError: the zip is damaged or truncated.
    """
    with _open(path) as archive:
        return archive.namelist()


def read_header(path: Path) -> DumpHeader:
    """Read names, dtypes and shapes of the arrays, and the JSON in the array `metadata`.

    Raises:
        DumpError: truncated or damaged.
    """
    header = DumpHeader({}, {}, {})
    with _open(path) as archive:
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                npy = _read_npy_header(file, f"the array {key!r} in {path}")
                if key == METADATA_KEY and not npy.shape:
                    header.metadata.update(_parse_metadata(file.read(), path))
                    continue
            info = TensorInfo(_WORDS.get(npy.descr, npy.descr), npy.shape)
            _check_size(member, info, npy, path)
            header.tensors[key] = info
            header.places[key] = _place(path, member, npy)
    return header


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DumpError(
            f"{path} is a truncated or damaged .npz or .pt file ({error}); write or copy it again"
        ) from error


def _read_npy_header(file: IO[bytes], what: str) -> NpyHeader:
    try:
        start = file.read(8)
        if not start.startswith(_MAGIC):
            raise ValueError("no .npy header")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(file.read(width), "little")
        fields = ast.literal_eval(file.read(length).decode("latin1"))
        descr, shape = str(fields["descr"]), tuple(map(int, fields["shape"]))
        in_fortran_order = bool(fields["fortran_order"]) and len(shape) > 1
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise DumpError(f"{what} is damaged ({error}); write the dump again") from error
    if in_fortran_order:
        raise DumpError(f"{what} is stored column by column; save numpy.ascontiguousarray of it")
    return NpyHeader(descr, shape, 8 + width + length)


def _parse_metadata(data: bytes, path: Path) -> dict[str, str]:
    try:
        entries = json.loads(data.decode("utf-32-le").rstrip("\0"))
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in entries.items()
        }
    except (ValueError, AttributeError) as error:
        raise DumpError(f"the array 'metadata' in {path} is not a JSON object ({error})") from error


def _check_size(member: zipfile.ZipInfo, info: TensorInfo, npy: NpyHeader, path: Path) -> None:
    if info.dtype not in NUMPY_DTYPES:
        return
    expected = npy.length + info.itemsize * prod(info.shape)
    if member.file_size != expected:
        raise DumpError(
            f"{member.filename} in {path} has {member.file_size:,} bytes, its shape "
            f"{list(info.shape)} needs {expected:,}; write the dump again"
        )


def _place(path: Path, member: zipfile.ZipInfo, npy: NpyHeader) -> Place:
    if member.compress_type != zipfile.ZIP_STORED:
        return Place(npy.length, member.filename)
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return Place(start + npy.length)
