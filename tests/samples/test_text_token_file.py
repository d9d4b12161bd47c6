"""Files of token ids are samples as they stand; what is no token id is refused by its place."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.errors import SamplesError, UsageError
from actcli.samples import token_rows
from actcli.samples.token_file import open_token_file


def save(tmp_path, ids, dtype=None):
    np.save(tmp_path / "ids.npy", np.asarray(ids, dtype=dtype))
    return tmp_path / "ids.npy"


def test_full_rows(tmp_path):
    path = save(tmp_path, [[5, 0, 2], [1, 9, 3]], np.uint16)
    samples = open_token_file(path)
    assert (len(samples), samples.n_tokens, samples.largest_token) == (2, 3, 9)
    assert samples.lengths is None
    batch = samples.batch(range(1, 2))
    assert batch.inputs.keys() == {"tokens"}
    assert batch.inputs["tokens"].tolist() == [[1, 9, 3]]
    assert batch.inputs["tokens"].dtype == np.int64
    assert batch.stored["mask"].tolist() == [[1, 1, 1]]
    assert batch.stored.keys() == samples.stored.keys() == {"token_ids", "mask"}
    assert samples.manifest()["files"] == [{"file": "ids.npy", "bytes": path.stat().st_size}]


@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 6),
    st.integers(1, 12),
)
def test_short_rows_end_in_padding(tmp_path_factory, rows, max_tokens, limit, at_once):
    padded = np.full((len(rows), 6), -1, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    path = save(tmp_path_factory.mktemp("ids"), padded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_rows, "_TOKENS_AT_ONCE", at_once)
        samples = open_token_file(path, max_tokens=max_tokens, limit=limit)
        manifest = samples.manifest()
    used = [ids[:max_tokens] for ids in rows[:limit]]
    longest = max(map(len, used))
    assert (len(samples), samples.n_tokens) == (len(used), longest)
    assert samples.largest_token == max(map(max, used))
    assert samples.n_truncated == sum(len(ids) > (max_tokens or 6) for ids in rows[:limit])
    lengths = [longest] * len(used) if samples.lengths is None else samples.lengths.tolist()
    assert lengths == [*map(len, used)]
    backwards = np.arange(len(used))[::-1]
    stored = samples.batch(backwards).stored["token_ids"]
    assert [[n for n in row if n >= 0] for row in stored.tolist()] == used[::-1]
    closed = b"".join(n.to_bytes(4, "little", signed=True) for row in used for n in [*row, -1])
    assert manifest["tokens_sha256"] == hashlib.sha256(closed).hexdigest()


def test_one_axis_is_one_sample_or_a_corpus(tmp_path):
    path = save(tmp_path, range(7))
    assert open_token_file(path).batch(range(1)).inputs["tokens"].tolist() == [[*range(7)]]
    packed = open_token_file(path, chunk=3)
    assert packed.batch(range(2)).inputs["tokens"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(open_token_file(path, chunk=3, limit=1)) == 1
    with pytest.raises(UsageError, match="holds 7 tokens, fewer than one row of --chunk 8"):
        open_token_file(path, chunk=8)
    with pytest.raises(UsageError, match=r"--chunk packs a corpus .* rows of shape \[1, 2\]"):
        open_token_file(save(tmp_path, [[1, 2]]), chunk=2)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.zeros((2, 3)), "holds float64 values, expected integers"),
        (np.zeros((2, 3), dtype=bool), "holds bool values, expected integers"),
        (np.zeros((2, 0), dtype=int), r"an array of shape \[2, 0\], expected token ids as"),
        (np.zeros((1, 2, 3), dtype=int), r"an array of shape \[1, 2, 3\]"),
        (np.array(3), r"an array of shape \[\]"),
        ([[1, 2], [3, -2]], "row 1, column 1, is -2; expected token ids from 0"),
        ([[1, 2**31]], "row 0, column 1, is 2147483648; expected"),
        (np.array([[1, 2**63]], dtype=np.uint64), "is 9223372036854775808; expected"),
        ([[1, 2], [-1, 3]], r"row 1, column 1, is 3; behind padding \(-1\): pad short rows at"),
        ([[1, 2], [-1, -1]], r"row 1 is padding \(-1\) alone"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, monkeypatch, ids, says):
    path = save(tmp_path, ids)
    for at_once in (1, 1000):
        monkeypatch.setattr(token_rows, "_TOKENS_AT_ONCE", at_once)
        with pytest.raises(SamplesError, match=says):
            open_token_file(path)


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "ids.npz", np.arange(3))
    with pytest.raises(SamplesError, match=r"not a readable \.npy file"):
        open_token_file(tmp_path / "ids.npz")
    with pytest.raises(SamplesError, match=r"not a readable \.npy file: No such file"):
        open_token_file(tmp_path / "no.npy")
