"""Reading tensors piece by piece, from every format, against what the libraries read."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file

from actcli.errors import DumpError
from actcli.store.reader import in_memory, numpy_dtype, open_dump
from tests.golden import DUMPS

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
FORMATS = ["safetensors", "npz", "packed.npz", "pt"]


def write(path, tensors, metadata=None):
    if path.name.endswith("packed.npz"):
        np.savez_compressed(path, **tensors)
    elif path.suffix == ".npz":
        np.savez(path, **tensors, metadata=np.array(json.dumps(metadata or {})))
    else:
        tensors = {key: torch.from_numpy(each.copy()) for key, each in tensors.items()}
        if path.suffix == ".pt":
            torch.save(tensors | {"metadata": metadata or {}}, path)
        else:
            save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
def test_what_was_written_is_read(kind, data, tmp_path_factory):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(arrays.array_shapes(max_dims=4, min_side=0, max_side=5))
    acts = data.draw(arrays.arrays(dtype, shape))
    path = write(tmp_path_factory.mktemp("x") / f"a.{kind}", {"other": np.ones(3), "acts": acts})
    with open_dump(path) as dump:
        tensor = dump.tensor("acts")
        assert (tensor.shape, numpy_dtype(tensor.dtype)) == (acts.shape, acts.dtype)
        np.testing.assert_array_equal(tensor.read(), acts, strict=True)
        start = data.draw(st.integers(0, acts.shape[0]))
        stop = data.draw(st.integers(start, acts.shape[0]))
        np.testing.assert_array_equal(tensor.read_rows(start, stop), acts[start:stop], strict=True)


@pytest.fixture(params=FORMATS)
def acts_and_tensor(request, tmp_path):
    acts = np.random.default_rng(0).standard_normal((7, 3, 5), dtype=np.float32)
    with open_dump(write(tmp_path / f"a.{request.param}", {"acts": acts})) as dump:
        yield acts, dump.tensor("acts")


def test_rows_into_an_array_of_ours(acts_and_tensor):
    acts, tensor = acts_and_tensor
    buffer = np.empty(60, np.float32)
    rows = tensor.read_rows(2, 5, out=buffer)
    assert np.shares_memory(rows, buffer)
    np.testing.assert_array_equal(rows, acts[2:5])


def test_spans(acts_and_tensor):
    acts, tensor = acts_and_tensor
    found = np.empty(9, np.uint32)
    tensor.read_spans([(50, 4), (0, 0), (3, 5)], out=found)
    flat = acts.reshape(-1).view(np.uint32)
    np.testing.assert_array_equal(found, np.concatenate([flat[50:54], flat[3:8]]))


def test_a_span_in_place(acts_and_tensor):
    acts, tensor = acts_and_tensor
    tensor.expect_span(15, 60)
    seen = tensor.view_span(15, 60)
    if seen is not None:  # where its bytes are aligned in the file
        np.testing.assert_array_equal(seen, acts.reshape(-1)[15:75])
        tensor.forget_span(15, 60)
        np.testing.assert_array_equal(seen, acts.reshape(-1)[15:75])


def test_bf16_comes_as_codes(tmp_path):
    acts = torch.randn(3, 4).bfloat16()
    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        save_file({"acts": acts}, path) if path.suffix != ".pt" else torch.save(
            {"acts": acts}, path
        )
        with open_dump(path) as dump:
            codes = dump.tensor("acts").read()
        assert codes.dtype == np.uint16
        values = (codes.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(values, acts.float().numpy())


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_all_formats_of_a_golden_dump_agree(dtype):
    found = []
    for suffix in ("safetensors", "pt", "npz"):
        with open_dump(DUMPS / f"d_{dtype}.{suffix}") as dump:
            found.append({key: dump.tensor(key).read() for key in dump.header.tensors})
    for key in found[0].keys() - {"attn_sinks"}:  # cast in .npz alone by the program that wrote it
        np.testing.assert_array_equal(found[0][key], found[1][key], strict=True)
        np.testing.assert_array_equal(found[0][key], found[2][key], strict=True)


def test_a_pt_tensor_that_is_a_view(tmp_path):
    acts = torch.arange(24.0).reshape(4, 6)
    torch.save({"acts": acts.T, "part": acts[1:3, 2:]}, tmp_path / "a.pt")
    with open_dump(tmp_path / "a.pt") as dump:
        np.testing.assert_array_equal(dump.tensor("acts").read(), acts.T.numpy())
        np.testing.assert_array_equal(dump.tensor("part").read_rows(1, 2), acts[2:3, 2:].numpy())


def test_the_manifest(tmp_path):
    acts = {"acts": np.ones(1)}
    for name in ("a.safetensors", "a.npz", "a.pt"):
        path = write(tmp_path / name, acts, {"manifest": json.dumps({"layers": [3]}), "seed": "1"})
        with open_dump(path) as dump:
            assert dump.manifest == {"layers": [3]}
            assert dump.metadata["seed"] == "1"
    for metadata in (None, {"manifest": "{oh"}, {"manifest": "[1]"}):
        with open_dump(write(tmp_path / "a.safetensors", acts, metadata)) as dump:
            assert dump.manifest == {}


def test_a_missing_key():
    with (
        open_dump(DUMPS / "a_ev_mha_fp32.safetensors") as dump,
        pytest.raises(
            DumpError,
            match=r"has no tensor 'atn_norm'; did you mean 'attn_norm'\? \(its keys: .*pooled",
        ),
    ):
        dump.tensor("atn_norm")


def test_a_dump_without_tensors(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with (
        open_dump(tmp_path / "a.safetensors") as dump,
        pytest.raises(DumpError, match="has no tensor 'x'; there are none"),
    ):
        dump.tensor("x")


def test_a_dtype_that_cannot_be_read(tmp_path):
    save_file({"x": torch.ones(2, dtype=torch.complex64)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", x=np.ones(2, ">f4"))
    for name, word in (("a.safetensors", "C64"), ("a.npz", ">f4")):
        expected = pytest.raises(DumpError, match=f"dtype {word} cannot be read; readable are")
        with expected, open_dump(tmp_path / name) as dump:
            dump.tensor("x")


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    path = write(tmp_path / "a.safetensors", {"acts": np.ones((100, 100))})
    with open_dump(path) as dump:
        with path.open("r+b") as file:
            file.truncate(20_000)
        with pytest.raises(DumpError, match=r"a\.safetensors was cut at byte 20,000"):
            dump.tensor("acts").read()


def test_a_damaged_member_is_noticed_when_it_is_unpacked(tmp_path):
    path = write(tmp_path / "a.packed.npz", {"acts": np.random.default_rng(0).random(9000)})
    content = bytearray(path.read_bytes())
    content[30_000:30_100] = bytes(100)
    path.write_bytes(content)
    with open_dump(path) as dump, pytest.raises(DumpError, match=r"cannot unpack acts\.npy"):
        dump.tensor("acts").read()


def test_arrays_of_this_process():
    acts = np.arange(6, dtype=np.float16).reshape(2, 3)
    tensor = in_memory("x", acts.T)
    assert (tensor.name, tensor.dtype, tensor.shape) == ("x", "F16", (3, 2))
    np.testing.assert_array_equal(tensor.read(), acts.T)
    assert in_memory("x", acts.view(np.uint16), dtype="BF16").dtype == "BF16"
