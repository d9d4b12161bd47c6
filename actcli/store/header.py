"""What a dump says of itself before any tensor is read: names, dtypes, shapes and metadata."""

from dataclasses import dataclass, field
from math import prod

from actcli.errors import DumpError

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per element of each dtype, in the words of the safetensors format."""

WRITTEN_SUFFIXES = (".safetensors", ".pt", ".npz")
"""Names of dumps that can be written end in one of these, which picks the format."""

METADATA_KEY = "metadata"
"""Where `.npz` and `.pt` dumps keep their metadata, beside the tensors."""

MANIFEST_KEY = "manifest"
"""The metadata entry whose value is JSON: how the dump was made."""


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
