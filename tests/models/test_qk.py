"""Logits rebuilt from weights, norms and turns, against the package transformers' own attention."""

import functools

import pytest
import torch
from numpy.testing import assert_allclose

from actcli.models.adapter import HookPoint
from actcli.models.qk import qk_layer, qk_layers, qk_texts
from actcli.models.qk_capture import Taken
from actcli.models.qk_side import check_linear, factor_of, find_side
from tests.models import qk_models
from tests.models.reading import run_model

TOKENS = torch.tensor([7, 61, 93, 12, 12, 55, 30, 88, 19, 4, 70, 61, 26, 41, 5, 99, 33])
N = len(TOKENS)

HALF, THIRD = 8**-0.5, 12**-0.5
RULES = {
    "llama": (HALF, 4, 1, None),
    "llama3_rope": (HALF, 4, 1, None),
    "yarn": (HALF, 4, 1, None),
    "mistral": (HALF, 4, 1, None),
    "qwen2": (HALF, 4, 1, None),
    "qwen3": (THIRD, 6, 1, None),
    "gemma": (THIRD, 6, 1, None),
    "gemma2": (24**-0.5, 6, 1, 50.0),
    "gemma2_bent": (3**-0.5, 6, 1, 0.5),
    "gemma3": (24**-0.5, 6, 1, None),
    "olmo2": (HALF, 4, 1, None),
    "cohere": (HALF, 4, 2, None),
    "granite": (0.3, 4, 1, None),
    "phi3": (HALF, 4, 1, None),
    "phi": (HALF, 2, 1, None),
    "phi_half": (HALF, 2, 1, None),
    "gpt_neox": (HALF, 1, 1, None),
    "gpt2": (HALF, 0, 0, None),
    "opt": (HALF, 0, 0, None),
    "gptj": (HALF, 2, 2, None),
    "falcon_new": (HALF, 4, 1, None),
    "falcon": (HALF, 4, 1, None),
    "gpt_oss": (THIRD, 6, 1, None),
    "starcoder2": (HALF, 4, 1, None),
    "mixtral": (HALF, 4, 1, None),
    "gpt_neo": (1.0, 0, 0, None),
    "llama4": (HALF, 4, 2, None),
    "bert": (HALF, 0, 0, None),
    "modernbert": (HALF, 4, 1, None),
}
"""Scale; planes; whether a plane is dims (m, m + R): 1, or dims (2m, 2m + 1): 2; soft cap."""

NORMED = {"qwen3", "gemma3", "olmo2"}
EVEN, ODD, ALL = {0, 2}, {1}, {0, 1, 2}
WINDOWS = {"mistral": ALL, "gemma2": EVEN, "gemma2_bent": EVEN, "gpt_oss": EVEN, "gpt_neo": ODD}
"""Layers whose queries see 4 keys (transformers' default patterns)."""


@pytest.fixture(scope="module")
def adapter_for(tmp_path_factory):
    root = tmp_path_factory.mktemp("qk")
    return functools.cache(functools.partial(qk_models.load, root=root))


@pytest.fixture(scope="module")
def texts_of(adapter_for):
    def read(name):
        adapter = adapter_for(name)
        return qk_texts(adapter, TOKENS, range(adapter.n_layers))

    return functools.cache(read)


def projected(text, side):
    """(T, heads, D) in float64 from the weights and the norm's factor alone."""
    layer = text.layer
    part = getattr(layer, side)
    out = text.attn_input_TH.double() @ part.weight_OH.double().T
    if part.bias_O is not None:
        out = out + part.bias_O.double()
    out = out.view(N, part.n_heads, layer.head_width)
    factor = text.q_factor_TAD if side == "q" else text.k_factor_TKD
    return out if factor is None else out * factor.double()


def turned(text, vectors):
    """As complex numbers, token by token; vectors (T, ..., D)."""
    out = vectors.clone()
    if text.planes_R2 is None:
        return out
    for t in range(N):
        for r, (a, b) in enumerate(text.planes_R2.tolist()):
            turn = complex(float(text.cos_TR[t, r]), float(text.sin_TR[t, r]))
            both = torch.complex(vectors[t, ..., a], vectors[t, ..., b]) * turn
            out[t, ..., a], out[t, ..., b] = both.real, both.imag
    return out


def slow_logits(text):
    q, k = (turned(text, projected(text, side)) for side in "qk")
    per_kv = q.shape[1] // k.shape[1]
    heads = [q[:, a] @ k[:, a // per_kv].T for a in range(q.shape[1])]
    return text.layer.scale * torch.stack(heads)


def slow_softmax(text, logits):
    layer = text.layer
    if layer.softcap is not None:
        logits = layer.softcap * (logits / layer.softcap).tanh()
    weights = logits.exp() * text.mask_TS
    total = weights.sum(-1, keepdim=True)
    if layer.sinks_A is not None:
        total = total + layer.sinks_A.double().exp()[:, None, None]
    return weights / total


@pytest.mark.parametrize("name", RULES)
def test_weights_norm_turn_and_scale_give_the_models_attention(adapter_for, texts_of, name):
    net = adapter_for(name).net
    net.config._attn_implementation = "eager"
    theirs = run_model(net, TOKENS[None], output_attentions=True).attentions
    for number, text in texts_of(name).items():
        logits = slow_logits(text)
        assert_allclose(text.logits_ATS, logits, atol=2e-5, rtol=0)
        assert_allclose(slow_softmax(text, logits), theirs[number][0], atol=1e-5, rtol=0)
        assert_allclose(text.attention_ATS, theirs[number][0], atol=1e-6, rtol=0)
        assert_allclose(text.softmax(text.logits_ATS), text.attention_ATS, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", RULES)
def test_rules(texts_of, name):
    scale, n_planes, order, softcap = RULES[name]
    for text in texts_of(name).values():
        layer = text.layer
        assert (layer.scale, layer.softcap) == (pytest.approx(scale, rel=1e-6), softcap)
        assert (layer.sinks_A is not None) == (name == "gpt_oss")
        assert (layer.q.norm is not None) == (name in NORMED) == (text.k_factor_TKD is not None)
        assert layer.kv_of_head_A.tolist() == [a // (6 // layer.k.n_heads) for a in range(6)]
        if n_planes == 0:
            assert text.planes_R2 is None
            continue
        pairs = [(m, m + n_planes) if order == 1 else (2 * m, 2 * m + 1) for m in range(n_planes)]
        assert [tuple(each) for each in text.planes_R2.tolist()] == pairs
        assert text.cos_TR.shape == text.sin_TR.shape == (N, n_planes)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(texts_of, name):
    for number, text in texts_of(name).items():
        seen = 4 if number in WINDOWS[name] else N
        expected = [[max(0, t - seen + 1) <= s <= t for s in range(N)] for t in range(N)]
        assert text.mask_TS.tolist() == expected


def test_each_layer_divides_by_its_number(texts_of, adapter_for):
    found = qk_layers(adapter_for("gpt2_by_layer"), range(3))
    scales = [found[each].scale for each in range(3)]
    assert_allclose(scales, [8**-0.5, 8**-0.5 / 2, 8**-0.5 / 3])


def test_layers_without_rotary_among_those_with(texts_of):
    """Cohere 2 gives its tables to all layers and turns in those with a window alone."""
    found = {each: text.planes_R2 is not None for each, text in texts_of("cohere2").items()}
    assert found == {0: True, 1: False, 2: True}


def test_scaled_tables_hold_the_factor(texts_of):
    """YaRN multiplies queries and keys by 0.1 ln(factor) + 1 (Peng et al. 2023)."""
    text = texts_of("yarn")[1]
    radius = text.cos_TR.square() + text.sin_TR.square()
    expected = (0.1 * torch.tensor(4.0).log() + 1) ** 2
    assert_allclose(radius, expected.expand_as(radius), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gptj", "phi", "gpt2"])
def test_rotated_is_the_turn_of_that_token(texts_of, name):
    text = texts_of(name)[1]
    vectors = torch.randn(N, 3, text.layer.head_width, generator=torch.Generator().manual_seed(3))
    found = text.rotated(vectors, torch.arange(N)[:, None])
    assert_allclose(found, turned(text, vectors), atol=1e-6)
    assert_allclose(text.rotated(vectors[5, 0], torch.tensor(5)), found[5, 0], atol=1e-7)


def parts(text, side, rank):
    """(T, parts, heads, D): half the rank of an SVD, what it misses, the bias; all turned."""
    part = getattr(text.layer, side)
    x, weight = text.attn_input_TH.double(), part.weight_OH.double()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    found = [torch.outer(x @ vh[c], s[c] * u[:, c]) for c in range(rank)]
    found.append(x @ (weight - (u[:, :rank] * s[:rank]) @ vh[:rank]).T)
    bias = torch.zeros(len(weight)) if part.bias_O is None else part.bias_O
    found.append(bias.double().expand(N, -1))
    out = torch.stack(found, 1).view(N, rank + 2, part.n_heads, -1)
    factor = text.q_factor_TAD if side == "q" else text.k_factor_TKD
    return turned(text, out if factor is None else out * factor.double()[:, None])


@pytest.mark.parametrize("name", RULES)
def test_the_parts_of_a_logit_add_up(texts_of, name):
    text = texts_of(name)[1]
    layer = text.layer
    q, k = (parts(text, side, rank=8) for side in "qk")
    k = k[:, :, layer.kv_of_head_A]
    table = layer.scale * torch.einsum("tiad,sjad->atsij", q, k)
    assert_allclose(table.sum((-1, -2)), text.logits_ATS, atol=1e-4, rtol=0)
    assert float(table.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("name", "module", "outputs"),
    [
        ("llama", "model.layers.1.self_attn.k_proj", range(16)),
        ("gpt2", "transformer.h.1.attn.c_attn", range(48, 96)),
        ("phi3", "model.layers.1.self_attn.qkv_proj", range(48, 64)),
        ("qwen3", "model.layers.1.self_attn.k_proj", range(24)),
        ("gemma3", "model.layers.1.self_attn.k_proj", range(24)),
        ("olmo2", "model.layers.1.self_attn.k_proj", range(16)),
        (
            "gpt_neox",
            "gpt_neox.layers.1.attention.query_key_value",
            [24 * head + 8 + d for head in range(6) for d in range(8)],
        ),
    ],
)
def test_which_outputs_are_the_keys(adapter_for, name, module, outputs):
    adapter = adapter_for(name)
    found = qk_layer(adapter, 1).k
    assert (found.module, found.outputs_O.tolist()) == (module, list(outputs))
    weight = adapter.net.get_submodule(module).weight.detach()
    rows = (weight.T if name == "gpt2" else weight)[list(outputs)]
    assert torch.equal(found.weight_OH, rows)


class Fused(torch.nn.Module):
    """Two heads, each query beside its key, and a norm of the queries; rows 0 and 1 are equal."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.both, self.q_norm = torch.nn.Linear(6, 16), torch.nn.RMSNorm(4, eps=1e-3)
        torch.nn.init.normal_(self.q_norm.weight)
        with torch.no_grad():
            self.both.weight[1], self.both.bias[1] = self.both.weight[0], self.both.bias[0]


def test_queries_of_a_fused_projection_behind_a_norm():
    net, x = Fused(), torch.randn(1, 9, 6)
    fused = net.both(x).detach()
    before = fused.view(1, 9, 2, 8)[..., :4]
    taken = Taken(net, {"q": HookPoint("q_norm")}, 9)
    taken.read |= {"both": x, "q_norm": before}
    taken.gave |= {"both": fused, "q_norm": net.q_norm(before).detach()}
    side = find_side(net, taken, "q")
    assert (side.module, side.outputs_O.tolist()) == ("both", [0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.equal(side.weight_OH, net.both.weight.detach()[side.outputs_O])
    factor = factor_of(side, taken, "q")
    assert_allclose(factor * before[0], taken.gave["q_norm"][0], atol=1e-6)
    assert torch.equal(check_linear(side, factor, taken, "q"), x[0])


def test_known_layers_need_no_search(adapter_for):
    adapter = adapter_for("qwen3")
    known = qk_layers(adapter, [2])
    (text,) = qk_texts(adapter, TOKENS[:3], known).values()
    assert text.layer is known[2]
    assert_allclose(
        text.logits_ATS, qk_texts(adapter, TOKENS, [2])[2].logits_ATS[:, :3, :3], atol=1e-5
    )


@pytest.mark.parametrize("n_tokens", [1, 2])
def test_short_texts(adapter_for, n_tokens):
    for name in ("llama", "gptj", "gpt2", "mistral"):
        text = qk_texts(adapter_for(name), TOKENS[:n_tokens], [1])[1]
        assert text.logits_ATS.shape == (6, n_tokens, n_tokens)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2_bent", "gpt_oss", "cohere"])
def test_half_precision_is_computed_in_float32(adapter_for, name):
    text = qk_texts(adapter_for(name, dtype="bf16"), TOKENS, [0, 2])[2]
    layer, full = text.layer, qk_layer(adapter_for(name), 2)
    assert layer.dtype == torch.bfloat16
    assert (layer.scale, layer.softcap) == (pytest.approx(full.scale, rel=1e-6), full.softcap)
    assert text.planes_R2.tolist() == full.rotary.planes_R2.tolist()
    assert {each.dtype for each in (text.logits_ATS, text.attn_input_TH, layer.q.weight_OH)} == {
        torch.float32
    }
    size = float(text.logits_ATS.abs().max())
    assert_allclose(text.logits_ATS, slow_logits(text), atol=0.02 * max(size, 1), rtol=0)
