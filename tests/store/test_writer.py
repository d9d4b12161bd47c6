"""What is written row by row is what the official libraries read, or there is no file at all."""

import fcntl
import json
import os
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from actcli.errors import DumpError
from actcli.store.header import TensorInfo
from actcli.store.writer import PAGE, DumpWriter

METADATA = {"checkpoint": "somewhere", "manifest": json.dumps({"a": [1, 2]})}


def tensors():
    """One of whole-page rows, small ones of several dtypes, one without rows of samples."""
    rng = np.random.default_rng(0)
    return {
        "small": rng.normal(size=(5, 3)).astype("<f4"),
        "pages": rng.normal(size=(5, 2, PAGE // 8)).astype("<f4"),
        "halves": rng.normal(size=(5, 7)).astype("<f2"),
        "indices": np.arange(5, dtype="<i8"),
        "boards": rng.integers(0, 17, (5, 16)).astype("u1"),
        "parameters/x.y": rng.normal(size=(3,)).astype("<f4"),
    }


NAMES = {"f4": "F32", "f2": "F16", "i8": "I64", "u1": "U8"}


def infos(arrays):
    return {key: TensorInfo(NAMES[each.dtype.str[1:]], each.shape) for key, each in arrays.items()}


def write(path, arrays, *, step=2, backwards=False, **options):
    with DumpWriter(path, infos(arrays), metadata={"early": "yes"}, **options) as writer:
        for key, each in arrays.items():
            starts = range(0, len(each), step)
            for start in reversed(starts) if backwards else starts:
                rows = np.ascontiguousarray(each[start : start + step])
                writer.write_rows(key, start, memoryview(rows))
        writer.commit(METADATA)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("step", [1, 2, 5])
def test_safetensors_reads_what_was_written(step, backwards, tmp_path):
    path, arrays = tmp_path / "a.safetensors", tensors()
    write(path, arrays, step=step, backwards=backwards)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(arrays)
        assert file.metadata() == METADATA
        for key, each in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(key), each)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_npz_is_what_numpy_reads(tmp_path):
    path, arrays = tmp_path / "a.npz", tensors()
    write(path, arrays)
    with np.load(path) as file:
        assert set(file) == {*arrays, "metadata"}
        assert json.loads(file["metadata"].item()) == METADATA
        for key, each in arrays.items():
            np.testing.assert_array_equal(file[key], each)
    assert zipfile.ZipFile(path).testzip() is None
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


def test_pt_is_what_torch_reads_without_running_code(tmp_path):
    path, arrays = tmp_path / "a.pt", tensors()
    write(path, arrays)
    loaded = torch.load(path, weights_only=True)
    assert loaded.pop("metadata") == METADATA
    assert set(loaded) == set(arrays)
    for key, each in arrays.items():
        np.testing.assert_array_equal(loaded[key].numpy(), each)
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


@given(
    st.dictionaries(
        st.text("abcxyz/.0", min_size=1, max_size=6),
        st.tuples(
            st.sampled_from(["<f4", "<f2", "<i8", "u1"]),
            st.integers(1, 4),
            st.lists(st.integers(1, 5) | st.just(PAGE // 4), max_size=2),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_shapes_make_a_valid_file(tmp_path_factory, specs):
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.integers(0, 100, (rows, *rest)).astype(dtype)
        for key, (dtype, rows, rest) in specs.items()
    }
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    write(path, arrays)
    with safe_open(path, framework="np") as file:
        for key, each in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(key), each)


def test_rows_can_be_read_before_the_end(tmp_path):
    arrays = tensors()
    with DumpWriter(tmp_path / "a.safetensors", infos(arrays)) as writer:
        writer.write_rows("pages", 0, memoryview(arrays["pages"]))
        assert writer.read_row("pages", 3) == arrays["pages"][3].tobytes()


def test_page_aligned_buffers_take_the_direct_way(tmp_path, monkeypatch):
    """And the file holds the same bytes as by the buffered way."""
    ways = []
    real = os.pwrite

    def pwrite(file, data, position):
        ways.append((fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT) != 0)
        return real(file, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    raw = torch.zeros(5 * 2 * PAGE + PAGE, dtype=torch.uint8)
    skip = -raw.data_ptr() % PAGE
    rows = raw[skip : skip + 5 * 2 * PAGE].numpy()
    rows[:] = np.arange(rows.size) % 251
    info = {"x": TensorInfo("U8", (5, 2 * PAGE)), "y": TensorInfo("U8", (3, 1))}
    with DumpWriter(tmp_path / "a.safetensors", info) as writer:
        writer.write_rows("y", 0, memoryview(np.arange(3, dtype=np.uint8)))
        for row in range(5):
            part = rows[row * 2 * PAGE : (row + 1) * 2 * PAGE]
            writer.write_rows("x", row, memoryview(part))
        writer.commit({})
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("x").reshape(-1), rows)
        assert file.get_tensor("y").tolist() == [[0], [1], [2]]
    small, *pages, header = ways
    assert pages == [True] * 5
    assert (small, header) == (False, False)


def test_nothing_is_left_without_a_commit(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with DumpWriter(path, infos(tensors()), force=True):
        assert len(list(tmp_path.glob("a.safetensors.*.partial"))) == 1
    assert path.read_bytes() == b"precious"
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_existing_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(DumpError, match=r"exists: choose another --output, or --force"):
        write(path, tensors())
    assert path.read_bytes() == b"precious"
    write(path, tensors(), force=True)
    assert path.stat().st_size > 1000


def test_the_file_has_ordinary_permissions(tmp_path):
    write(tmp_path / "a.safetensors", tensors())
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_folders_on_the_way_are_made_and_targets_checked(tmp_path):
    write(tmp_path / "new" / "deep" / "a.safetensors", tensors())
    with pytest.raises(DumpError, match="it is a folder"):
        write(tmp_path / "new", tensors())
    (tmp_path / "file").write_text("")
    with pytest.raises(DumpError, match="cannot make the folder"):
        write(tmp_path / "file" / "a.safetensors", tensors())


FULL_DISK = """
import resource, sys
from pathlib import Path
from actcli.errors import DumpError
from actcli.store.header import TensorInfo
from actcli.store.writer import DumpWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with DumpWriter(Path(sys.argv[1]), {"x": TensorInfo("F32", (1000, 1000))}, force=True):
        pass
except DumpError as error:
    print(error)
"""


def test_too_little_room_is_said_before_work_starts(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "the file that was there is untouched" in done.stdout
    assert path.read_bytes() == b"precious"
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_that_fills_part_way(tmp_path):
    """The space is reserved at the start, so this can only happen where that is not possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    arrays = {"x": np.zeros((64, PAGE), dtype=np.uint8)}
    path = tmp_path / "a.safetensors"
    with DumpWriter(path, infos(arrays)) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE * 16, hard))
        try:
            with pytest.raises(DumpError, match="cannot write"):
                writer.write_rows("x", 0, memoryview(arrays["x"]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_file_systems_that_cannot_reserve_space(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    write(tmp_path / "a.safetensors", tensors())
    huge = {"x": TensorInfo("F32", (1 << 30, 1 << 20))}
    with pytest.raises(DumpError, match="are free"):
        DumpWriter(tmp_path / "b.safetensors", huge)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_two_writers_of_one_name_do_not_disturb_each_other(tmp_path):
    path, info = tmp_path / "a.safetensors", {"x": TensorInfo("U8", (4, 1))}
    with DumpWriter(path, info) as first, DumpWriter(path, info) as second:
        second.write_rows("x", 0, memoryview(b"2222"))
        first.write_rows("x", 0, memoryview(b"1111"))
        second.commit({"who": "second"})
        with pytest.raises(DumpError, match="somebody else wrote it meanwhile"):
            first.commit({"who": "first"})
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"who": "second"}
        assert file.get_tensor("x").tobytes() == b"2222"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    link = tmp_path / "a.safetensors"
    link.symlink_to(tmp_path / "scratch" / "real.safetensors")
    write(link, tensors(), force=True)
    assert link.is_symlink()
    assert [each.name for each in (tmp_path / "scratch").iterdir()] == ["real.safetensors"]


def test_a_conversion_that_fails_keeps_what_was_captured(tmp_path, monkeypatch):
    def fails(source, target, *, metadata):
        target.write_bytes(b"half")
        raise RuntimeError("unexpected pos 17")

    monkeypatch.setattr("actcli.store.export.export", fails)
    with pytest.raises(DumpError, match=r"unexpected pos 17; the dump is complete and kept as"):
        write(tmp_path / "a.pt", tensors())
    (kept,) = tmp_path.iterdir()
    with safe_open(kept, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("small"), tensors()["small"])


def test_formats_that_are_converted_need_twice_the_room(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    info = {"x": TensorInfo("U8", (int(free * 0.6), 1))}
    with pytest.raises(DumpError, match="No space left"):
        DumpWriter(tmp_path / "a.pt", info)
    assert list(tmp_path.iterdir()) == []
