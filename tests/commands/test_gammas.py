"""`gammas` as users run it, on dumps and on models."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from actcli.cli import app
from actcli.reports.gammas import GammaReport
from tests.golden import DUMPS, MODELS

A = DUMPS / "a_ev_mha_fp32.safetensors"
STARVED = DUMPS / "e_starved_gammas.safetensors"


def run(*words):
    return CliRunner().invoke(app, ["gammas", *map(str, words)])


def report(*words):
    result = run("--json", *words)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return GammaReport.model_validate_json(result.stdout)


def refused(*words, status=1):
    result = run(*words)
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    return result.stderr


def test_the_table():
    result = run("--input", A)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "blocks.0.attn_norm" in result.stdout
    assert result.stdout.rstrip().endswith("All gammas exactly 1.0: no (40/416 overall)")


def test_a_model_has_the_gammas_of_its_dump():
    dumped, read = report("--input", A), report("--init", MODELS / "a_ev_mha")
    assert read.source == str(MODELS / "a_ev_mha")
    assert read.modules == dumped.modules
    assert len(read.modules) == 13


@pytest.mark.parametrize("name", ["d_fp16.npz", "d_fp16.pt", "d_fp16.safetensors"])
def test_other_formats(name):
    expected = report("--input", DUMPS / "d_fp16.safetensors").modules
    assert report("--input", DUMPS / name).modules == expected
    assert {each.dtype for each in expected} == {"F16"}


def test_the_prefix():
    found = report("--input", A, "--prefix", "rmsnorm_gammas/blocks.1.")
    assert [each.module for each in found.modules] == ["attn_norm", "mlp_norm"]
    read = report("--init", MODELS / "a_ev_mha", "--prefix", "rmsnorm_gammas/blocks.1.")
    assert read.modules == found.modules


def test_the_tolerance():
    assert report("--input", A, "--tolerance", 10).all_ones
    assert "--tolerance" in refused("--input", A, "--tolerance", -1, status=2)


def test_the_check():
    passed = run("--input", A, "--check")
    assert passed.exit_code == 0
    failed = run("--input", STARVED, "--check")
    assert failed.exit_code == 3
    assert "yes (160/160 overall)" in failed.stdout
    assert failed.stderr == f"check failed: all 160 gammas of {STARVED} are exactly 1.0\n"
    as_json = run("--init", MODELS / "e_starved", "--check", "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["all_ones"] is True
    assert json.loads(as_json.stderr)["error"]["type"] == "CheckFailed"
    near = run("--input", A, "--check", "--tolerance", 10)
    assert near.exit_code == 3
    assert "are within 10 of 1.0" in near.stderr
    assert run("--input", STARVED).exit_code == 0


def test_bad_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no dump activations.safetensors" in refused()
    assert "exclude each other" in refused("--input", A, "--init", "x", status=2)
    message = refused("--input", A, "--prefix", "zzz")
    assert "no tensors whose keys begin with 'zzz'" in message
    assert "attn_norm" in message
    message = refused("--init", MODELS / "a_ev_mha", "--prefix", "zzz")
    assert "no norm whose key in a dump begins with 'zzz'" in message
    assert "missing" in refused("--init", "missing")
    save_file({"rmsnorm_gammas/x": torch.ones(2, dtype=torch.int64)}, tmp_path / "i.safetensors")
    assert "holds I64 values" in refused("--input", tmp_path / "i.safetensors")
