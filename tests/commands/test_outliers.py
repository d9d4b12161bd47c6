"""`outliers` as users run it: answers, options, files, and every bad input."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from actcli.analysis.outliers import count_outliers
from actcli.cli import app
from actcli.reports.outliers import ComparedOutliersReport, OutlierReport
from actcli.store.reader import open_dump
from tests.golden import DUMPS
from tests.processes import run_python

A = DUMPS / "a_ev_mha_fp32.safetensors"


def run(*words):
    return CliRunner().invoke(app, ["outliers", *map(str, words)])


def report(*words):
    result = run("--json", *words)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return OutlierReport.model_validate_json(result.stdout)


def refused(*words, status=1):
    result = run(*words)
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def expected(**options):
    with open_dump(options.pop("path", A)) as dump:
        key = options.pop("key", "attn_norm")
        source = str(dump.path)
        return count_outliers(dump.tensor(key), source=source, **options)


def test_the_tables():
    result = run("--input", A, "--threshold", 6)
    assert result.exit_code == 0
    assert "Activation Outliers (attn_norm)" in result.stdout
    assert "53.30%" in result.stdout
    assert result.stderr == "attn_norm: F32 [6, 6, 16, 32], 0.1 MiB\n"
    assert run("-q", "--input", A).stderr == ""


def test_json_is_the_report():
    assert report("--input", A) == expected()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            ["--threshold", 3, "--min-layer-fraction", 0.5],
            {"threshold": 3, "min_layer_fraction": 0.5},
        ),
        (["--no-layer-fraction"], {"min_layer_fraction": None}),
        (["-k", "mlp_input", "-t", "2.5"], {"key": "mlp_input", "threshold": 2.5}),
        (["--layers", "0,3-4,-1"], {"layers": [0, 3, 4, 5]}),
        (["--layers", "-1,2"], {"layers": [2, 5]}),
    ],
)
def test_options(words, options):
    assert report("--input", A, *words) == expected(**options)


@pytest.fixture
def padded(tmp_path):
    """A dump of texts whose padding would be outliers, and its tensors."""
    rng = np.random.default_rng(0)
    mask = (np.arange(5) < rng.integers(1, 6, 8)[:, None]).astype(np.uint8)
    acts = rng.standard_normal((8, 3, 5, 4)).astype(np.float32)
    acts.transpose(0, 2, 1, 3)[mask == 0] = 99.0
    tensors = {"attn_norm": acts, "final_hidden": acts[:, 0].copy(), "mask": mask}
    tensors["head_logits"] = np.full((8, 4, 3), 7.0, np.float32)
    tensors["module:head"] = np.ones((8, 2, 5), np.float32)
    save_file(
        {key: torch.from_numpy(each) for key, each in tensors.items()}, tmp_path / "t.safetensors"
    )
    return tmp_path / "t.safetensors", tensors


@pytest.mark.parametrize("key", ["attn_norm", "final_hidden"])
def test_padding_never_counts(padded, key):
    path, tensors = padded
    found, mask = report("--input", path, "--key", key, "-t", 1), tensors["mask"] == 1
    acts = tensors[key].reshape(8, -1, 5, 4).transpose(0, 2, 1, 3)[mask]
    assert found.element_hits == np.count_nonzero(np.abs(acts) > 1)
    assert found.total_elements == acts.size
    assert found.masked_positions == np.count_nonzero(~mask)
    assert found.iqr_stats.median == pytest.approx(np.median(acts))
    assert "Positions masked out (padding)" in run("--input", path, "--key", key).stdout


def test_what_has_no_tokens_is_not_masked(padded):
    path, _tensors = padded
    found = report("--input", path, "--key", "head_logits")
    assert (found.element_hits, found.masked_positions) == (8 * 4 * 3, 0)
    assert "masked out" not in run("--input", path, "--key", "head_logits").stdout


def test_a_mask_that_does_not_fit_is_refused(padded):
    path, _tensors = padded
    said = refused("--input", path, "--key", "module:head")
    assert "'module:head' is [8, 2, 5] and the dump's mask [8, 5], expected [8, 2]" in said


def test_estimates():
    found = report(
        *("--input", A, "--threshold", 3, "--min-layer-fraction", 0.5),
        *("--iqr-samples", 5000, "--outlier-samples", 50, "--iqr-seed", 3),
    )
    assert (found.iqr_used, found.iqr_exact, found.sampling_seed) == (5000, False, 3)
    assert (found.outlier_mag_used, found.outlier_mag_exact) == (50, False)
    assert report("--input", A, "--iqr-samples", 0).iqr_stats is None


def test_the_default_input_is_that_of_dump(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no dump activations.safetensors; write one with 'actcli dump'" in refused()


@pytest.mark.parametrize("name", ["d_fp16.npz", "d_fp16.pt", "d_bf16.pt", "d_bf16.safetensors"])
def test_other_formats(name):
    assert report("--input", DUMPS / name, "-t", 2) == expected(path=DUMPS / name, threshold=2)


def test_three_axes():
    found = report("--input", A, "--key", "final_hidden", "-t", 1)
    assert (found.shape, found.layers) == ((6, 16, 32), (0,))


def test_comparison():
    result = run("--input", A, "--compare-key", "mlp_input", "--json")
    both = ComparedOutliersReport.model_validate_json(result.stdout)
    assert (both.first, both.second) == (expected(), expected(key="mlp_input"))
    assert (both.comparison.common, both.comparison.jaccard) == (4, 1.0)
    shown = run("--input", A, "--compare-key", "mlp_input").stdout
    assert "Top Common Outlier Dims" in shown


@pytest.mark.parametrize("suffix", ["json", "csv", "png"])
def test_files(suffix, tmp_path):
    path = tmp_path / "deep" / f"r.{suffix}"
    result = run("--input", A, "--output", path, "--compare-key", "mlp_input")
    assert result.exit_code == 0
    assert f"wrote {path}" in result.stderr
    content = path.read_bytes()
    message = refused("--input", A, "--output", path)
    assert "exists: choose another --output, or --force" in message
    assert path.read_bytes() == content
    assert run("--input", A, "--output", path, "--force", "-t", 3).exit_code == 0
    assert path.read_bytes() != content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.fixture
def partial_dump(tmp_path):
    """A dump that holds layers 0, 4 and 8 of 12, at tokens 2 and 5."""
    path = tmp_path / "partial.safetensors"
    acts = torch.randn(4, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    manifest = {"layers": [0, 4, 8], "positions": [2, 5]}
    metadata = {"num_layers": "12", "manifest": json.dumps(manifest)}
    save_file({"attn_norm": acts, "final_hidden": acts[:, 0].contiguous()}, path, metadata)
    return path


def test_layers_are_those_of_the_model(partial_dump):
    everything = report("--input", partial_dump, "-t", 1)
    assert (everything.layers, everything.tokens) == ((0, 4, 8), (2, 5))
    some = report("--input", partial_dump, "-t", 1, "--layers", "8,0", "--no-layer-fraction")
    assert some.layers == (0, 8)
    assert some.layer_counts == tuple(
        report("--input", partial_dump, "-t", 1, "--no-layer-fraction").layer_counts[place]
        for place in (0, 2)
    )
    message = refused("--input", partial_dump, "--layers", "4,-1")
    assert "does not hold layer 11 of 'attn_norm'; it holds layers 0, 4, 8" in message
    message = refused("--input", partial_dump, "--layers", "12", status=2)
    assert "layer 12 was asked for, but there are 12" in message
    message = refused("--input", partial_dump, "-k", "final_hidden", "--layers", "0", status=2)
    assert "'final_hidden' has no layer axis" in message
    assert report("--input", partial_dump, "-k", "final_hidden", "-t", 1).tokens == (2, 5)


def test_a_manifest_that_does_not_fit_is_not_used(tmp_path):
    path = tmp_path / "x.safetensors"
    for layers in ([1], "abc", [0.5, 1.5], None):
        metadata = {"manifest": json.dumps({"layers": layers}), "num_layers": "many"}
        save_file({"attn_norm": torch.zeros(1, 2, 1, 1)}, path, metadata)
        assert report("--input", path).layers == (0, 1)


def test_values_that_are_not_finite_are_told(tmp_path):
    path = tmp_path / "x.safetensors"
    acts = torch.zeros(2, 2, 2, 2, dtype=torch.float16)
    acts[0, :, 0, 0], acts[1, 0, 1, 1] = float("nan"), float("-inf")
    save_file({"attn_norm": acts}, path)
    result = run("--input", path)
    assert result.exit_code == 0
    assert "warning: attn_norm: 2 elements are NaN; they are never outliers" in result.stderr
    assert "warning: attn_norm: 1 elements are infinite; they count as hits" in result.stderr
    found = json.loads(run("--input", path, "--json").stdout)
    assert (found["nan_count"], found["negative_infinity_count"]) == (2, 1)
    assert found["outlier_mag_stats"]["max"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "-1"], "--threshold"),
        (["--threshold", "nan"], "--threshold"),
        (["--threshold", "inf"], "--threshold"),
        (["--min-layer-fraction", "1.5"], "--min-layer-fraction"),
        (["--min-layer-fraction", "-0.1"], "--min-layer-fraction"),
        (["--one-sided-threshold", "2"], "--one-sided-threshold"),
        (["--topk-dims", "0"], "--topk-dims"),
        (["--max-dim-list", "-5"], "--max-dim-list"),
        (["--iqr-samples", "-1"], "--iqr-samples"),
        (["--layers", "abc"], "--layers"),
        (["--layers", "6"], "layer 6 was asked for, but there are 6"),
        (["--layers", "-7"], "layer -7 was asked for, but there are 6"),
        (["--output", "report.txt"], "expected a name that ends in .json, .csv, .png"),
    ],
)
def test_wrong_usage(words, message):
    assert message in refused("--input", A, *words, status=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--key", "atn_norm"], "did you mean 'attn_norm'? (its keys: "),
        (["--compare-key", "zzz"], "has no tensor 'zzz'; known are: attn_norm, boards"),
        (["--compare-key", "boards"], "'boards' holds U8 values, expected activations of dtype"),
        (["--key", "indices"], "'indices' holds I64 values"),
        (["--key", "pooled"], "'pooled' has the shape [6, 32], expected (samples, layers, tokens"),
    ],
)
def test_wrong_keys_are_refused_before_work_starts(words, message, monkeypatch):
    monkeypatch.setattr("actcli.analysis.outliers.count_outliers", None)
    assert message in refused("--input", A, *words)


def test_a_truncated_dump(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(A.read_bytes()[:5000])
    assert "is truncated" in refused("--input", path)


def test_a_path_that_looks_like_markup(tmp_path):
    folder = tmp_path / "run[bold]x[" / "y]"
    folder.mkdir(parents=True)
    path = folder / "a.safetensors"
    path.write_bytes(A.read_bytes())
    result = run("--input", path)
    assert result.exit_code == 0
    assert str(path) in result.stdout


def test_torch_is_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", attn_norm=np.ones((2, 2, 2, 2), np.float32))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from actcli.commands.outliers import OutliersConfig, outliers\n"
        "for path in sys.argv[1:]: outliers(OutliersConfig(input=Path(path), quiet=True))\n"
        "print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = run_python("-c", code, A, tmp_path / "a.npz")
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
