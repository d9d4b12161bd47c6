"""`dump` as users run it: golden files of the existing program, every format, every bad input."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file

from actcli.commands.dump import DumpConfig, dump
from actcli.errors import (
    CaptureError,
    CheckFailed,
    DeviceError,
    DumpError,
    ModelError,
    SamplesError,
    UsageError,
)
from actcli.models import load_model
from tests.golden import DATA, DUMPS, MODELS
from tests.processes import ROOT, run_python

SEED_OUTPUTS = (
    "attn_norm",
    "final_hidden",
    "head_logits",
    "head_probs",
    "layer_outputs",
    "mlp_input",
    "pooled",
    "rmsnorm_gammas",
)
ALL_OF_A_SINK_MODEL = (*SEED_OUTPUTS, "attn_sinks")


def golden_run(model, outputs, **options):
    return {
        "init": str(MODELS / model),
        "dataset": str(DATA / "steps_single"),
        "outputs": outputs,
        "device": "cpu",
        "quiet": True,
    } | options


GOLDEN_RUNS = {
    "a_ev_mha_fp32": golden_run("a_ev_mha", SEED_OUTPUTS, n_samples=6, batch_size=4, seed=42),
    "b_ev_gqa_fp32": golden_run("b_ev_gqa", SEED_OUTPUTS, n_samples=6, batch_size=4, seed=42),
    "d_sink_gqa_fp32": golden_run(
        "d_sink_gqa", ALL_OF_A_SINK_MODEL, n_samples=6, batch_size=4, seed=42
    ),
    "b_defaults": golden_run("b_ev_gqa", ("final_hidden",), n_samples=6),
    "b_defaults_sharded": golden_run(
        "b_ev_gqa", ("final_hidden",), n_samples=6, dataset=str(DATA / "steps_sharded")
    ),
    "b_indices": golden_run("b_ev_gqa", ("final_hidden",), indices=DATA / "indices_ok.npy"),
    "b_legacy": golden_run(
        "b_ev_gqa",
        ("final_hidden",),
        indices=DATA / "indices_ok.npy",
        dataset=str(DATA / "steps_legacy_nomask"),
    ),
    "b_oversample": golden_run("b_ev_gqa", ("pooled",), n_samples=200),
    "e_starved_gammas": golden_run("e_starved", ("rmsnorm_gammas",), n_samples=1),
}
FORMAT_RUN = golden_run(
    "d_sink_gqa",
    ALL_OF_A_SINK_MODEL,
    n_samples=2,
    batch_size=1,
    seed=7,
    dataset=str(DATA / "steps_sharded"),
)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def assert_same_tensors(found, golden, *, except_dtype_of=()):
    assert set(found) == set(golden)
    for key, expected in golden.items():
        assert found[key].shape == expected.shape, key
        if key not in except_dtype_of:
            assert found[key].dtype == expected.dtype, key
        if expected.is_floating_point():
            atol = TOLERANCE[expected.dtype]
            torch.testing.assert_close(
                found[key].double(), expected.double(), rtol=atol, atol=atol, msg=key
            )
        else:
            assert torch.equal(found[key], expected), key


def read_metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_golden_dumps(name, tmp_path):
    path = tmp_path / "a.safetensors"
    dump(DumpConfig(output=path, **GOLDEN_RUNS[name]))
    golden = DUMPS / f"{name}.safetensors"
    assert_same_tensors(load_file(path), load_file(golden))
    found, expected = read_metadata(path), read_metadata(golden)
    assert found.pop("checkpoint") == GOLDEN_RUNS[name]["init"]
    del expected["checkpoint"]
    manifest = json.loads(found.pop("manifest"))
    assert found == expected
    assert manifest["model"]["family"] == "2048 encoder"


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_golden_formats(suffix, dtype, tmp_path):
    path = tmp_path / f"a{suffix}"
    if (suffix, dtype) == (".npz", "bf16"):
        with pytest.raises(ValidationError, match="cannot hold bf16"):
            DumpConfig(output=path, dtype=dtype, **FORMAT_RUN)
        return
    dump(DumpConfig(output=path, dtype=dtype, **FORMAT_RUN))
    found, metadata = read_any(path)
    golden, expected = read_any(DUMPS / f"d_{dtype}{suffix}")
    # the existing program casts the sinks in .npz alone; ours stay float32 everywhere
    assert_same_tensors(found, golden, except_dtype_of=("attn_sinks",))
    assert {**metadata, "checkpoint": "", "manifest": ""} == {
        **expected,
        "checkpoint": "",
        "manifest": "",
    }


def read_any(path):
    if path.suffix == ".safetensors":
        return load_file(path), read_metadata(path)
    if path.suffix == ".pt":
        tensors = torch.load(path, weights_only=True)
        return tensors, tensors.pop("metadata")
    with np.load(path) as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file if key != "metadata"}
        return tensors, json.loads(file["metadata"].item())


def small(tmp_path, **options):
    return DumpConfig(
        **{
            "init": str(MODELS / "b_ev_gqa"),
            "dataset": str(DATA / "steps_single"),
            "n_samples": 5,
            "batch_size": 2,
            "device": "cpu",
            "quiet": True,
            "output": tmp_path / "a.safetensors",
        }
        | options
    )


def test_layers_are_stored_in_ascending_order_and_named_in_the_manifest(tmp_path):
    dump(small(tmp_path, outputs=("attn_norm",)))
    whole = load_file(tmp_path / "a.safetensors")["attn_norm"]
    dump(small(tmp_path, outputs="attn_norm", layers="-1,0", positions="2,0", force=True))
    some = load_file(tmp_path / "a.safetensors")["attn_norm"]
    assert torch.equal(some, whole[:, [0, 3]][:, :, [2, 0]])
    manifest = json.loads(read_metadata(tmp_path / "a.safetensors")["manifest"])
    assert (manifest["layers"], manifest["positions"]) == ([0, 3], [2, 0])


def test_the_manifest_says_what_made_the_dump(tmp_path):
    dump(small(tmp_path, outputs="pooled,attn_weights", verify=3))
    manifest = json.loads(read_metadata(tmp_path / "a.safetensors")["manifest"])
    digest = hashlib.sha256()
    for name, each in sorted(load_file(MODELS / "b_ev_gqa" / "model.safetensors").items()):
        digest.update(f"{name} {list(each.shape)} torch.float32".encode() + each.numpy().tobytes())
    assert manifest["model"]["weights_sha256"] == digest.hexdigest()
    assert manifest["model"]["file"] == "model.safetensors"
    assert manifest["config"]["n_samples"] == 5
    assert manifest["data"]["rows"] == 160
    assert manifest["device"] == "cpu"
    assert manifest["non_finite"] == {}
    assert manifest["verification"]["n_samples"] == 3
    assert manifest["verification"]["agrees"]
    assert manifest["verification"]["max_abs_difference"].keys() == {"pooled", "attn_weights"}


def test_as_many_samples_as_there_are_can_be_verified(tmp_path):
    dump(small(tmp_path, n_samples=3000, batch_size=1000, outputs="pooled", verify=3000))
    manifest = json.loads(read_metadata(tmp_path / "a.safetensors")["manifest"])
    assert manifest["verification"]["n_samples"] == 3000


def test_the_same_weights_in_another_format_have_the_same_fingerprint(tmp_path):
    state = load_file(MODELS / "b_ev_gqa" / "model.safetensors")
    (tmp_path / "m").mkdir()
    shutil.copy(MODELS / "b_ev_gqa" / "config.json", tmp_path / "m")
    torch.save({"model": {"_orig_mod." + k: v for k, v in state.items()}}, tmp_path / "m/model.pt")
    found = {
        load_model(str(m)).fingerprint()["weights_sha256"]
        for m in (tmp_path / "m", MODELS / "b_ev_gqa")
    }
    assert len(found) == 1


def test_a_verification_that_fails_ends_with_status_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("actcli.capture.verify.TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(CheckFailed, match="differs from the plain model"):
        dump(small(tmp_path, verify=1))
    assert (tmp_path / "a.safetensors").exists()
    assert "DOES NOT AGREE" in capsys.readouterr().out


def test_dry_run_needs_no_weights_and_tells_the_truth(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes((MODELS / "b_ev_gqa" / "config.json").read_bytes())
    options = {"outputs": "attn_norm,attn_weights,rmsnorm_gammas,k", "dtype": "bf16"}
    config = small(tmp_path, init=str(tmp_path / "m"), dry_run=True, json_output=True, **options)
    dump(config)
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "a.safetensors").exists()
    dump(small(tmp_path, **options))
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  no dict
    written = {key: (each.get_dtype(), each.get_shape()) for key, each in slices.items()}
    assert {t["key"]: (t["dtype"], t["shape"]) for t in plan["tensors"]} == written
    assert plan["file_bytes"] == sum(t["n_bytes"] for t in plan["tensors"])
    assert 0 <= (tmp_path / "a.safetensors").stat().st_size - plan["file_bytes"] < 1 << 16
    assert plan["peak_memory_bytes"] > 1 << 26
    assert plan["layers"] == [0, 1, 2, 3]


def test_dry_run_does_not_look_at_damaged_weights(tmp_path):
    (tmp_path / "m").mkdir()
    shutil.copy(MODELS / "b_ev_gqa" / "config.json", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"junk")
    dump(small(tmp_path, init=str(tmp_path / "m"), dry_run=True))


def test_no_write_runs_the_model_and_leaves_nothing(tmp_path, capsys):
    dump(small(tmp_path, write=False))
    assert "Skipped writing outputs (--no-write)." in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_report(tmp_path, capsys):
    dump(small(tmp_path, json_output=True))
    report = json.loads(capsys.readouterr().out)
    assert (report["n_samples"], report["n_batches"]) == (5, 3)
    assert report["file_bytes"] == (tmp_path / "a.safetensors").stat().st_size
    assert report["tokens_per_s"] == pytest.approx(16 * report["samples_per_s"])


def test_overflow_in_fp16_is_said(tmp_path, capsys):
    state = load_file(MODELS / "b_ev_gqa" / "model.safetensors")
    state["blocks.1.attn_norm.weight"] *= 1e6
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_bytes((MODELS / "b_ev_gqa" / "config.json").read_bytes())
    torch.save({"model": state}, folder / "model.pt")
    dump(small(tmp_path, init=str(folder), outputs="attn_norm", dtype="fp16"))
    assert "stored values are NaN or infinite" in capsys.readouterr().err
    stored = load_file(tmp_path / "a.safetensors")["attn_norm"]
    manifest = json.loads(read_metadata(tmp_path / "a.safetensors")["manifest"])
    assert manifest["non_finite"]["attn_norm"] == int((~stored.isfinite()).sum()) > 0


def test_sampling_with_replacement_is_said(tmp_path, capsys):
    dump(small(tmp_path, n_samples=161))
    assert "161 samples were asked for" in capsys.readouterr().err


def test_options_without_effect_are_said(tmp_path, capsys):
    dump(small(tmp_path, outputs="pooled", layers="0", positions="1"))
    said = capsys.readouterr().err
    assert "--layers has no effect" in said
    assert "--positions has no effect" in said
    dump(small(tmp_path, outputs="q", layers="0", positions="1", force=True))
    assert "no effect" not in capsys.readouterr().err


BAD_INPUT = {
    "layer out of range": ({"layers": "4", "outputs": "attn_norm"}, UsageError, "layer 4"),
    "layer before the start": ({"layers": "-5"}, UsageError, "layer -5"),
    "position out of range": ({"positions": "16"}, UsageError, "position 16"),
    "site the model lacks": ({"outputs": "attn_sinks"}, CaptureError, "has no attn_sinks"),
    "positions of a module": (
        {"outputs": "module:blocks.0.mlp", "positions": "0"},
        UsageError,
        "no known token axis",
    ),
    "nothing to verify": (
        {"outputs": "rmsnorm_gammas", "verify": 1},
        UsageError,
        "nothing to verify",
    ),
    "module it lacks": ({"outputs": "module:blocks.9"}, CaptureError, "has no module"),
    "index out of range": ({"indices": DATA / "indices_oob.npy"}, SamplesError, "entry 1 is 160"),
    "float indices": ({"indices": DATA / "indices_float.npy"}, SamplesError, "float64"),
    "no data": ({"dataset": "nowhere"}, SamplesError, "does not exist"),
    "empty data": ({"dataset": str(DATA / "steps_empty")}, SamplesError, "no rows"),
    "no board": ({"dataset": str(DATA / "steps_selfplay_v1")}, SamplesError, "'board'"),
    "no model": ({"init": "nowhere"}, ModelError, "there is no model"),
    "no such device": ({"device": "gpu"}, DeviceError, "expected auto, cpu, cuda"),
}


@pytest.mark.parametrize(("options", "kind", "says"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_and_touches_nothing(options, kind, says, tmp_path):
    precious = tmp_path / "a.safetensors"
    precious.write_bytes(b"precious")
    with pytest.raises(kind, match=says):
        dump(small(tmp_path, force=True, **options))
    assert precious.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [precious]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_that_is_not_there(tmp_path):
    with pytest.raises(DeviceError, match="use --device auto or cpu"):
        dump(small(tmp_path, device="cuda"))


def test_an_existing_file_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    with pytest.raises(DumpError, match="--force"):
        dump(small(tmp_path, init="nowhere"))


def test_a_board_beyond_the_vocabulary_is_refused(tmp_path):
    state = load_file(MODELS / "b_ev_gqa" / "model.safetensors")
    config = json.loads((MODELS / "b_ev_gqa" / "config.json").read_text())
    state["tok_emb.weight"] = state["tok_emb.weight"][:16].clone()
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"input_vocab_size": 16}))
    torch.save({"model": state}, folder / "model.pt")
    with pytest.raises(CaptureError, match="token 16"):
        dump(small(tmp_path, init=str(folder), n_samples=160))


BAD_OPTIONS = {
    "unknown output": ({"outputs": "attn_nrom"}, "did you mean 'attn_norm'"),
    "no output": ({"outputs": ","}, "no outputs were asked for"),
    "batch size 0": ({"batch_size": 0}, "greater than 0"),
    "no samples": ({"n_samples": 0}, "greater than 0"),
    "negative seed": ({"seed": -1}, "greater than or equal to 0"),
    "unknown suffix": ({"output": "a.h5"}, r"\.safetensors, \.pt, \.npz"),
    "verify without a file": ({"verify": 1, "write": False}, "--no-write"),
}


@pytest.mark.parametrize(("options", "says"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_refused(options, says, tmp_path):
    with pytest.raises(ValidationError, match=says):
        small(tmp_path, **options)


def test_from_the_shell(tmp_path):
    """No traceback, the right status, and the answer alone on standard output."""
    words = ["-m", "actcli", "dump", "-n", "3", "-o", tmp_path / "a.npz", "--device", "cpu"]
    model = ["--init", MODELS / "b_ev_gqa", "--dataset", DATA / "steps_single"]
    done = run_python(*words, *model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Wrote" in done.stdout
    again = run_python(*words, *model)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
    wrong = run_python(*words, "--outputs", "attn_nrom")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'attn_norm'" in wrong.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_dump_that_is_ended_leaves_what_was_there(number, status, tmp_path):
    precious = tmp_path / "a.safetensors"
    precious.write_bytes(b"precious")
    words = ["dump", "-n", "200000", "--batch-size", "64", "--force", "-o", str(precious)]
    with subprocess.Popen(
        [sys.executable, "-m", "actcli", *words], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while not list(tmp_path.glob("*.partial")):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(timeout=60) == status
    assert precious.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [precious]
