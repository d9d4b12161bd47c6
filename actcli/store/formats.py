"""Which format a file is of: its content decides, never its suffix.

Needs the standard library alone (for `.pt` files also torch), so shell completion can use it.
"""

from pathlib import Path

from actcli.errors import DumpError
from actcli.store import npz_format, pt_format, safetensors_format
from actcli.store.header import DumpHeader

_ZIP_MAGIC = b"PK\x03\x04"
_OLD_TORCH_MAGIC = b"\x80"


def read_header(path: Path) -> DumpHeader:
    """Read the header of a `.safetensors`, `.npz` or `.pt` dump.

    Raises:
        DumpError: nothing there, or truncated, damaged, or of another format.
    """
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
