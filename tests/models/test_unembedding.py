"""The unembedding of every model against its own logits, and against float64."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actcli.errors import ModelError
from actcli.models import load_model, unembedding
from actcli.models.adapter import LoadedFiles
from actcli.models.source import ModelSource
from actcli.models.transformer import HuggingFaceTransformer
from tests.models.architectures import DECODERS, ENCODERS, VOCAB
from tests.models.reading import read, run_model, tokens_for

LENS_GOLDEN = Path(__file__).parents[1] / "data" / "logit-lens"
GOLDEN_NAMES = ("llama", "gpt_neox", "qwen3", "gpt2", "gemma2", "olmo2")
TRANSFORMS = {"gemma2": ("softcap", 3.0), "cohere": ("scale", 0.25), "granite": ("scale", 0.125)}


def lens(unembedding, stream_RH):
    out_RV = torch.empty(len(stream_RH), unembedding.vocab_size)
    with torch.inference_mode():
        unembedding.logits_into(unembedding.normed(stream_RH), out_RV)
    return out_RV


def wrapped(net):
    return HuggingFaceTransformer(net, LoadedFiles(ModelSource("made up", Path()), None))


def last_stream(adapter, tokens):
    acts = read(adapter, tokens, ["layer_outputs"])["layer_outputs"]
    return acts[adapter.n_layers - 1].flatten(0, 1).float()


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_the_last_layers_lens_is_the_models_logits(adapter_of, name):
    adapter, tokens = adapter_of(name), tokens_for()
    expected = run_model(adapter.net, tokens).logits.flatten(0, 1)
    found = lens(adapter.unembedding, last_stream(adapter, tokens))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    described = adapter.unembedding.describe()
    assert described["method"].startswith("formula" if name in DECODERS else "replay")
    if name in DECODERS:
        transform = described["transform"], described["transform_value"]
        assert transform == TRANSFORMS.get(name, ("identity", 1.0))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_streams_and_lens(name):
    """Every layer's lens, from a program that calls no norm or head of these models."""
    adapter = load_model(str(LENS_GOLDEN / name))
    expected = np.load(LENS_GOLDEN / name / "expected.npz")
    tokens = torch.from_numpy(expected["input_ids"]).long()
    acts = read(adapter, tokens, ["embeddings", "layer_outputs"])
    streams = torch.stack([acts["embeddings"], *acts["layer_outputs"].values()])
    np.testing.assert_allclose(streams, expected["resid"], rtol=1e-5, atol=1e-5)
    found = lens(adapter.unembedding, torch.from_numpy(expected["resid"]).flatten(0, 2))
    shaped = found.view(*expected["lens_logits"].shape)
    np.testing.assert_allclose(shaped, expected["lens_logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "cohere", "opt_350m", "phi"])
def test_half_precision_weights_are_computed_with_in_float32(adapter_of, name, dtype, monkeypatch):
    net = copy.deepcopy(adapter_of(name).net).to(dtype)
    adapter = wrapped(net)
    monkeypatch.setattr(unembedding, "_BLOCK_BYTES", 4 * 48 * 7)  # blocks of the vocabulary
    stream = torch.randn(5, 48, generator=torch.Generator().manual_seed(3)) * 4
    expected = slow_lens(
        name, {k: v.double() for k, v in net.state_dict().items()}, stream.double()
    )
    found = lens(adapter.unembedding, stream).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def slow_lens(name, p, x):
    """Final norm, head and transform, written out for each architecture."""
    centred = x - x.mean(-1, keepdim=True)
    layer = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    if name == "gpt2":
        z = layer * p["transformer.ln_f.weight"] + p["transformer.ln_f.bias"]
        return z @ p["transformer.wte.weight"].T
    if name == "gemma2":
        z = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1 + p["model.norm.weight"])
        return 3 * (z @ p["model.embed_tokens.weight"].T / 3).tanh()
    if name == "cohere":
        return 0.25 * (layer * p["model.norm.weight"] @ p["model.embed_tokens.weight"].T)
    if name == "opt_350m":
        z = x @ p["model.decoder.project_out.weight"].T
        return z @ p["model.decoder.embed_tokens.weight"].T
    z = layer * p["model.final_layernorm.weight"] + p["model.final_layernorm.bias"]
    return z @ p["lm_head.weight"].T + p["lm_head.bias"]


class Largest(TorchDispatchMode):
    """Notes the most elements of any float32 tensor that is made, views of weights left out."""

    def __init__(self, *, but):
        super().__init__()
        self.numel = 0
        self._but = {each.untyped_storage().data_ptr() for each in but}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            is_new = isinstance(each, torch.Tensor) and (
                each.untyped_storage().data_ptr() not in self._but
            )
            self.numel = max(self.numel, each.numel() if is_new else 0)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_never_held_twice(adapter_of, dtype, monkeypatch):
    adapter = wrapped(copy.deepcopy(adapter_of("llama").net).to(dtype))
    monkeypatch.setattr(unembedding, "_BLOCK_BYTES", 4 * 48 * 10)
    stream, out_RV = torch.randn(3, 48), torch.empty(3, VOCAB)
    with torch.inference_mode(), Largest(but=adapter.net.parameters()) as seen:
        adapter.unembedding.logits_into(adapter.unembedding.normed(stream), out_RV)
    assert 3 * 48 <= seen.numel <= 10 * 48


class TwoLayerHead(nn.Module):
    """A head that is no linear map."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 32), nn.Linear(32, VOCAB)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tail_without_formula_is_replayed(adapter_of, dtype):
    net = copy.deepcopy(adapter_of("llama").net)
    torch.manual_seed(0)
    net.lm_head = TwoLayerHead()
    adapter = wrapped(net.to(dtype))
    assert adapter.unembedding.describe()["method"] == "replay of the model's own tail"
    assert (adapter.unembedding.d_model, adapter.unembedding.vocab_size) == (48, VOCAB)
    stream = torch.randn(40, 48)
    with torch.inference_mode():
        expected = net.lm_head(net.model.norm(stream.to(dtype))).float()
    torch.testing.assert_close(lens(adapter.unembedding, stream), expected)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt_350m"])
def test_replay_is_the_formula(adapter_of, name, monkeypatch):
    formula = adapter_of(name).unembedding  # other tests have this adapter too: made unpatched
    assert formula.describe()["method"].startswith("formula")
    monkeypatch.setattr("actcli.models.tail._formula", lambda *_args: None)
    replay = wrapped(adapter_of(name).net).unembedding
    assert replay.describe()["method"].startswith("replay")
    stream = torch.randn(11, 48)
    torch.testing.assert_close(lens(replay, stream), lens(formula, stream), rtol=1e-4, atol=1e-4)


class Streams(nn.Module):
    """A block whose residual stream is two vectors per token."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, **options):
        one, two = x.unbind(2) if x.ndim == 4 else (x, 2 * x)
        return torch.stack([self.block(one, **options), two], dim=2)


class SummedNorm(nn.Module):
    """Adds the streams up before the norm."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.sum(2))


def test_many_streams_have_no_lens(adapter_of):
    net = copy.deepcopy(adapter_of("llama").net)
    for number, block in enumerate(net.model.layers):
        net.model.layers[number] = Streams(block)
    net.model.norm = SummedNorm(net.model.norm)
    adapter = wrapped(net)
    with pytest.raises(ModelError, match=r"has no logit lens: .*more than one vector per token"):
        _ = adapter.unembedding


def test_a_model_without_head_has_no_lens(adapter_of):
    adapter = wrapped(copy.deepcopy(adapter_of("llama").net.model))
    with pytest.raises(ModelError, match="no head that gives logits for every token"):
        _ = adapter.unembedding
    assert adapter.layer_points("layer_outputs", 1).module == "layers.1"


@pytest.mark.parametrize(
    ("function", "kind", "value"),
    [
        (lambda z: z, "identity", 1.0),
        (lambda z: 0.0625 * z, "scale", 0.0625),
        (lambda z: z / 13, "scale", 1 / 13),
        (lambda z: 30 * torch.tanh(z / 30), "softcap", 30.0),
        (lambda z: 50.0 * torch.tanh(z / 50), "softcap", 50.0),
    ],
)
def test_transforms_are_told_apart(function, kind, value):
    before = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 40
    found = unembedding.find_transform(before, function(before), [13.0, 30.0])
    assert found.kind == kind
    assert found.value == pytest.approx(value, rel=1e-4)
    torch.testing.assert_close(found.apply_(before.clone()), function(before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [torch.relu, lambda z: z + 5, lambda z: z.clamp(-3, 3)])
def test_other_transforms_are_refused(function):
    before = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 40
    assert unembedding.find_transform(before, function(before)) is None
