"""Files of factors: written and read back, files of others, and what is refused."""

import hashlib
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from actcli.decompositions import load_target, open_decomposition, target_of
from actcli.decompositions.factors import sides_of
from actcli.decompositions.factors_file import write_factors
from actcli.errors import ModelError, UsageError
from actcli.models import load_model
from actcli.models.qk import qk_layers
from tests.decompositions.cases import RUNS, opened

Q1 = "model.layers.1.self_attn.q_proj"
K1 = "model.layers.1.self_attn.k_proj"


def same(ours, theirs):
    for name in ("V_HC", "U_CO", "mean_ci_C", "sign_C", "firing_density_C"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name
    assert ours.ids_C == theirs.ids_C


@pytest.mark.parametrize("run", ["gqa_noisy", "mha_noisy"])
def test_what_is_written_is_read_back(tmp_path, run):
    adapter, decomposition, layers = opened(run)
    path = tmp_path / "factors.safetensors"
    write_factors(path, decomposition, layers=[layers[0], layers[1]], adapter=adapter)
    back = open_decomposition(f"file:{path}", adapter)
    assert back.layers() == (0, 1)
    assert back.name == "file:factors.safetensors"
    for layer in (0, 1):
        for side in "qk":
            same(back.factors(layers[layer], side), decomposition.factors(layers[layer], side))
    assert decomposition.factors(layers[1], "q").mean_ci_C is None or run == "mha_noisy"
    with pytest.raises(UsageError, match="neither Q nor K of layer 2; its layers are 0, 1"):
        sides_of(back, layers[2])
    assert target_of(f"file:{path}") == f"spd:{RUNS / run}"
    again = load_target(f"file:{path}")
    assert torch.equal(again.net.get_submodule(Q1).weight, adapter.net.get_submodule(Q1).weight)


def test_the_metadata(tmp_path):
    adapter, decomposition, layers = opened("gqa_noisy")
    path = tmp_path / "factors.safetensors"
    write_factors(path, decomposition, layers=[layers[1]], adapter=adapter)
    with safe_open(path, framework="pt") as file:
        said, keys = file.metadata(), set(file.keys())
    assert {key: said[key] for key in ("format", "version", "layout", "acts")} == {
        "format": "actcli.factors",
        "version": "1",
        "layout": "x@V@U",
        "acts": "linear",
    }
    assert json.loads(said["modules"]) == [K1, Q1]
    target = json.loads(said["target"])
    assert target["model_type"] == "arcee"
    values = adapter.net.get_submodule(K1).weight.detach().numpy().tobytes()
    assert target["sha256"][K1] == hashlib.sha256(values).hexdigest()
    assert {f"{K1}.V", f"{K1}.U", f"{K1}.ids"} <= keys


def test_each_side_of_a_fused_projection(tmp_path):
    config = transformers.GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=3, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    adapter = load_model(str(tmp_path / "gpt2"))
    layers = qk_layers(adapter, [0, 1])
    decomposition = open_decomposition("svd:4", adapter)
    path = tmp_path / "factors.safetensors"
    write_factors(path, decomposition, layers=list(layers.values()), adapter=adapter)
    back = open_decomposition(f"file:{path}", adapter)
    assert back.layers() == (0, 1)
    for side in "qk":
        same(back.factors(layers[1], side), decomposition.factors(layers[1], side))
    whole = "transformer.h.0.attn.c_attn"
    V, U = torch.randn(24, 5), torch.randn(5, 72)
    save_file({f"{whole}.V": V, f"{whole}.U": U}, tmp_path / "whole.safetensors")
    fused = open_decomposition(f"file:{tmp_path / 'whole.safetensors'}", adapter)
    assert torch.equal(fused.factors(layers[0], "q").U_CO, U[:, :24])
    assert torch.equal(fused.factors(layers[0], "k").U_CO, U[:, 24:48])


def saved(folder, tensors, **metadata):
    path = folder / "some.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata or None)
    return f"file:{path}"


def test_a_file_of_somebody_else_either_way_round(tmp_path):
    adapter, _run, layers = opened("gqa_noisy")
    V, U = torch.randn(48, 5, dtype=torch.float16), torch.randn(5, 16, dtype=torch.float16)
    for tensors in ({"V": V, "U": U}, {"V": V.T, "U": U.T}):
        spec = saved(tmp_path, {f"{K1}.{name}": value for name, value in tensors.items()})
        decomposition = open_decomposition(spec, adapter)
        assert decomposition.layers() == (1,)
        q, k = sides_of(decomposition, layers[1])
        assert q is None
        assert torch.equal(k.V_HC, V.float())
        assert torch.equal(k.U_CO, U.float())
        assert decomposition.ci_modules(layers[1], "k") == ()
        assert decomposition.causal_importance({}, layers[1], "k") is None
        assert target_of(spec) is None


def test_square_factors_need_a_layout(tmp_path):
    adapter, _run, layers = opened("gqa_noisy")
    V, U = torch.randn(48, 48), torch.randn(48, 48)
    spec = saved(tmp_path, {f"{Q1}.V": V, f"{Q1}.U": U})
    with pytest.raises(UsageError, match=r"are square, .* --layout x@V@U or --layout U@V@x"):
        open_decomposition(spec, adapter).factors(layers[1], "q")
    straight = open_decomposition(spec, adapter, layout="x@V@U").factors(layers[1], "q")
    turned = open_decomposition(spec, adapter, layout="U@V@x").factors(layers[1], "q")
    assert torch.equal(straight.V_HC, V)
    assert torch.equal(turned.V_HC, V.T)
    assert torch.equal(turned.U_CO, U.T)
    said = {"format": "actcli.factors", "version": "1", "layout": "U@V@x"}
    spec = saved(tmp_path, {f"{Q1}.V": V, f"{Q1}.U": U}, **said)
    assert torch.equal(open_decomposition(spec, adapter).factors(layers[1], "q").V_HC, V.T)


def test_only_the_layers_asked_for_are_read(tmp_path):
    adapter, decomposition, layers = opened("gqa_noisy")
    path = tmp_path / "factors.safetensors"
    write_factors(path, decomposition, layers=[layers[0], layers[1]], adapter=adapter)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors[f"{Q1}.V"][3, 7] = float("inf")
    damaged = open_decomposition(saved(tmp_path, tensors), adapter)
    same(damaged.factors(layers[0], "q"), decomposition.factors(layers[0], "q"))
    with pytest.raises(ModelError, match=rf"V of {Q1} in .* in 1 of 56 components \(7\)"):
        damaged.factors(layers[1], "q")


def test_refuses_other_weights(tmp_path):
    adapter, decomposition, layers = opened("mha_noisy")
    path = tmp_path / "factors.safetensors"
    write_factors(path, decomposition, layers=[layers[1]], adapter=adapter)
    other, _run, other_layers = opened("mha_exact")
    assert torch.equal(other_layers[1].q.weight_OH, layers[1].q.weight_OH)
    biased, _run, biased_layers = opened("bias_noisy")
    with pytest.raises(ModelError, match=r"of another model: .* other weights of .*q_proj"):
        open_decomposition(f"file:{path}", biased).factors(biased_layers[1], "q")
    assert open_decomposition(f"file:{path}", other).factors(other_layers[1], "q") is not None


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"weight": (2, 2)}, {}, ModelError, r"none of its 1 keys ends in .V or .U"),
        ({f"{Q1}.V": (48, 2)}, {}, ModelError, r"has .*q_proj.V without .*q_proj.U; it needs both"),
        (
            {"h.1.attn.q_proj.V": (48, 2), "h.1.attn.q_proj.U": (2, 48)},
            {},
            ModelError,
            r"factors of h.1.attn.q_proj, and ArceeForCausalLM has no such module; did you mean",
        ),
        (
            {f"{Q1}.V": (48, 2), f"{Q1}.U": (3, 48)},
            {},
            ModelError,
            r"V is \[48, 2\], U is \[3, 48\], expected V \[48, C\] and U \[C, 48\]",
        ),
        (
            {f"{Q1}.V": (48, 2), f"{Q1}.U": (2, 48), f"{Q1}.sign": (3,)},
            {},
            ModelError,
            r"sign of .* is \[3\], expected \[2\]",
        ),
        (
            {f"{Q1}.V": (48, 2), f"{Q1}.U": (2, 48)},
            {"acts": "external"},
            UsageError,
            "acts=external",
        ),
        (
            {f"{Q1}.V": (48, 2), f"{Q1}.U": (2, 48)},
            {"format": "actcli.factors", "version": "2"},
            ModelError,
            "version 2, .* reads version 1",
        ),
    ],
    ids=["no factors", "lone", "modules", "shapes", "notes", "activations", "version"],
)
def test_refuses(tmp_path, tensors, metadata, error, message):
    adapter, _run, layers = opened("gqa_noisy")
    spec = saved(tmp_path, {key: torch.ones(shape) for key, shape in tensors.items()}, **metadata)
    with pytest.raises(error, match=message):
        open_decomposition(spec, adapter).factors(layers[1], "q")


def test_refuses_what_is_no_such_file(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"nothing of the kind")
    for call in (target_of, lambda spec: open_decomposition(spec, opened("gqa_noisy")[0])):
        with pytest.raises(ModelError, match=r"no readable .safetensors file of factors"):
            call(f"file:{path}")


def test_refuses_to_write_nothing(tmp_path):
    adapter, _run, layers = opened("gqa_noisy")
    V, U = torch.randn(48, 5), torch.randn(5, 16)
    decomposition = open_decomposition(saved(tmp_path, {f"{K1}.V": V, f"{K1}.U": U}), adapter)
    path = tmp_path / "new.safetensors"
    with pytest.raises(ModelError, match="nothing to write"):
        write_factors(path, decomposition, layers=[layers[0]], adapter=adapter)
    with pytest.raises(ModelError, match="cannot write"):
        write_factors(tmp_path / "no" / "f", decomposition, layers=[layers[1]], adapter=adapter)
