"""Turn a finished safetensors dump into `.npz` or `.pt`, by the libraries that own those formats.

Both want a file's content in their own order, so a dump of these kinds is first written as
safetensors beside its final name and then converted: rows are read and written once more, in
bounded memory (`.pt` maps the file instead of reading it).
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from actcli.errors import DumpError
from actcli.store.reader import Dump, StoredTensor, open_dump

_CHUNK_BYTES = 1 << 24


def export(source: Path, target: Path, *, metadata: Mapping[str, str]) -> None:
    """Write the dump at `source` to `target`, in the format of its suffix."""
    with open_dump(source) as dump:
        if target.suffix == ".npz":
            _write_npz(dump, target, metadata)
        else:
            _write_pt(dump, target, metadata)


def _write_npz(dump: Dump, target: Path, metadata: Mapping[str, str]) -> None:
    """As `numpy.savez` lays it out, member by member and chunk by chunk; metadata as JSON text."""
    import numpy as np

    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, info in dump.header.tensors.items():
            tensor = dump.tensor(key)
            if info.dtype == "BF16":
                raise DumpError("an .npz file cannot hold bf16: use --dtype fp32 or fp16")
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                head = {"descr": tensor.read_rows(0, 0).dtype.str, "fortran_order": False}
                np.lib.format.write_array_header_1_0(member, head | {"shape": info.shape})
                for start, stop in _chunks(tensor):
                    member.write(tensor.read_rows(start, stop).tobytes())
        with archive.open("metadata.npy", "w") as member:
            np.lib.format.write_array(member, np.array(json.dumps(dict(metadata))))


def _write_pt(dump: Dump, target: Path, metadata: Mapping[str, str]) -> None:
    """A dict of tensors and, under "metadata", a dict of strings; loads with `weights_only`."""
    import torch
    from safetensors import safe_open

    with safe_open(dump.path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in dump.header.tensors}
        torch.save(tensors | {"metadata": dict(metadata)}, target)


def _chunks(tensor: StoredTensor) -> list[tuple[int, int]]:
    n_rows = tensor.info.shape[0]
    step = max(1, _CHUNK_BYTES // max(1, tensor.info.nbytes // max(1, n_rows)))
    return [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
