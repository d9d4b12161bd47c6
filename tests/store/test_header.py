"""Headers of every format, told by content; and every way in which a file can be damaged."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actcli.errors import DumpError
from actcli.store.formats import read_header
from actcli.store.header import TensorInfo
from tests.golden import DUMPS
from tests.processes import run_python

ACTS = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)


@pytest.fixture
def safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"acts": ACTS, "ids": torch.arange(3)}, path, metadata={"seed": "7"})
    return path


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "a.npz"
    metadata = np.array(json.dumps({"seed": "7", "n": 3}))
    np.savez(path, acts=ACTS.numpy(), ids=np.arange(3), metadata=metadata, **{"a/b": np.ones(2)})
    return path


@pytest.fixture
def pt(tmp_path):
    path = tmp_path / "a.pt"
    content = {"acts": ACTS.bfloat16(), "ids": torch.arange(3), "metadata": {"seed": "7", "n": 3}}
    torch.save(content, path)
    return path


def test_safetensors(safetensors):
    header = read_header(safetensors)
    assert header.tensors == {"acts": TensorInfo("F32", (2, 3, 4)), "ids": TensorInfo("I64", (3,))}
    assert header.metadata == {"seed": "7"}


def test_npz(npz):
    header = read_header(npz)
    assert header.tensors == {
        "acts": TensorInfo("F32", (2, 3, 4)),
        "ids": TensorInfo("I64", (3,)),
        "a/b": TensorInfo("F64", (2,)),
    }
    assert header.metadata == {"seed": "7", "n": "3"}


def test_pt(pt):
    header = read_header(pt)
    assert header.tensors == {"acts": TensorInfo("BF16", (2, 3, 4)), "ids": TensorInfo("I64", (3,))}
    assert header.metadata == {"seed": "7", "n": "3"}


def test_a_pt_file_of_the_old_kind(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"acts": ACTS}, path, _use_new_zipfile_serialization=False)
    assert read_header(path).tensors == {"acts": TensorInfo("F32", (2, 3, 4))}


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt"])
def test_content_decides_not_the_suffix(kind, request, tmp_path):
    path = request.getfixturevalue(kind)
    renamed = path.rename(tmp_path / "dump.dat")
    assert read_header(renamed).tensors["acts"].shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_all_formats_of_a_golden_dump_agree(dtype):
    headers = [
        read_header(DUMPS / f"d_{dtype}.{suffix}") for suffix in ("safetensors", "pt", "npz")
    ]
    # the program that wrote them cast attn_sinks in .npz alone
    tensors = [{**each.tensors, "attn_sinks": None} for each in headers]
    assert tensors[0] == tensors[1] == tensors[2]
    assert headers[0].metadata == headers[1].metadata == headers[2].metadata


def test_sizes():
    assert TensorInfo("BF16", (2, 3)).nbytes == 12
    assert TensorInfo("F64", ()).nbytes == 8
    with pytest.raises(DumpError, match="C64 cannot be read; readable are: F64"):
        _ = TensorInfo("C64", (2,)).nbytes


def test_neither_numpy_nor_torch_is_imported(safetensors, npz):
    code = (
        "import sys; from pathlib import Path; from actcli.store.formats import read_header\n"
        "for path in sys.argv[1:]: read_header(Path(path))\n"
        "print({'numpy', 'torch'} & set(sys.modules))"
    )
    assert run_python("-c", code, safetensors, npz).stdout == "set()\n"


def refused(path, message):
    with pytest.raises(DumpError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "missing.safetensors", "there is no dump .*; write one with 'actcli dump'")


def test_a_folder(tmp_path):
    refused(tmp_path, "is a folder, expected a .safetensors, .npz or .pt file")


@pytest.mark.parametrize("content", [b"abc", b"not a dump at all", bytes(64), b"\xff" * 64])
@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pt"])
def test_garbage(tmp_path, content, suffix):
    path = tmp_path / f"garbage.{suffix}"
    path.write_bytes(content)
    refused(path, "is not a dump, or its header is damaged")


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.npz"
    path.touch()
    refused(path, "is empty; write the dump again")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_truncated_file(kind, share, request):
    path = request.getfixturevalue(kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "truncated|damaged")


def test_a_file_that_is_too_long(safetensors):
    safetensors.write_bytes(safetensors.read_bytes() + b"x")
    refused(safetensors, "is too long: 121 bytes of tensors, its header speaks of 120")


def with_header(path, entries, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "entries",
    [
        b"{nonsense}",
        b"{}}",
        [1, 2],
        {"x": 3},
        {"x": {"dtype": "F32", "shape": [2]}},
        {"x": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
    ],
)
def test_a_damaged_header(tmp_path, entries):
    refused(with_header(tmp_path / "x.safetensors", entries, bytes(8)), "header is damaged")


@pytest.mark.parametrize("offsets", [[0, 4], [4, 12], [8, 0]])
def test_bytes_that_do_not_fit_the_shape(tmp_path, offsets):
    entries = {"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    refused(with_header(tmp_path / "x.safetensors", entries, bytes(12)), "'x' do not follow")


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 500) + b'{"x": ')
    refused(path, "truncated: it has 14 bytes, less than its header of 500")


def test_a_header_may_be_padded_in_front(tmp_path):
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    path = with_header(tmp_path / "x.safetensors", b"   " + json.dumps({"x": entry}).encode(), b"z")
    assert read_header(path).tensors == {"x": TensorInfo("U8", (1,))}


def test_columns_first(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, acts=np.asfortranarray(np.ones((2, 3))))
    refused(path, "'acts' in .* is stored column by column; save numpy.ascontiguousarray")


def test_an_array_of_another_length_than_its_shape(tmp_path, npz):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(npz) as before, zipfile.ZipFile(path, "w") as after:
        after.writestr("acts.npy", before.read("acts.npy")[:-4])
    refused(path, "acts.npy in .* has 220 bytes, its shape .* needs 224")


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01\x00\x02\x00{}", b"something else", b""])
def test_a_damaged_member(tmp_path, content):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("acts.npy", content)
    refused(path, "'acts' in .* is damaged")


def test_metadata_that_is_not_json(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, metadata=np.array("{oh"))
    refused(path, "'metadata' in .* is not a JSON object")


def test_a_pt_file_without_a_dict(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(ACTS, path)
    refused(path, "holds a Tensor, expected a dict of tensors")


def test_a_pt_file_with_more_than_tensors(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"acts": np.ones}, path)
    refused(path, "is not a readable .pt dump .*weights_only=True")
