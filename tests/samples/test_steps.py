"""Boards are decoded as a slow reading of the bits says, and damaged folders are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from actcli.errors import SamplesError
from actcli.samples.boards import BoardSamples
from actcli.samples.steps import decode, open_steps
from tests.golden import DATA, DUMPS

FIELDS = [("board", "<u8"), ("tile_65536_mask", "<u2")]


def rows(*boards, fields=FIELDS):
    made = np.zeros(len(boards), dtype=fields)
    made["board"] = boards
    return made


def slow_decode(board, mask):
    return [16 if mask >> cell & 1 else int(f"{board:016x}"[cell], base=16) for cell in range(16)]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1))
def test_decoding_equals_the_slow_reading(board, mask):
    made = rows(board)
    made["tile_65536_mask"] = mask
    assert decode(made)[0].tolist() == slow_decode(board, mask)


def test_rows_without_the_mask_decode_all_nibbles():
    made = np.zeros(1, dtype=[("board", "<u8")])
    made["board"] = 0x0123456789ABCDEF
    assert decode(made)[0].tolist() == list(range(16))


def test_shards_are_one_data_set():
    single, sharded = (
        open_steps(str(DATA / "steps_single")),
        open_steps(str(DATA / "steps_sharded")),
    )
    indices = np.array([159, 0, 70, 69, 71, 70])
    assert len(single) == len(sharded) == 160
    np.testing.assert_array_equal(single.boards(indices), sharded.boards(indices))
    assert single.survey(indices) == sharded.survey(indices)
    assert single.survey(indices).largest_tile == single.boards(indices).max()


def test_boards_equal_those_of_the_existing_program():
    dump = load_file(DUMPS / "a_ev_mha_fp32.safetensors")
    steps = open_steps(str(DATA / "steps_single"))
    np.testing.assert_array_equal(steps.boards(dump["indices"]), dump["boards"])


def test_the_survey_tells_boards_and_their_order_apart():
    steps = open_steps(str(DATA / "steps_single"))
    hashes = {steps.survey(np.array(each)).sha256 for each in ([1, 2], [2, 1], [1, 3])}
    assert len(hashes) == 3


def test_samples_know_their_tokens():
    samples = BoardSamples(open_steps(str(DATA / "steps_single")), np.array([5, 159, 0]))
    batch = samples.batch(range(1, 3))
    assert batch.rows == range(1, 3)
    assert batch.inputs["tokens"].dtype == np.int64
    np.testing.assert_array_equal(batch.inputs["tokens"], batch.stored["boards"])
    np.testing.assert_array_equal(batch.stored["indices"], [159, 0])
    assert (len(samples), samples.n_tokens, samples.lengths) == (3, 16, None)
    assert samples.stored["boards"].shape == (3, 16)
    np.testing.assert_array_equal(samples.batch(np.array([2, 0])).stored["indices"], [0, 5])


def folder(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / f"{name.replace('_', '-')}.npy"
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    return str(tmp_path)


OTHER = [("tile_65536_mask", "<u2"), ("board", "<u8")]
BAD = {
    "gap": ({"steps_00000": rows(1), "steps_00002": rows(1)}, r"1 missing \(steps-00001.npy\)"),
    "first missing": ({"steps_00002": rows(1)}, "1 missing"),
    "number twice": ({"steps_0": rows(1), "steps_00": rows(1)}, "used twice"),
    "both kinds": ({"steps": rows(1), "steps_00000": rows(1)}, "both steps.npy and"),
    "no number": ({"steps_x": rows(1)}, "has no number"),
    "other fields": (
        {"steps_0": rows(1), "steps_1": rows(1, fields=OTHER)},
        "has other fields than steps-0.npy",
    ),
    "no board": ({"steps": np.zeros(1, dtype=[("exps", "u1")])}, "no field 'board'; it has: exps"),
    "float board": ({"steps": np.zeros(1, dtype=[("board", "f8")])}, "expected integers"),
    "plain array": ({"steps": np.zeros((3, 16))}, "expected rows with named fields"),
    "no rows": ({"steps": rows()}, "holds no rows"),
    "nothing": ({}, "holds no steps"),
    "zero bytes": ({"steps": b""}, "not a readable .npy file"),
    "a zip": ({"steps": b"PK\x03\x04 and no more"}, "not a readable .npy file"),
    "text": ({"steps": b"board,mask"}, "not a readable .npy file"),
}


@pytest.mark.parametrize(("files", "says"), BAD.values(), ids=BAD.keys())
def test_bad_folders_are_refused(files, says, tmp_path):
    with pytest.raises(SamplesError, match=says):
        open_steps(folder(tmp_path, **files))


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "steps.npy"
    np.save(path, rows(*range(100)))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SamplesError, match="not a readable"):
        open_steps(str(tmp_path))


def test_places_that_are_no_folder(tmp_path):
    with pytest.raises(SamplesError, match="does not exist"):
        open_steps(str(tmp_path / "nowhere"))
    with pytest.raises(SamplesError, match="is a file"):
        open_steps(str(DATA / "steps_single" / "steps.npy"))
    with pytest.raises(SamplesError, match="nothing of the kind is built in"):
        open_steps("demo://nothing")


def test_the_golden_bad_folders():
    for name in ("steps_empty", "steps_selfplay_v1"):
        with pytest.raises(SamplesError):
            open_steps(str(DATA / name))
