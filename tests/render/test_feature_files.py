"""Folders of activation samples: written whole, read back, those of the other program too."""

import json

import pytest

from actcli.errors import DumpError, SamplesError, UsageError
from actcli.render.feature_files import (
    check_samples_folder,
    open_folder,
    samples_name,
    write_folder,
)
from tests.render.feature_made import (
    GOLDEN,
    RECORDS,
    record,
    summary,
    write_json,
    write_ours,
    write_seed,
)


def test_what_is_written_is_read(tmp_path):
    folder = write_ours(tmp_path / "samples")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "collection_summary.json",
        "feature_00007_samples.json",
        "feature_00042_samples.json",
        "feature_123456_samples.json",
    ]
    samples = open_folder(folder)
    assert list(samples.files) == [7, 42, 123456]
    assert samples.every() == list(RECORDS)
    assert samples.summary == summary()
    assert samples.name == "samples"


def test_the_folder_of_the_other_program_is_read(tmp_path):
    write_seed(tmp_path / "run")
    samples = open_folder(tmp_path / "run")
    assert samples.path == tmp_path / "run" / "activation_samples"
    assert samples.name == "run"
    assert samples.summary.total_samples_seen == 154
    assert samples.summary.features_written is None
    assert [each.feature for each in samples.every()] == [17, 8, 30]
    (first, second) = samples.record(8).top_samples
    assert (first.activation_value, first.tokens, first.text) == (5.5, (103, 104), " of France")
    assert second.context_texts is None
    silent = samples.record(30).statistics
    assert silent.std_activation is silent.all_time_max is silent.density is None


def test_files_that_the_other_program_wrote():
    samples = open_folder(GOLDEN)
    assert samples.name == "new_individual_sizes"
    assert samples.summary.total_samples_seen == 989
    assert samples.summary.features_with_samples == tuple(range(12))
    assert [each.feature for each in samples.every()] == [1, 9, 2, 11]
    for each in samples.every():
        assert (each.statistics.num_samples, len(each.top_samples)) == (5, 3)
        assert each.statistics.max_activation == each.top_samples[0].activation_value
    for ranked in samples.summary.top_features_by_activation[:4]:
        expected = samples.record(ranked.feature_idx).statistics.max_activation
        assert ranked.max_activation == expected


def test_tokens_may_be_texts_and_keys_unknown(tmp_path):
    folder = write_seed(tmp_path / "run")
    path = folder / samples_name(8)
    body = json.loads(path.read_text())
    body["top_samples"][0]["tokens"] = ["of", "France"]
    body["new"] = body["statistics"]["new"] = body["top_samples"][0]["new"] = 1
    write_json(path, body)
    assert open_folder(folder).record(8).top_samples[0].tokens == ("of", "France")


def test_without_a_summary(tmp_path):
    folder = write_seed(tmp_path / "run")
    (folder / "collection_summary.json").unlink()
    assert open_folder(folder).summary is None
    assert len(open_folder(folder).every()) == 3


def test_equal_features_come_by_number(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    write_folder(folder, [record(9), record(2)], summary(RECORDS[:0]))
    assert [each.feature for each in open_folder(folder).every()] == [2, 9]


def test_files_of_another_run_do_not_stay(tmp_path):
    folder = write_ours(tmp_path / "samples")
    (folder / "notes.txt").write_text("mine")
    write_folder(folder, RECORDS[:1], summary())
    assert list(open_folder(folder).files) == [42]
    assert (folder / "notes.txt").read_text() == "mine"


def test_samples_are_not_replaced_unasked(tmp_path):
    folder = write_ours(tmp_path / "samples")
    check_samples_folder(folder, force=True)
    with pytest.raises(DumpError, match=r"holds activation samples: .*--force"):
        check_samples_folder(folder, force=False)
    (folder / "collection_summary.json").unlink()
    with pytest.raises(DumpError, match="holds activation samples"):
        check_samples_folder(folder, force=False)
    check_samples_folder(tmp_path / "new" / "deep", force=False)
    assert (tmp_path / "new" / "deep").is_dir()


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(DumpError, match="cannot make the folder"):
        check_samples_folder(path, force=False)
    with pytest.raises(SamplesError, match="file is a file: expected a folder"):
        open_folder(path)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(SamplesError, match="none is not there: expected a folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(SamplesError, match=r"no activation samples: .*feature_00042_samples.json"):
        open_folder(tmp_path)


def test_a_feature_without_a_file(tmp_path):
    folder = write_ours(tmp_path / "samples")
    with pytest.raises(UsageError, match=r"no samples of feature 41; it has 7, 42, 123456$"):
        open_folder(folder).record(41)
    write_folder(folder, [record(each) for each in range(0, 100, 5)], summary())
    with pytest.raises(UsageError, match=r"feature 41; it has 20 features, .* are 35, 40, 45$"):
        open_folder(folder).record(41)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Invalid JSON"),
        ('{"statistics": ', "Invalid JSON"),
        ("[]", "should be an object|should be a valid dictionary"),
        ('{"top_samples": []}', "statistics: Field required"),
        ('{"statistics": {"feature_idx": "x"}, "top_samples": []}', "statistics.feature_idx"),
    ],
)
def test_a_damaged_file(tmp_path, text, said):
    folder = write_ours(tmp_path / "samples")
    (folder / samples_name(7)).write_text(text)
    with pytest.raises(SamplesError, match=f"feature_00007_samples.json is damaged .*({said})"):
        open_folder(folder).every()
    (folder / "collection_summary.json").write_text(text)
    with pytest.raises(SamplesError, match=r"collection_summary.json is damaged"):
        assert open_folder(folder).summary


def test_numbers_that_are_none(tmp_path):
    folder = write_seed(tmp_path / "run")
    path = folder / samples_name(8)
    path.write_text(path.read_text().replace("0.125", "NaN"))
    with pytest.raises(SamplesError, match="std_activation"):
        open_folder(folder).record(8)
