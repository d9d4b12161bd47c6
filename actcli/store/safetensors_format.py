"""Headers of `.safetensors` files: 8 bytes of length, JSON, then the tensors without gaps."""

import json
from pathlib import Path
from typing import NoReturn

from actcli.errors import DumpError
from actcli.store.header import DumpHeader, Place, TensorInfo

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000


def read_header(path: Path) -> DumpHeader:
    """Read the header, and check that the file holds every byte that it speaks of.

    Raises:
        DumpError: truncated, damaged, or of another format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or not 2 <= length <= _LONGEST_HEADER:
            _refuse(path)
        text = file.read(length)
    if not text.startswith((b"{", b" ")):
        _refuse(path)
    if len(text) < length:
        raise DumpError(
            f"{path} is truncated: it has {size:,} bytes, less than its header of {length:,}; "
            f"write or copy it again"
        )
    return _parse(path, text, data_start=_LENGTH_BYTES + length, size=size)


def _parse(path: Path, text: bytes, *, data_start: int, size: int) -> DumpHeader:
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        tensors = {
            key: TensorInfo(entry["dtype"], tuple(map(int, entry["shape"])))
            for key, entry in entries.items()
        }
        spans = {key: tuple(map(int, entry["data_offsets"])) for key, entry in entries.items()}
        places = {key: Place(data_start + start) for key, (start, _end) in spans.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _refuse(path, error)
    _check_spans(path, tensors, spans, size - data_start)
    return DumpHeader(tensors, metadata, places)


def _check_spans(
    path: Path, tensors: dict[str, TensorInfo], spans: dict[str, tuple[int, ...]], size: int
) -> None:
    end = 0
    for key, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end or stop - start != tensors[key].nbytes:
            raise DumpError(
                f"the header of {path} is damaged: the bytes of {key!r} do not follow those before "
                f"it or do not fit its shape {list(tensors[key].shape)}; write the dump again"
            )
        end = stop
    if end != size:
        what = "truncated" if size < end else "too long"
        raise DumpError(
            f"{path} is {what}: {size:,} bytes of tensors, its header speaks of {end:,}; "
            f"write or copy it again"
        )


def _refuse(path: Path, error: Exception | None = None) -> NoReturn:
    detail = f" ({error})" if error else ""
    raise DumpError(
        f"{path} is not a dump, or its header is damaged{detail}; expected the content of a "
        f".safetensors, .npz or .pt file"
    ) from error
