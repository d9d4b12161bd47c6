"""What a dump says of itself before any tensor is read: names, dtypes, shapes and metadata.

Needs the standard library alone (for `.pt` files also torch), so shell completion can use it.
The content of a file decides what it is, never its suffix.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from actcli.errors import DumpError

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per element of each dtype, in the words of the safetensors format."""

FLOATS = ("F64", "F32", "BF16", "F16")
"""The dtypes that activations come in."""

METADATA_KEY = "metadata"
"""Where `.npz` and `.pt` dumps keep their metadata, beside the tensors."""

MANIFEST_KEY = "manifest"
"""The metadata entry whose value is JSON: how the dump was made."""

_ZIP_MAGIC = b"PK\x03\x04"
_OLD_TORCH_MAGIC = b"\x80"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: str
    """Element type in the words of the safetensors format: F32, BF16, I64, U8, ..."""

    shape: tuple[int, ...]
    """Length of each axis."""

    @property
    def itemsize(self) -> int:
        """Bytes per element.

        Raises:
            DumpError: the dtype is none that a dump can hold.
        """
        if self.dtype not in ITEM_SIZES:
            known = ", ".join(ITEM_SIZES)
            raise DumpError(f"a tensor of dtype {self.dtype} cannot be read; readable are: {known}")
        return ITEM_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor: itemsize times the product of the shape."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor are in its file."""

    offset: int
    """First byte, from the start of the file (of the unpacked member, if it is packed)."""

    packed_member: str | None = None
    """The zip member that has to be unpacked first, if it is compressed."""


@dataclass(frozen=True)
class DumpHeader:
    """The tensors and the metadata of a dump."""

    tensors: dict[str, TensorInfo]
    """dtype and shape by key, in the order of the file."""

    metadata: dict[str, str]
    """What was recorded beside the tensors."""

    places: dict[str, Place] = field(default_factory=dict, compare=False)
    """Where the tensors' bytes are; empty for `.pt` files, which torch reads."""


def read_header(path: Path) -> DumpHeader:
    """Read the header of a `.safetensors`, `.npz` or `.pt` dump.

    Raises:
        DumpError: nothing there, or truncated, damaged, or of another format.
    """
    from actcli.store import npz_format, pt_format, safetensors_format

    magic = _first_bytes(path)
    if magic.startswith(_ZIP_MAGIC):
        names = npz_format.member_names(path)
        if any(name.endswith(".npy") for name in names):
            return npz_format.read_header(path)
        return pt_format.read_header(path)
    if magic.startswith(_OLD_TORCH_MAGIC) and path.suffix in pt_format.SUFFIXES:
        return pt_format.read_header(path)
    return safetensors_format.read_header(path)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except FileNotFoundError:
        raise DumpError(f"there is no dump {path}; write one with 'actcli dump'") from None
    except IsADirectoryError:
        raise DumpError(f"{path} is a folder, expected a .safetensors, .npz or .pt file") from None
    except OSError as error:
        raise DumpError(f"cannot read {path}: {error.strerror}") from error
    if not magic:
        raise DumpError(f"{path} is empty; write the dump again")
    return magic
