"""What a configuration or an option may say, and what is said of other things."""

import json

import pytest
import torch
from safetensors.torch import save_file

from actcli.errors import UsageError
from tests.saes.cases import MORE_GOLDEN, opened, random
from tests.saes.refusals import D, I, refused, saelens, state


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "matching_pursuit"}, "matching_pursuit SAE of SAELens: .*not supported"),
        (
            {"architecture": "temporal"},
            "temporal SAE of SAELens: its features depend on the tokens",
        ),
        ({"architecture": "jumprellu"}, "'jumprellu', .*did you mean 'jumprelu'"),
        ({"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu'; expected relu or topk"),
        ({"architecture": "topk"}, "k is None; expected a whole number from 1 to 10"),
        ({"architecture": "topk", "k": 11}, "k is 11; expected a whole number from 1 to 10"),
        ({"architecture": "topk", "k": True}, "k is True"),
        ({"normalize_activations": "layernorm"}, "'layernorm'; did you mean 'layer_norm'"),
        ({"normalize_activations": 3}, "normalize_activations: 3; expected a word"),
        ({"matryoshka_widths": [3, 9]}, "matryoshka_widths of .* neither rise to the 10 features"),
    ],
)
def test_saelens_configurations(tmp_path, config, message):
    refused(saelens(tmp_path, **config), message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "gelu", "k": 2}, "activation 'gelu'; expected topk or groupmax"),
        ({"activation": "groupmax", "k": 3}, "10 features do not make 3 groups"),
        ({}, "k is None"),
    ],
)
def test_sparsify_configurations(tmp_path, config, message):
    w = {
        "encoder.weight": random(D, I), "encoder.bias": random(D), "W_dec": random(D, I),
        "b_dec": random(I),
    }  # fmt: skip
    save_file(w, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    refused(tmp_path, message)


def test_sparsify_sae_of_two_widths(tmp_path):
    w = {
        "encoder.weight": random(D, I), "encoder.bias": random(D), "W_dec": random(D, 7),
        "b_dec": random(7),
    }  # fmt: skip
    save_file(w, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text('{"k": 2}')
    refused(tmp_path, "reads a width of 6 and writes 7, and cfg.json does not say transcode")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "CrossCoder"}, "of the class CrossCoder, which is not supported"),
        ({}, "of the class None"),
        ({"dict_class": "AutoEncoderTopK"}, "k is None"),
        ({"dict_class": "AutoEncoderNew"}, "lacks the tensor 'decoder.bias'"),
    ],
)
def test_dictionary_learning_classes(tmp_path, trainer, message):
    w = {
        "encoder.weight": random(D, I), "encoder.bias": random(D), "decoder.weight": random(I, D),
        "b_dec": random(I), "k": torch.tensor(2.5),
    }  # fmt: skip
    if "TopK" in str(trainer):
        del w["k"]
    torch.save(w, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    refused(tmp_path, message)


def test_a_k_that_is_no_whole_number(tmp_path):
    w = {
        "encoder.weight": random(D, I), "encoder.bias": random(D), "decoder.weight": random(I, D),
        "b_dec": random(I), "k": torch.tensor(2.5),
    }  # fmt: skip
    torch.save(w, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderTopK"}}')
    refused(tmp_path, "k in .*ae.pt is 2.5; expected a whole number")


@pytest.mark.parametrize(
    ("activation", "after", "message"),
    [
        ("Softplus", None, "'Softplus'; expected ReLU or TopK"),
        ("TopK", "GELU", "'GELU' after its top-k"),
    ],
)
def test_openai_activations(tmp_path, activation, after, message):
    w = {
        "pre_bias": random(I), "latent_bias": random(D), "encoder.weight": random(D, I),
        "decoder.weight": random(I, D), "activation": activation,
        "activation_state_dict": {"k": 2, "postact_fn": after},
    }  # fmt: skip
    torch.save(w, tmp_path / "a.pt")
    refused(tmp_path, message)


@pytest.mark.parametrize("sizes", ["[1, 2", "'abc'", [3, 3], [10, 10], [0, 10, 10], [2.5, 7.5], 10])
def test_prefix_sizes(tmp_path, sizes):
    torch.save(state(), tmp_path / "checkpoint.pt")
    (tmp_path / "config.json").write_text(json.dumps({"prefix_sizes": sizes}))
    refused(tmp_path, "prefix_sizes in ")


def test_qwen_scope_without_k(tmp_path):
    w = {"W_enc": random(D, I), "b_enc": random(D), "W_dec": random(I, D), "b_dec": random(I)}
    torch.save(w, tmp_path / "layer4.sae.pt")
    refused(tmp_path, "give it with --k", UsageError)
    assert opened(tmp_path, k=3).activation.k == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "topk"}, "act_fn: 'topk'; only 'jumprelu'"),
        ({"jump_relu_threshold": None}, "needs jump_relu_threshold"),
        ({"dataset_average_activation_norm": {}}, "dataset_average_activation_norm.in"),
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "is a transcoder of Llama Scope"),
    ],
)
def test_llama_scope_configurations(tmp_path, change, message):
    source = next(MORE_GOLDEN["llama_scope"].iterdir())
    config = json.loads((source / "hyperparams.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    weights = (source / "checkpoints" / "final.safetensors").read_bytes()
    (tmp_path / "checkpoints" / "final.safetensors").write_bytes(weights)
    (tmp_path / "hyperparams.json").write_text(json.dumps({**config, **change}))
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"has no 'W_enc'; say which of its tensors that is: --map W_enc=KEY; it holds: a, b"),
        ({"mapping": {"W_end": "a"}}, "--map has no 'W_end'; did you mean 'W_enc'"),
        ({"mapping": {"W_enc": "aa"}}, "--map W_enc=aa: .* has no 'aa'; did you mean 'a'"),
        ({"mapping": {"W_enc": "a", "W_dec": "b"}}, "give it with --width"),
        (
            {"mapping": {"W_enc": "a", "W_dec": "b"}, "width": I, "activation": "gelu"},
            "no activation 'gelu'",
        ),
        (
            {"mapping": {"W_enc": "a", "W_dec": "b"}, "width": I, "activation": "topk"},
            "--activation topk needs --k",
        ),
        (
            {"mapping": {"W_enc": "a", "W_dec": "b"}, "width": I, "activation": "jumprelu"},
            "needs a threshold: --map threshold=KEY",
        ),
    ],
)
def test_raw_options(tmp_path, options, message):
    save_file({"a": random(I, D), "b": random(D, I)}, tmp_path / "x.safetensors")
    refused(tmp_path, message, UsageError, format="raw", **options)


def test_raw_shapes(tmp_path):
    save_file({"a": random(I, D), "b": random(8, I)}, tmp_path / "x.safetensors")
    names = {"W_enc": "a", "W_dec": "b"}
    refused(
        tmp_path, r"a in .* has the shape \(6, 10\); expected one side of 7", format="raw",
        mapping=names, width=7,
    )  # fmt: skip
    refused(
        tmp_path, r"b in .* has the shape \(8, 6\); expected \(any, 10\)", format="raw",
        mapping=names, width=I,
    )  # fmt: skip
