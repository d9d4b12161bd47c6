"""Queries, keys and values against the weights, split as each architecture defines it."""

import copy
from pathlib import Path

import pytest
import torch
from numpy.testing import assert_allclose

from actcli.models.adapter import LoadedFiles
from actcli.models.source import ModelSource
from actcli.models.transformer import HuggingFaceTransformer
from tests.models.architectures import ALL
from tests.models.reading import read, tokens_for

A = 6
"""Query heads of every model in `architectures`."""

SEPARATE = {
    "llama": ("model.layers.{}.self_attn.{}_proj", 2),
    "mistral": ("model.layers.{}.self_attn.{}_proj", 2),
    "qwen2": ("model.layers.{}.self_attn.{}_proj", 2),
    "gpt_oss": ("model.layers.{}.self_attn.{}_proj", 2),
    "opt": ("model.decoder.layers.{}.self_attn.{}_proj", 6),
    "phi": ("model.layers.{}.self_attn.{}_proj", 6),
    "gptj": ("transformer.h.{}.attn.{}_proj", 6),
    "starcoder2": ("model.layers.{}.self_attn.{}_proj", 2),
}
"""Path of the three projections, and key/value heads."""


def project(net, path, x):
    module = net.get_submodule(path)
    out = x @ module.weight.detach().double().T
    return out if module.bias is None else out + module.bias.detach().double()


def heads(x, count):
    """(B, T, count*D) as a list of (B, T, D)."""
    width = x.shape[-1] // count
    return [x[..., each * width : (each + 1) * width] for each in range(count)]


def check(acts, layer, q, k, v):
    for site, expected in (("q", q), ("k", k), ("v", v)):
        found = acts[site][layer]
        assert found.shape[2] == len(expected), site
        for head, each in enumerate(expected):
            assert_allclose(found[:, :, head], each, atol=2e-5 * float(each.abs().max()), rtol=0)


def read_attention(adapter):
    return read(adapter, tokens_for(), ["attn_norm", "q", "k", "v"])


@pytest.mark.parametrize("name", SEPARATE)
def test_separate_projections(adapter_of, name):
    adapter = adapter_of(name)
    path, n_kv = SEPARATE[name]
    acts = read_attention(adapter)
    assert adapter.n_kv_heads == n_kv
    for layer, x in acts["attn_norm"].items():
        q, k, v = (project(adapter.net, path.format(layer, each), x) for each in "qkv")
        check(acts, layer, heads(q, A), heads(k, n_kv), heads(v, n_kv))


def rms(x, gain, eps=1e-3):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain.detach().double()


@pytest.mark.parametrize(("name", "offset"), [("qwen3", 0.0), ("gemma3", 1.0)])
def test_norms_of_each_head(adapter_of, name, offset):
    adapter = adapter_of(name)
    acts = read_attention(adapter)
    for layer, x in acts["attn_norm"].items():
        attn = adapter.net.model.layers[layer].self_attn
        path = f"model.layers.{layer}.self_attn."
        q, k, v = (project(adapter.net, f"{path}{each}_proj", x) for each in "qkv")
        q = [rms(each, attn.q_norm.weight + offset) for each in heads(q, A)]
        k = [rms(each, attn.k_norm.weight + offset) for each in heads(k, 2)]
        check(acts, layer, q, k, heads(v, 2))


def test_norms_of_all_heads_together(adapter_of):
    """OLMo-2 normalises the whole width before it splits; its attention reads the stream."""
    adapter = adapter_of("olmo2")
    acts = read(adapter, tokens_for(), ["embeddings", "layer_outputs", "q", "k", "v"])
    streams = [acts["embeddings"], *acts["layer_outputs"].values()]
    for layer in range(adapter.n_layers):
        attn = adapter.net.model.layers[layer].self_attn
        path = f"model.layers.{layer}.self_attn."
        q, k, v = (project(adapter.net, f"{path}{each}_proj", streams[layer]) for each in "qkv")
        q, k = rms(q, attn.q_norm.weight), rms(k, attn.k_norm.weight)
        check(acts, layer, heads(q, A), heads(k, 2), heads(v, 2))


def test_gpt2_has_three_blocks_and_turned_weights(adapter_of):
    adapter = adapter_of("gpt2")
    acts = read_attention(adapter)
    for layer, x in acts["attn_norm"].items():
        fused = adapter.net.transformer.h[layer].attn.c_attn
        out = x @ fused.weight.detach().double() + fused.bias.detach().double()
        check(acts, layer, *(heads(out[..., start : start + 48], A) for start in (0, 48, 96)))


@pytest.mark.parametrize(
    ("name", "path", "n_kv"),
    [
        ("phi3", "model.layers.{}.self_attn.qkv_proj", 2),
        ("falcon", "transformer.h.{}.self_attention.query_key_value", 1),
        ("mpt", "transformer.blocks.{}.attn.Wqkv", 6),
        ("modernbert", "model.layers.{}.attn.Wqkv", 6),
    ],
)
def test_all_queries_then_all_keys_then_all_values(adapter_of, name, path, n_kv):
    adapter = adapter_of(name)
    acts = read_attention(adapter)
    assert adapter.n_kv_heads == n_kv
    for layer, x in acts["attn_norm"].items():
        each = heads(project(adapter.net, path.format(layer), x), A + 2 * n_kv)
        check(acts, layer, each[:A], each[A : A + n_kv], each[A + n_kv :])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gpt_neox", "gpt_neox.layers.{}.attention.query_key_value"),
        ("bloom", "transformer.h.{}.self_attention.query_key_value"),
    ],
)
def test_query_key_and_value_head_by_head(adapter_of, name, path):
    adapter = adapter_of(name)
    acts = read_attention(adapter)
    for layer, x in acts["attn_norm"].items():
        each = heads(project(adapter.net, path.format(layer), x), 3 * A)
        check(acts, layer, each[0::3], each[1::3], each[2::3])


def test_falcon_groups_queries_with_their_key_and_value(adapter_of):
    adapter = adapter_of("falcon_new")
    acts = read_attention(adapter)
    assert adapter.n_kv_heads == 2
    for layer, x in acts["attn_norm"].items():
        path = f"transformer.h.{layer}.self_attention.query_key_value"
        each = heads(project(adapter.net, path, x), A + 4)
        check(acts, layer, each[0:3] + each[5:8], [each[3], each[8]], [each[4], each[9]])


OUTPUT = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "gpt_neox_sequential": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "opt_350m": "model.decoder.layers.{}.self_attn.out_proj",
    "phi": "model.layers.{}.self_attn.dense",
    "falcon": "transformer.h.{}.self_attention.dense",
    "falcon_new": "transformer.h.{}.self_attention.dense",
    "bloom": "transformer.h.{}.self_attention.dense",
    "mpt": "transformer.blocks.{}.attn.out_proj",
    "gptj": "transformer.h.{}.attn.out_proj",
    "bert": "bert.encoder.layer.{}.attention.output.dense",
    "roberta": "roberta.encoder.layer.{}.attention.output.dense",
    "modernbert": "model.layers.{}.attn.Wo",
}
"""What reads the heads; all others have model.layers.{}.self_attn.o_proj."""


@pytest.mark.parametrize("name", ALL)
def test_values_mixed_by_the_weights_are_what_is_projected(adapter_of, name):
    adapter = adapter_of(name)
    path = OUTPUT.get(name, "model.layers.{}.self_attn.o_proj")
    given = {}

    def keep(layer):
        return lambda _module, args: given.update({layer: args[0].double()})

    handles = [
        adapter.net.get_submodule(path.format(each)).register_forward_pre_hook(keep(each))
        for each in range(adapter.n_layers)
    ]
    acts = read(adapter, tokens_for(), ["attn_weights", "v"])
    for handle in handles:
        handle.remove()
    for layer, pattern in acts["attn_weights"].items():
        values = acts["v"][layer]
        per_group = A // values.shape[2]
        for head in range(A):
            expected = pattern[:, head] @ values[:, :, head // per_group]
            width = expected.shape[-1]
            found = given[layer].flatten(2)[..., head * width : (head + 1) * width]
            assert_allclose(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


def test_a_split_that_explains_nothing_is_refused(adapter_of):
    """Behind a module that scrambles the projection's columns, no split is what is used."""
    net = copy.deepcopy(adapter_of("phi3").net)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    for block in net.model.layers:
        block.self_attn.qkv_proj = Scrambled(block.self_attn.qkv_proj, order)
    adapter = HuggingFaceTransformer(net, LoadedFiles(ModelSource("scrambled", Path()), None))
    there = [each for each in ("q", "k", "v", "attn_weights") if adapter.layer_points(each, 0)]
    assert there == ["attn_weights"]


class Scrambled(torch.nn.Module):
    """A projection whose outputs are put into another order."""

    def __init__(self, inner, order):
        super().__init__()
        self.inner, self.order = inner, order

    def forward(self, x):
        return self.inner(x)[..., self.order]
