"""`.pt` dumps: a dict of tensors, with the metadata under the key `metadata`; torch reads them."""

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcli.errors import DumpError
from actcli.store.header import METADATA_KEY, DumpHeader, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth")

TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""What torch calls each dtype."""

_WORDS = {f"torch.{name}": word for word, name in TORCH_DTYPES.items()}


def read_header(path: Path) -> DumpHeader:
    """Read names, dtypes, shapes and metadata.

    Raises:
        DumpError: truncated, damaged, or holding anything but tensors.
    """
    return header_of(load(path))


def load(path: Path) -> dict[str, Any]:
    """Load the dict, its tensors mapped from the file and not yet read.

    Raises:
        DumpError: as for `read_header`.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DumpError(
            f"{path} is not a readable .pt dump ({reason}); it must be a dict of tensors that "
            f"torch.load(weights_only=True) takes"
        ) from error
    if not isinstance(content, dict):
        raise DumpError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return content


def tensors_of(content: dict[str, Any]) -> "dict[str, Tensor]":
    """Return what in the dict is a tensor."""
    import torch

    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def header_of(content: dict[str, Any]) -> DumpHeader:
    """Describe a loaded dict."""
    tensors = {
        key: TensorInfo(_WORDS.get(str(value.dtype), str(value.dtype)), tuple(value.shape))
        for key, value in tensors_of(content).items()
    }
    recorded = content.get(METADATA_KEY, {})
    entries = recorded.items() if isinstance(recorded, dict) else ()
    metadata = {
        str(key): value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in entries
    }
    return DumpHeader(tensors, metadata)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
