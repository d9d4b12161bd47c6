"""Run `sae-eval` in tests, on the golden activations and checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from actcli.cli import app

DATA = Path(__file__).parents[1] / "data" / "sae-eval"
UPSTREAM = DATA / "ckpt" / "upstream"
MATRYOSHKA = UPSTREAM / "new_individual_sizes"
SCOPE = DATA / "ckpt" / "gemma_scope"
GOOGLE = SCOPE / "gemma-scope-2b-pt-transcoders"
XY = DATA / "data" / "xy.npz"
ON_XY = ("--from-dump", XY, "--x", "x", "--y", "y")


def invoke(*words):
    return CliRunner().invoke(app, ["sae-eval", "--device", "cpu", *map(str, words)])


def run(*words):
    """Run the command, which must go well; return what it prints."""
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def as_json(*words):
    """Run the command without files; return its answer."""
    return json.loads(run("--json", "--no-files", *words))


def refusal(*words, status):
    """Run the command, which must end with that status; return its message."""
    done = invoke("--no-files", *words)
    assert done.exit_code == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def golden(name):
    return json.loads((DATA / "golden" / f"{name}.json").read_text())


def layered(tmp_path, *, layers=(8,), **more):
    """Write the golden activations as a dump of sites with samples and layers."""
    with np.load(XY) as file:
        x, y = (torch.from_numpy(file[key]).view(8, 1, 200, 40) for key in "xy")
    tensors = {"mlp_input": x, "mlp_input_normed": x, "mlp_out": y} | more
    path = tmp_path / "acts.safetensors"
    tensors = {key: each.contiguous().clone() for key, each in tensors.items()}
    save_file(tensors, path, metadata={"manifest": json.dumps({"layers": list(layers)})})
    return path


def check_reference(report, name):
    """Compare with the definitions in float64 over all tokens."""
    ref, pairs = golden(name)["ref"], golden(name)["ref_absorption"]
    r = report["reconstruction"]
    assert r["fvu"] == pytest.approx(ref["fvu"], rel=1e-5)
    assert r["mse"] == pytest.approx(ref["mse_per_element"], rel=1e-5)
    assert r["mse_per_token"] == pytest.approx(ref["mse_per_token"], rel=1e-5)
    assert r["mae"] == pytest.approx(ref["mae"], rel=1e-5)
    assert r["explained_variance_centered"] == pytest.approx(
        ref["frac_variance_explained_centered_residual"], rel=1e-5
    )
    assert r["explained_variance_legacy"] == pytest.approx(
        ref["explained_variance_legacy_mean_of_ratios"], rel=1e-5
    )
    assert r["fvu_scalar_mean"] == pytest.approx(ref["fvu_scalar_mean"], rel=1e-5)
    assert r["fvu_about_zero"] == pytest.approx(ref["fvu_about_zero"], rel=1e-5)
    assert r["cosine_similarity"] == pytest.approx(ref["cosine_mean_per_token"], rel=1e-5)
    assert r["cosine_flat"] == pytest.approx(ref["cosine_flat"], rel=1e-5)
    assert r["l2_ratio"] == pytest.approx(ref["l2_ratio"], rel=1e-5)
    assert r["relative_reconstruction_bias"] == pytest.approx(
        ref["relative_reconstruction_bias"], rel=1e-5
    )
    sparsity = report["sparsity"]
    assert sparsity["mean_l0"] == ref["l0_mean"]
    assert sparsity["median_l0"] == ref["l0_median"]
    assert sparsity["l0_std"] == pytest.approx(ref["l0_std_unbiased"])
    assert (sparsity["min_l0"], sparsity["max_l0"]) == (ref["l0_min"], ref["l0_max"])
    assert report["feature_utilization"]["dead_count"] == ref["dead_count"]
    acts = report["activation_stats"]
    assert acts["max_activation"] == pytest.approx(ref["max_activation"], rel=1e-5)
    assert acts["mean_activation"] == pytest.approx(ref["mean_nonzero_activation"], rel=1e-5)
    absorption = report["absorption"]
    assert absorption["score"] == pytest.approx(pairs["score_abs"])
    assert absorption["unordered_pairs"] == pairs["unordered_pairs_abs"]
    assert {(each["first"], each["second"]) for each in absorption["pairs"]} == {
        (first, second) for first, second, _cosine in pairs["pairs"]
    }
