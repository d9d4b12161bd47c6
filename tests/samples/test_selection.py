"""The draw is the existing program's; files of indices are read as they are, or refused."""

import numpy as np
import pytest

from actcli.errors import SamplesError
from actcli.samples.selection import draw_indices, read_indices
from tests.golden import DATA


def test_the_draw_of_the_existing_program():
    drawn = draw_indices(160, n_samples=6, seed=42)
    assert drawn.tolist() == [102, 120, 68, 137, 69, 13]
    assert drawn.dtype == np.int64


def test_without_replacement_while_there_are_enough():
    assert sorted(draw_indices(50, n_samples=50, seed=1)) == list(range(50))
    many = draw_indices(50, n_samples=51, seed=1)
    assert len(many) == 51
    assert len(set(many)) < 50
    assert many.max() < 50


def save(tmp_path, values):
    np.save(tmp_path / "i.npy", values)
    return tmp_path / "i.npy"


def test_order_repetitions_and_negative_numbers(tmp_path):
    path = save(tmp_path, np.array([5, 5, -1, 0, -160], dtype=np.int32))
    assert read_indices(path, n_rows=160).tolist() == [5, 5, 159, 0, 0]
    two_axes = read_indices(DATA / "indices_i32_2d.npy", n_rows=160)
    assert two_axes.tolist() == [5, 159, 0, 70]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("oob", r"entry 1 is 160, but the data set has 160 rows \(-160 to 159\)"),
        ("float", "holds float64 values"),
        ("mask", r"numpy\.flatnonzero"),
        ("empty", "holds no indices"),
        ("missing", "is not a readable"),
    ],
)
def test_bad_files_are_refused(name, says):
    with pytest.raises(SamplesError, match=says):
        read_indices(DATA / f"indices_{name}.npy", n_rows=160)


def test_beyond_the_start_is_refused(tmp_path):
    with pytest.raises(SamplesError, match="entry 0 is -161"):
        read_indices(save(tmp_path, [-161]), n_rows=160)


def test_an_archive_is_no_list_of_indices(tmp_path):
    np.savez(tmp_path / "i.npz", np.arange(3))
    with pytest.raises(SamplesError, match=r"not a readable \.npy file"):
        read_indices(tmp_path / "i.npz", n_rows=5)
