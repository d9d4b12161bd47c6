"""The whole program, from its words to its standard output."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from actcli import __version__
from actcli.cli import COMMANDS, app
from actcli.sites import SITES
from tests.processes import ROOT, press_tab, run_python

NAMES = [command.name for command in COMMANDS]


def run(*words, **env):
    return CliRunner().invoke(app, [str(word) for word in words], env=env)


def offers(*words):
    return press_tab("actcli.cli", "actcli", *map(str, words))


@pytest.fixture
def dump(tmp_path):
    path = tmp_path / "acts.safetensors"
    save_file({"attn_norm": torch.zeros(1, 3, 2, 4), "mlp_input": torch.zeros(1, 2, 2, 4)}, path)
    return path


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["-h"], []])
def test_the_program_says_what_it_is(words):
    result = run(*words)
    assert result.exit_code == (0 if words else 2)
    if words == ["--version"]:
        assert result.stdout == f"actcli {__version__}\n"
    else:
        assert all(name in result.stdout for name in NAMES)


def test_it_runs_as_a_module():
    assert run_python("-m", "actcli", "--version").stdout == f"actcli {__version__}\n"


def test_an_unknown_command_offers_the_nearest():
    result = run("dumb")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "dump" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_of_any_command_is_a_line_of_json(name):
    result = run(name, "--json", "--config", "missing.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "missing.toml" in json.loads(result.stderr)["error"]["message"]


def test_commands_complete():
    assert offers("") == NAMES


def test_outputs_complete_and_go_on_after_the_comma():
    assert offers("dump", "--outputs", "attn_norm,mlp") == [
        f"attn_norm,{site.name}" for site in SITES if site.name.startswith("mlp")
    ]


def test_layers_of_a_model_complete(tmp_path):
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3}')
    assert offers("dump", "--init", tmp_path, "--layers", "0,") == ["0,1", "0,2"]


def test_keys_of_the_dump_at_hand_complete(dump):
    assert offers("outliers", "--input", dump, "--key", "") == ["attn_norm", "mlp_input"]
    assert offers("outliers", "--input", dump, "--key", "m") == ["mlp_input"]
    assert offers("outliers", "--input", dump, "--compare-key", "m") == ["mlp_input"]


def test_keys_of_the_default_dump_complete(dump, tmp_path, monkeypatch):
    dump.rename(tmp_path / "activations.safetensors")
    monkeypatch.chdir(tmp_path)
    assert offers("outliers", "--key", "a") == ["attn_norm"]
    assert offers("outliers", "--layers", "") == ["0", "1", "2"]
    assert offers("outliers", "--key", "mlp_input", "--layers", "0,") == ["0,1"]


def test_no_dump_no_offers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert offers("outliers", "--key", "") == []


def test_the_reference_is_current():
    done = run_python(ROOT / "docs" / "make_reference.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")
