"""Read the tensors of a dump piece by piece: memory is that of the piece, whatever the file's size.

Numbers come in the dump's own dtype; numpy has none for BF16, whose elements are given as their
16-bit codes (`uint16`): `codes.astype(numpy.uint32) << 16`, viewed as float32, are the values.
"""

import json
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcli.errors import DumpError, nearest
from actcli.store.byte_sources import Bytes, InFile, InMemory, InPackedMember
from actcli.store.formats import read_header
from actcli.store.header import MANIFEST_KEY, DumpHeader, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_KEYS = 40


class StoredTensor:
    """A tensor of a dump; nothing is read before it is asked for."""

    def __init__(self, name: str, info: TensorInfo, source: Bytes) -> None:
        self.name, self.info, self._source = name, info, source

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self.info.shape

    @property
    def dtype(self) -> str:
        """Element type in the words of the safetensors format."""
        return self.info.dtype

    def read(self) -> "NDArray[Any]":
        """Read the whole tensor, in its own dtype (BF16 as uint16 codes)."""
        import numpy as np

        whole = np.empty(self.shape, numpy_dtype(self.dtype))
        self.read_spans([(0, whole.size)], out=whole.reshape(-1))
        return whole

    def read_rows(self, start: int, stop: int, out: "NDArray[Any] | None" = None) -> "NDArray[Any]":
        """Read rows `start` to `stop` of the first axis.

        Args:
            start: first row.
            stop: the row after the last; both within the tensor.
            out: a contiguous array of that dtype to fill from its start, instead of a new one.

        Returns:
            (stop - start, *shape[1:]) in the tensor's own dtype (BF16 as uint16 codes).
        """
        import numpy as np

        assert 0 <= start <= stop <= self.shape[0], (start, stop, self.shape)
        width = prod(self.shape[1:])
        size = (stop - start) * width
        flat = np.empty(size, numpy_dtype(self.dtype)) if out is None else out.reshape(-1)[:size]
        self.read_spans([(start * width, size)], out=flat)
        return flat.reshape(stop - start, *self.shape[1:])

    def read_spans(self, spans: Iterable[tuple[int, int]], *, out: "NDArray[Any]") -> None:
        """Read spans of elements, one after the other, into a flat contiguous array.

        Args:
            spans: (first element, how many), counted in the flattened tensor.
            out: as many elements as the spans together; any dtype of the same width.

        Raises:
            DumpError: the file ends too early.
        """
        itemsize = self.info.itemsize
        target, filled = out.view("u1").data, 0
        for first, count in spans:
            end = filled + count * itemsize
            self._source.read_into(target[filled:end], first * itemsize)
            filled = end

    def view_span(self, first: int, count: int) -> "NDArray[Any] | None":
        """Return a span of elements, flat and read-only, without copying it.

        The file's pages count as this process's memory until `forget_span`. None where the bytes
        cannot be seen in place: then `read_spans` copies them.
        """
        import numpy as np

        itemsize = self.info.itemsize
        found = self._source.view(first * itemsize, count * itemsize)
        return None if found is None else np.frombuffer(found, numpy_dtype(self.dtype))

    def expect_span(self, first: int, count: int) -> None:
        """Say that a span of elements will be wanted soon, so that the disk can start."""
        self._source.expect(first * self.info.itemsize, count * self.info.itemsize)

    def forget_span(self, first: int, count: int) -> None:
        """Give back the memory of a span that was viewed."""
        self._source.forget(first * self.info.itemsize, count * self.info.itemsize)


class Dump:
    """An open dump."""

    def __init__(self, path: Path, header: DumpHeader, sources: dict[str, Bytes]) -> None:
        self.path, self.header, self._sources = path, header, sources

    @property
    def metadata(self) -> dict[str, str]:
        """What was recorded beside the tensors."""
        return self.header.metadata

    @property
    def manifest(self) -> dict[str, Any]:
        """How the dump was made; empty for dumps of other programs."""
        try:
            manifest = json.loads(self.metadata.get(MANIFEST_KEY, "{}"))
        except ValueError:
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def check_key(self, key: str) -> TensorInfo:
        """Return what the header says of a key.

        Raises:
            DumpError: the dump has no such key; the message names the nearest and all of them.
        """
        if key not in self.header.tensors:
            hint = nearest(key, self.header.tensors)
            if hint.startswith("did you mean"):
                keys = list(self.header.tensors)
                more = f", ... ({len(keys)} in all)" if len(keys) > _MOST_KEYS else ""
                hint += f" (its keys: {', '.join(keys[:_MOST_KEYS])}{more})"
            raise DumpError(f"{self.path} has no tensor {key!r}; {hint}")
        return self.header.tensors[key]

    def tensor(self, key: str) -> StoredTensor:
        """Return a tensor, to be read piece by piece.

        Raises:
            DumpError: the dump has no such key, or it is of a dtype that cannot be read.
        """
        info = self.check_key(key)
        numpy_dtype(info.dtype)
        return StoredTensor(key, info, self._sources[key])


@contextmanager
def open_dump(path: Path) -> Generator[Dump]:
    """Open a `.safetensors`, `.npz` or `.pt` dump for reading.

    Raises:
        DumpError: nothing there, or truncated, damaged, or of another format.
    """
    header = read_header(path)
    with ExitStack() as stack:
        if header.places or not header.tensors:
            sources = _places_in_file(path, header, stack)
        else:
            header, sources = _mapped_by_torch(path)
        yield Dump(path, header, sources)


def in_memory(name: str, array: "NDArray[Any]", *, dtype: str | None = None) -> StoredTensor:
    """Return an array of this process as if it were stored.

    Args:
        name: its key.
        array: the numbers.
        dtype: "BF16" for an array of uint16 codes; by default that of the array.
    """
    import numpy as np

    words = {np.dtype(numpy_dtype(word)): word for word in _NUMPY_DTYPES if word != "BF16"}
    info = TensorInfo(dtype or words[array.dtype], array.shape)
    return StoredTensor(name, info, InMemory(np.ascontiguousarray(array).reshape(-1)))


_NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def numpy_dtype(word: str) -> "np.dtype[Any]":
    """Return the numpy dtype that holds elements of a stored dtype (BF16: uint16 codes).

    Raises:
        DumpError: there is none.
    """
    import numpy as np

    if word not in _NUMPY_DTYPES:
        known = ", ".join(_NUMPY_DTYPES)
        raise DumpError(f"a tensor of dtype {word} cannot be read; readable are: {known}")
    return np.dtype(_NUMPY_DTYPES[word])


def _places_in_file(path: Path, header: DumpHeader, stack: ExitStack) -> dict[str, Bytes]:
    file_number = stack.enter_context(path.open("rb")).fileno()
    return {
        key: InFile(path, file_number, place.offset)
        if place.packed_member is None
        else InPackedMember(path, place.packed_member, place.offset, stack)
        for key, place in header.places.items()
    }


def _mapped_by_torch(path: Path) -> tuple[DumpHeader, dict[str, Bytes]]:
    """Let torch map the file; its pages count as memory until the system wants them back."""
    import torch

    from actcli.store import pt_format

    content, sources = pt_format.load(path), dict[str, Bytes]()
    for key, tensor in pt_format.tensors_of(content).items():
        flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
        sources[key] = InMemory(flat.view(torch.uint8).numpy())
    return pt_format.header_of(content), sources
