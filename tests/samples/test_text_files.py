"""Texts are read as they stand, a few at a time, and what is no text is refused by its place."""

import json
import sys
import tracemalloc

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli import builtin
from actcli.errors import SamplesError
from actcli.samples.text_files import (
    DatasetTexts,
    GivenTexts,
    JsonLinesTexts,
    LineTexts,
    is_text_dataset,
    open_lines,
)

TEXTS = ["one, two", "", "é 日 \U0001f600", " padded "]


def write(tmp_path, content):
    path = tmp_path / "texts"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_without_their_ends(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfone\r\n\n two \x0c\xe2\x80\xa8x\r\nlast")
    texts = LineTexts(path)
    assert list(texts) == ["one", "", " two \x0c\u2028x", "last"]
    assert list(texts) == list(texts)
    assert texts.manifest() == {"files": [{"file": "texts", "bytes": path.stat().st_size}]}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff"))))
def test_lines_come_back(tmp_path_factory, lines):
    path = write(tmp_path_factory.mktemp("lines"), "".join(f"{line}\n" for line in lines))
    assert list(LineTexts(path)) == lines
    path.write_text("".join(json.dumps({"a": 1, "text": line}) + "\n" for line in lines))
    assert list(JsonLinesTexts(path, "text")) == lines


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"good\n\xe9t\xe9\n", r"line 2, is not UTF-8: byte 0xe9 at byte 5 of the file"),
        ("aé\nb".encode("utf-16"), r"line 1, is not UTF-8: byte 0xff at byte 0"),
        (b"\xef\xbb\xbfab\xc3", r"line 1, is not UTF-8: byte 0xc3 at byte 5"),
    ],
)
def test_other_encodings_are_refused_by_line_and_byte(tmp_path, content, says):
    for texts in (LineTexts(write(tmp_path, content)), JsonLinesTexts(tmp_path / "texts", "x")):
        with pytest.raises(SamplesError, match=says if isinstance(texts, LineTexts) else "line"):
            list(texts)


def test_files_that_cannot_be_read(tmp_path):
    for path, says in [(tmp_path / "no", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(SamplesError, match=f"cannot read {path}: {says}"):
            list(LineTexts(path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 3, is not JSON: Expecting property name"),
        ("[" * 100_000, r"line 3, is not JSON"),
        ('["x"]', r"line 3, holds a list, expected an object such as \{\"text\": \"...\"\}"),
        ("null", r"line 3, holds null"),
        ('{"txt": "a", "id": 1}', r"line 3, has no field 'text'; it has: 'txt', 'id'; --field"),
        ("{}", r"line 3, has no field 'text'; it has: none"),
        ('{"text": 3}', r"line 3: the field 'text' is a number, expected a string"),
        ('{"text": null}', r"line 3: the field 'text' is null, expected a string"),
    ],
)
def test_bad_json_lines_are_refused_by_line(tmp_path, line, says):
    path = write(tmp_path, '{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(SamplesError, match=says):
        list(JsonLinesTexts(path, "text"))


@pytest.fixture
def saved(tmp_path):
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3, 4], "none": [None] * 4})
    made.save_to_disk(tmp_path / "ds")
    made.to_parquet(tmp_path / "ds.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["ds", "ds.parquet"])
def test_a_column_of_a_data_set(saved, name, capfd):
    texts = DatasetTexts(saved / name, "text")
    assert is_text_dataset(saved / name)
    assert list(texts) == TEXTS
    assert list(texts) == TEXTS
    (file,) = texts.manifest()["files"]
    assert file["bytes"] > 0
    with pytest.raises(
        SamplesError, match=r"ds\S* has no field 'txt'; it has: 'text', 'n', 'none'"
    ):
        list(DatasetTexts(saved / name, "txt"))
    with pytest.raises(SamplesError, match=r"row 0: the column 'n' is int, expected a string"):
        list(DatasetTexts(saved / name, "n"))
    with pytest.raises(SamplesError, match=r"row 0: the column 'none' is null, expected a string"):
        list(DatasetTexts(saved / name, "none"))
    assert capfd.readouterr().err == ""


def test_a_data_set_is_not_changed_by_reading(saved):
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    list(DatasetTexts(saved / "ds", "text"))
    list(DatasetTexts(saved / "ds.parquet", "text"))
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before


def test_many_shards_are_read_in_silence(tmp_path, capfd):
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": TEXTS * 10}).save_to_disk(tmp_path, num_shards=20)
    datasets.enable_progress_bars()
    assert list(DatasetTexts(tmp_path, "text")) == TEXTS * 10
    assert capfd.readouterr().err == ""
    assert datasets.are_progress_bars_disabled()  # on a terminal there would be one


def test_several_splits_are_named(tmp_path):
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path)
    assert is_text_dataset(tmp_path)
    with pytest.raises(SamplesError, match=rf"give one of {tmp_path}/train, {tmp_path}/test"):
        list(DatasetTexts(tmp_path, "text"))
    assert list(DatasetTexts(tmp_path / "test", "text")) == ["a"]


@pytest.mark.parametrize("content", ["", "{", "{}", '{"_data_files": [{"filename": "no.arrow"}]}'])
def test_damaged_data_sets_are_refused(saved, content):
    (saved / "ds" / "state.json").write_text(content)
    (saved / "ds.parquet").write_text(content)
    for name in ("ds", "ds.parquet"):
        with pytest.raises(SamplesError, match=rf"{name} is not a readable data set: "):
            list(DatasetTexts(saved / name, "text"))


def test_without_the_package_it_says_how_to_get_it(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for name in ("ds", "ds.parquet"):
        with pytest.raises(SamplesError, match=r"pip install 'actcli\[datasets\]'"):
            list(DatasetTexts(saved / name, "text"))


def test_what_is_no_data_set(tmp_path):
    (tmp_path / "steps.npy").write_bytes(b"")
    assert not is_text_dataset(tmp_path)
    assert not is_text_dataset(tmp_path / "nowhere")
    assert not is_text_dataset(tmp_path / "steps.npy")


def test_given_texts():
    assert list(GivenTexts(("a", "b"))) == ["a", "b"]
    assert GivenTexts(("a", "b")).manifest() == {"prompts": 2}


def test_built_in_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "_ASSETS", tmp_path)
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "sentences.txt").write_text("a b\n")
    assert list(open_lines("demo://facts")) == ["a b"]
    with pytest.raises(SamplesError, match=r"under 'demo://fact'; did you mean 'demo://facts'"):
        open_lines("demo://fact")


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = write(tmp_path, "some words in a line\n" * 100_000)
    tracemalloc.start()
    assert sum(1 for _ in LineTexts(path)) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10
