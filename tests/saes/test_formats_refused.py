"""What cannot be opened, and what is said of it."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actcli.errors import UsageError
from tests.saes.cases import GOLDEN, random
from tests.saes.refusals import D, I, refused, saelens, state


def test_nothing_there(tmp_path):
    refused(tmp_path / "none", "there is no dictionary at .*none': give a folder")
    refused(tmp_path, "there is no dictionary in .*; found no files")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "expected a file of weights .*; found config.json")
    refused(tmp_path / "config.json", "is no file of weights that can be read here")


def test_unknown_contents(tmp_path):
    save_file({"a": random(3), "b": random(3)}, tmp_path / "x.safetensors")
    refused(tmp_path, "is of no known format; it holds a, b; known are: saelens, .*--format raw")


def test_unknown_format_name():
    refused(
        GOLDEN["saelens_standard"], "no format 'sealens'; did you mean 'saelens'",
        UsageError, format="sealens",
    )  # fmt: skip


def test_a_forced_format_that_it_is_not():
    refused(
        GOLDEN["saelens_standard"], "lacks the tensor 'pre_bias'|lacks the tensor", format="openai"
    )


@pytest.mark.parametrize(
    ("file", "config"),
    [("sae_weights.safetensors", "cfg.json"), ("sae.safetensors", "cfg.json")],
)
def test_missing_configuration(tmp_path, file, config):
    save_file(state(), tmp_path / file)
    refused(tmp_path, f"lacks its configuration: expected {config} beside it")


@pytest.mark.parametrize("file", ["checkpoint.pt", "ae.pt"])
def test_missing_configuration_of_a_pt_file(tmp_path, file):
    torch.save(state(), tmp_path / file)
    refused(tmp_path, "lacks its configuration: expected config.json beside it")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_configuration(tmp_path, text):
    folder = saelens(tmp_path)
    (folder / "cfg.json").write_text(text)
    refused(folder, "cannot read the configuration|holds a list; expected named fields")


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt"])
def test_damaged_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    refused(tmp_path / name, f"cannot read the weights in .*{name}")


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt"])
def test_empty_files_and_pointers_to_files(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, f"{name} is empty: copy or download it again")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(tmp_path / name, f"{name} is a pointer of Git LFS, not the weights")


@pytest.mark.parametrize("name", ["a.npz", "a.pt"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_half_a_file_of_torch_or_numpy(tmp_path, name, share):
    path = tmp_path / name
    if name == "a.pt":
        torch.save(state(), path)
    else:
        np.savez(path, **{key: value.numpy() for key, value in state().items()})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, f"{name} is truncated, its end is missing: copy or download it again")


def test_truncated_weights(tmp_path):
    folder = saelens(tmp_path)
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    refused(folder, "cannot read the weights")


class Settings:
    """A configuration object, as transcoder_circuits stores it."""


def test_a_pickle_that_needs_code(tmp_path):
    torch.save({"cfg": Settings(), "state_dict": state()}, tmp_path / "sae.pt")
    refused(
        tmp_path,
        r"an object of the class \S*Settings, .*no code from a checkpoint is run; .*convert",
    )


def test_a_pickle_of_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "sae.pt")
    refused(tmp_path, "holds a list; expected tensors by name")


def test_arrays_of_objects(tmp_path):
    arrays = {key: value.numpy() for key, value in state(threshold=random(D)).items()}
    arrays["W_enc"] = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "params.npz", **arrays)
    refused(tmp_path, "cannot read 'W_enc' in .*params.npz")


class Trap:
    """What makes a folder when it is loaded as a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["params.npz", "sae.pt"])
def test_no_code_is_run(tmp_path, name):
    mark, trap = tmp_path / "mark", Trap(tmp_path / "mark")
    if name == "params.npz":
        np.savez(tmp_path / name, W_enc=np.array([trap], dtype=object), W_dec=np.zeros((2, 2)))
    else:
        torch.save({**state(), "cfg": trap}, tmp_path / name)
    refused(tmp_path / name, "cannot read 'W_enc'|no code from a checkpoint is run")
    assert not mark.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["W_enc", "W_dec", "b_dec"])
def test_values_that_are_not_finite(tmp_path, key, bad):
    w = state()
    w[key].view(-1)[3] = bad
    refused(saelens(tmp_path, w), f"{key} in .* holds NaN or infinite values")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_dtypes_without_support(tmp_path, dtype):
    w = state(W_enc=(random(I, D)).to(dtype))
    name = str(dtype).removeprefix("torch.")
    refused(saelens(tmp_path, w), f"W_enc in .* is of dtype {name}; supported are float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W_enc": random(I)}, r"W_enc in .* has the shape \(6,\); expected \(any, any\)"),
        ({"W_dec": random(D + 1, I)}, r"W_dec in .* has the shape \(11, 6\); expected \(10, any\)"),
        ({"b_enc": random(D + 1)}, r"b_enc in .* has the shape \(11,\); expected \(10,\)"),
        ({"b_dec": random(I + 1)}, r"b_dec in .* has the shape \(7,\); expected \(6,\)"),
        ({"W_dec": random(D, 7), "b_dec": random(7)}, "takes b_dec off its input, but b_dec has"),
        ({"W_enc": random(I, 0)}, r"W_enc in .* is empty: its shape is \(6, 0\)"),
        ({"b_enc": None}, "lacks the tensor 'b_enc'; did you mean"),
        ({"scaling_factor": 2 + random(D)}, "scaling_factor that is not all ones"),
    ],
)
def test_shapes_and_missing_tensors(tmp_path, changes, message):
    refused(saelens(tmp_path, state(**changes)), message)


def test_thresholds_of_another_length(tmp_path):
    folder = saelens(tmp_path, state(threshold=random(D + 1)), architecture="jumprelu")
    refused(folder, r"threshold in .* has the shape \(11,\); expected \(10,\)")


def test_cross_layer_transcoders(tmp_path):
    for name in ("W_enc_0", "W_dec_0", "W_enc_1", "W_dec_1"):
        save_file({name: random(D, I)}, tmp_path / f"{name}.safetensors")
    refused(tmp_path, "holds a cross-layer transcoder: .* not supported")


def test_cross_layer_transcoders_of_gemma_scope_2(tmp_path):
    w = {
        "w_enc": random(I, D),
        "w_dec": random(D, 3, I),
        "b_enc": random(D),
        "threshold": random(D),
    }
    save_file(w, tmp_path / "params.safetensors")
    refused(tmp_path, "is a cross-layer transcoder: it writes to 3 layers")
    (tmp_path / "clt").mkdir()
    (tmp_path / "params.safetensors").rename(tmp_path / "clt" / "params_layer_0.safetensors")
    refused(tmp_path, "holds a cross-layer transcoder")


def test_cross_layer_transcoder_by_its_configuration(tmp_path):
    save_file(state(), tmp_path / "layer_0.safetensors")
    (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    refused(tmp_path, "holds a cross-layer transcoder")


def test_newer_openmoss(tmp_path):
    w = {"encoder.weight": random(D, I), "log_jumprelu_threshold": random(D)}
    save_file(w, tmp_path / "sae_weights.safetensors")
    refused(tmp_path, "newer format of OpenMOSS .*--format raw")


def test_models_and_dumps(tmp_path):
    save_file({"lm_head.weight": random(D, I)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path, r"holds a model \(llama\), not a dictionary; .* --init")
    refused("demo://facts", "holds a model")
    dump = tmp_path / "activations.safetensors"
    save_file({"layer_outputs": random(1, 2, 3, I), "mlp_out": random(1, 2, 3, I)}, dump)
    refused(dump, r"holds activations \(layer_outputs, mlp_out\), .* --from-dump")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "pytorch_model.bin.index.json").write_text("{}")
    (shards / "model.safetensors.index.json").write_text("{}")
    refused(shards, "holds a model, not a dictionary")


def test_builtin_names():
    refused("demo://nothing", "nothing of the kind is built in under 'demo://nothing'")
