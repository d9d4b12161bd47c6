"""Activation samples in the terminal: shown, listed, searched, asked for; folders browsed."""

import json

import pytest

from actcli.commands.feature_browse import browse_folders
from actcli.commands.feature_view import terminal_ask, view_samples
from actcli.errors import SamplesError, UsageError
from actcli.terminal.console import Output
from tests.commands.sae_eval_runs import run
from tests.render.feature_made import GOLDEN, write_ours, write_seed


@pytest.fixture
def folder(tmp_path):
    return write_ours(tmp_path / "samples")


def viewed(folder, capsys, **options):
    view_samples(folder, output=Output(), **options)
    return capsys.readouterr().out


def answers(folder, capsys, *words, **options):
    """What is printed after the list, where these words are said, and the questions."""
    remaining, questions = list(words), []

    def ask(question):
        questions.append(question)
        if not remaining:
            raise EOFError
        return remaining.pop(0)

    first = viewed(folder, capsys, **options)
    view_samples(folder, output=Output(), ask=ask, **options)
    found = capsys.readouterr()
    assert found.out.startswith(first)
    return found.out[len(first) :], found.err, questions


def test_features_by_number(folder, capsys):
    shown = viewed(folder, capsys, features=(7, 42, 7))
    assert [line for line in shown.splitlines() if line.startswith("Feature")] == [
        "Feature 7",
        "Feature 42",
    ]
    assert "« Paris»" in shown
    assert "sample 1200" not in viewed(folder, capsys, features=(42,), n_samples=1)


def test_feature_0_is_one(tmp_path, capsys):
    path = write_seed(tmp_path / "run")
    text = (
        (path / "feature_00008_samples.json")
        .read_text()
        .replace('"feature_idx": 8', '"feature_idx": 0')
    )
    (path / "feature_00000_samples.json").write_text(text)
    assert viewed(path, capsys, features=(0,)).startswith("Feature 0\n")


def test_the_command_asks_on(folder, monkeypatch):
    asked = iter(["42", "q"])
    monkeypatch.setattr(
        "actcli.commands.feature_view.terminal_ask", lambda **_: lambda _: next(asked)
    )
    assert "Feature 42" in run("--view", folder)


def test_a_list_of_the_strongest(folder, capsys):
    shown = viewed(folder, capsys)
    assert shown.index(" 42 ") < shown.index(" 7 ") < shown.index(" 123456 ")


def test_a_search(folder, capsys):
    shown = viewed(folder, capsys, find="FRANCE")
    assert " 42 " in shown
    assert " 123456 " not in shown
    assert "No context has 'xyz'" in viewed(folder, capsys, find="xyz")


def test_found_in_the_most_contexts_comes_first(capsys):
    view_samples(GOLDEN, output=Output(json_output=True), find="T43")
    found = json.loads(capsys.readouterr().out)["features"]
    assert [(each["feature_idx"], each["n_found"]) for each in found] == [
        (1, 1),
        (9, 1),
        (2, 1),
        (11, 1),
    ]
    view_samples(GOLDEN, output=Output(json_output=True), find="t0 t7")
    found = json.loads(capsys.readouterr().out)["features"]
    assert [(each["feature_idx"], each["n_found"]) for each in found] == [
        (9, 2),
        (2, 2),
        (11, 2),
        (1, 1),
    ]


def test_json(folder, capsys):
    view_samples(folder, output=Output(json_output=True), features=(42,))
    (feature,) = json.loads(capsys.readouterr().out)["features"]
    assert feature["top_samples"][0]["activation_value"] == 9.5
    view_samples(folder, output=Output(json_output=True))
    listed = json.loads(capsys.readouterr().out)
    assert [each["feature_idx"] for each in listed["features"]] == [42, 7, 123456]


def test_questions_until_q(folder, capsys):
    shown, _err, questions = answers(folder, capsys, "7", " 42, 7 ", "list", "paris", "", "Q", "7")
    heads = [line for line in shown.splitlines() if line.startswith("Feature ")]
    assert heads == ["Feature 7", "Feature 42", "Feature 7"]
    assert "Features with 'paris' in a context" in shown
    assert shown.count("Strongest at") == 2
    assert len(questions) == 6


def test_the_end_of_input_ends_the_questions(folder, capsys):
    assert answers(folder, capsys)[0] == ""


def test_a_wrong_number_is_asked_again(folder, capsys):
    shown, err, questions = answers(folder, capsys, "8", "7")
    assert "no samples of feature 8; it has 7, 42, 123456" in " ".join(err.split())
    assert "Feature 7\n" in shown
    assert len(questions) == 3


@pytest.mark.parametrize("chosen", [{"features": (7,)}, {"find": "paris"}])
def test_nothing_is_asked_where_something_was_chosen(folder, capsys, chosen):
    assert answers(folder, capsys, "42", **chosen)[2] == []


def test_nobody_is_asked_where_nobody_sits(monkeypatch):
    assert terminal_ask(json_output=False) is None
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert terminal_ask(json_output=False) is input
    assert terminal_ask(json_output=True) is None


def test_bad_input(folder, tmp_path):
    with pytest.raises(UsageError, match="no samples of feature 8"):
        view_samples(folder, output=Output(), features=(8,))
    with pytest.raises(UsageError, match="give one of them"):
        view_samples(folder, output=Output(), features=(7,), find="x")
    with pytest.raises(SamplesError, match="is not there"):
        view_samples(tmp_path / "none", output=Output())


# Browsing


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results"
    write_seed(root / "gemma" / "layer0" / "first")
    (root / "gemma" / "layer8" / "second").mkdir(parents=True)
    (root / "gemma" / "layer8" / "second" / "sae.pt").write_bytes(b"")
    write_ours(root / "gemma" / "layer10" / "a" / "b" / "activation_samples")
    write_ours(root / "loose")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "sae.pt").write_bytes(b"")
    (root / "gemma" / "layer8" / "empty").mkdir()
    return root


def browsed(root, capsys, **options):
    browse_folders(root, output=Output(json_output=True), **options)
    return json.loads(capsys.readouterr().out)["experiments"]


def test_experiments_at_any_depth(results, capsys):
    found = browsed(results, capsys)
    keys = ("model", "layer", "name", "has_checkpoint", "has_samples", "n_features")
    assert [tuple(each[key] for key in keys) for each in found] == [
        (None, None, "loose", False, True, 3),
        ("gemma", 0, "first", True, True, 3),
        ("gemma", 8, "second", True, False, 0),
        ("gemma", 10, "a/b", False, True, 3),
    ]
    assert found[2]["checkpoints"] == ["sae.pt"]


def test_layer_0_is_one(results, capsys):
    assert [each["name"] for each in browsed(results, capsys, layer=0)] == ["first"]


def test_by_model_and_name(results, capsys):
    found = browsed(results, capsys, model="gemma", experiment="second")
    assert [each["layer"] for each in found] == [8]


@pytest.mark.parametrize(
    ("start", "expected"),
    [("gemma/layer8", ["second"]), ("gemma/layer8/second", ["second"]), ("loose", ["loose"])],
)
def test_from_any_folder(results, capsys, start, expected):
    assert [each["name"] for each in browsed(results / start, capsys)] == expected


def test_what_is_not_there_is_said(results):
    with pytest.raises(UsageError, match="there is no layer 9"):
        browse_folders(results, output=Output(), layer=9)
    with pytest.raises(UsageError, match=r"no folder here says its layer: .*leave out --layer"):
        browse_folders(results / "loose", output=Output(), layer=9)


def test_a_table(results, capsys):
    browse_folders(results, output=Output())
    shown = capsys.readouterr().out
    assert "3 features" in shown
    assert "checkpoint.pt" in shown
    browse_folders(results / "gemma" / "layer8" / "empty", output=Output())
    assert "holds a checkpoint or activation samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 9}, "there is no layer 9; known are: 0, 10, 8"),
        ({"model": "gema"}, "there is no model gema; did you mean 'gemma'?"),
        ({"experiment": "seconds"}, "there is no experiment seconds; did you mean 'second'?"),
    ],
)
def test_what_is_not_there(results, options, said):
    with pytest.raises(UsageError) as raised:
        browse_folders(results, output=Output(), **options)
    assert str(raised.value) == said


def test_no_folder(tmp_path):
    with pytest.raises(SamplesError, match="none is not there: expected a folder of experiments"):
        browse_folders(tmp_path / "none", output=Output())
    (tmp_path / "file").write_text("")
    with pytest.raises(SamplesError, match="file is a file"):
        browse_folders(tmp_path / "file", output=Output())
