"""Every site of every architecture against what the package transformers says, and arithmetic."""

import pytest
import torch
from numpy.testing import assert_allclose

from actcli.errors import CaptureError
from tests.models.architectures import ALL, DECODERS
from tests.models.reading import LAYER_SITES, read, run_model, tokens_for

PARALLEL = {"gpt_neox", "phi", "cohere", "falcon", "falcon_new", "gptj"}
POST_NORM = {"opt_350m", "olmo2", "bert", "roberta"}
LACKS = {
    **{name: {"resid_mid"} for name in PARALLEL},
    **{name: {"attn_norm"} for name in ("opt_350m", "bert", "roberta")},
    "olmo2": {"attn_norm", "mlp_input_normed"},
    "mixtral": {"mlp_act"},
    "gpt_oss": {"mlp_act"},
}
"""Sites that no layer has; all others have all."""

FACTOR = {"granite": 0.22}
SINKS = {"gpt_oss"}


def close(found, expected, limit=2e-5):
    scale = float(expected.abs().max())
    assert_allclose(found.double(), expected.double(), rtol=0, atol=limit * scale)


def stream_before(acts, layer):
    return acts["embeddings"] if layer == 0 else acts["layer_outputs"][layer - 1]


@pytest.mark.parametrize("name", ALL)
def test_streams_are_the_hidden_states_of_transformers(adapter_of, name):
    adapter, tokens = adapter_of(name), tokens_for()
    acts = read(adapter, tokens, ["embeddings", "layer_outputs"])
    adapter.prepare([])
    states = run_model(adapter.net, tokens, output_hidden_states=True).hidden_states
    streams = [acts["embeddings"], *acts["layer_outputs"].values()]
    if name == "opt_350m":
        states = (*states[:-1], streams[-1])  # its last one has been projected
    last_is_raw = adapter.point("final_hidden") is None
    for layer in range(adapter.n_layers + last_is_raw):  # else the last one is normed there
        close(streams[layer], states[layer])


@pytest.mark.parametrize("name", ALL)
def test_attention_weights_are_those_of_transformers(adapter_of, name):
    adapter, tokens = adapter_of(name), tokens_for()
    weights = read(adapter, tokens, ["attn_weights"])["attn_weights"]
    expected = run_model(adapter.net, tokens, output_attentions=True).attentions
    assert len(weights) == len(expected) == adapter.n_layers
    for layer, pattern in weights.items():
        close(pattern, expected[layer])
        sums = pattern.sum(-1)
        if name in SINKS:
            assert (sums < 1 - 1e-3).any()
            assert (sums <= 1 + 1e-6).all()
        else:
            close(sums, torch.ones_like(sums))
    seen_ahead = max(float(each.triu(1).max()) for each in weights.values())
    assert adapter.is_causal == (name in DECODERS) == (seen_ahead == 0)
    adapter.prepare([])


@pytest.mark.parametrize("name", ALL)
def test_what_is_added_explains_the_streams(adapter_of, name):
    adapter = adapter_of(name)
    sites = [each for each in LAYER_SITES if any(each in b.points for b in adapter.blocks)]
    acts = read(adapter, tokens_for(), ["embeddings", *sites])
    for layer in range(adapter.n_layers):
        before, after = stream_before(acts, layer), acts["layer_outputs"][layer]
        attn, mlp = acts["attn_out"][layer], acts["mlp_out"][layer]
        if name in PARALLEL:
            close(before + attn + mlp, after)
            continue
        mid = acts["resid_mid"][layer]
        normed = adapter.layer_points("resid_mid", layer).side == "output"
        if not normed:
            close(before + attn, mid)
            close(mid + mlp, after)
    assert adapter.blocks[0].kind == (
        "parallel" if name in PARALLEL else "post-norm" if name in POST_NORM else "pre-norm"
    )


POST_NORMS_OF_SUMS = {
    "bert": (
        "bert.encoder.layer.{}.attention.output.LayerNorm",
        "bert.encoder.layer.{}.output.LayerNorm",
    ),
    "roberta": (
        "roberta.encoder.layer.{}.attention.output.LayerNorm",
        "roberta.encoder.layer.{}.output.LayerNorm",
    ),
    "opt_350m": (
        "model.decoder.layers.{}.self_attn_layer_norm",
        "model.decoder.layers.{}.final_layer_norm",
    ),
}


@pytest.mark.parametrize("name", POST_NORMS_OF_SUMS)
def test_blocks_that_normalise_the_sum(adapter_of, name):
    adapter = adapter_of(name)
    acts = read(
        adapter, tokens_for(), ["embeddings", "layer_outputs", "resid_mid", "attn_out", "mlp_out"]
    )
    eps = EPS.get(name, 1e-3)
    for layer in range(adapter.n_layers):
        first, second = (
            adapter.net.get_submodule(each.format(layer)) for each in POST_NORMS_OF_SUMS[name]
        )
        total = stream_before(acts, layer) + acts["attn_out"][layer]
        close(acts["resid_mid"][layer], slow_norm(total, first, "layer", eps=eps))
        total = acts["resid_mid"][layer] + acts["mlp_out"][layer]
        close(acts["layer_outputs"][layer], slow_norm(total, second, "layer", eps=eps))


EPS = {"olmo": 1e-5, "falcon_new": 1e-5, "opt_350m": 1e-5}
"""Fixed by the architecture, or the configuration's default; else 1e-3, as `architectures` says."""


def slow_norm(stream, module, kind, *, eps, offset=0.0):
    x = stream.double()
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()
    given = {each: value.detach().double() for each, value in module.named_parameters()}
    return x * (given.get("weight", 1.0) + offset) + given.get("bias", 0.0)


MLP_NORMS = {
    "gpt2": ("transformer.h.{}.ln_2", "layer", 0.0, "resid_mid"),
    "llama": ("model.layers.{}.post_attention_layernorm", "rms", 0.0, "resid_mid"),
    "gemma2": ("model.layers.{}.pre_feedforward_layernorm", "rms", 1.0, "resid_mid"),
    "gemma": ("model.layers.{}.post_attention_layernorm", "rms", 1.0, "resid_mid"),
    "olmo": ("model.layers.{}.post_attention_layernorm", "layer", 0.0, "resid_mid"),
    "mixtral": ("model.layers.{}.post_attention_layernorm", "rms", 0.0, "resid_mid"),
    "phi": ("model.layers.{}.input_layernorm", "layer", 0.0, "before"),
    "cohere": ("model.layers.{}.input_layernorm", "layer", 0.0, "before"),
    "gpt_neox": ("gpt_neox.layers.{}.post_attention_layernorm", "layer", 0.0, "before"),
    "falcon_new": ("transformer.h.{}.ln_mlp", "layer", 0.0, "before"),
}


@pytest.mark.parametrize("name", MLP_NORMS)
def test_mlp_input_is_the_norm_of_the_stream(adapter_of, name):
    adapter = adapter_of(name)
    path, kind, offset, source = MLP_NORMS[name]
    wanted = ["mlp_input", "mlp_input_normed", "layer_outputs", "embeddings"]
    wanted += ["resid_mid"] if source == "resid_mid" else []
    acts = read(adapter, tokens_for(), wanted)
    gammas = adapter.norm_gammas()
    for layer in range(adapter.n_layers):
        module = adapter.net.get_submodule(path.format(layer))
        stream = acts[source][layer] if source == "resid_mid" else stream_before(acts, layer)
        expected = slow_norm(stream, module, kind, eps=EPS.get(name, 1e-3), offset=offset)
        close(acts["mlp_input"][layer], expected)
        gain = 1.0 if name == "olmo" else gammas[path.format(layer)].double()
        shift = dict(module.named_parameters()).get("bias", torch.zeros(1)).detach().double()
        close(acts["mlp_input_normed"][layer] * gain + shift, expected)


def test_attention_reads_the_norm_of_the_stream(adapter_of):
    adapter = adapter_of("gemma2")
    acts = read(adapter, tokens_for(), ["embeddings", "layer_outputs", "attn_norm"])
    for layer in range(adapter.n_layers):
        module = adapter.net.model.layers[layer].input_layernorm
        expected = slow_norm(stream_before(acts, layer), module, "rms", eps=1e-3, offset=1.0)
        close(acts["attn_norm"][layer], expected)


def test_mlp_activations_are_the_gated_product(adapter_of):
    adapter = adapter_of("llama")
    acts = read(adapter, tokens_for(), ["mlp_input", "mlp_act"])
    for layer in range(adapter.n_layers):
        mlp, given = adapter.net.model.layers[layer].mlp, acts["mlp_input"][layer]
        gate, up = (
            given @ each.weight.detach().double().T for each in (mlp.gate_proj, mlp.up_proj)
        )
        expected = gate / (1 + (-gate).exp()) * up
        close(acts["mlp_act"][layer], expected)


@pytest.mark.parametrize("name", ALL)
def test_sites_that_are_not_there_are_refused_by_name(adapter_of, name):
    adapter = adapter_of(name)
    lacks = {
        site for site in LAYER_SITES if adapter.layer_points(site, adapter.n_layers - 1) is None
    }
    assert lacks == LACKS.get(name, set())
    for site in lacks:
        with pytest.raises(
            CaptureError, match=f"has no site {site!r}: .*{type(adapter.net).__name__}"
        ):
            adapter.points(site, range(adapter.n_layers))


@pytest.mark.parametrize(
    ("name", "site", "says"),
    [
        ("phi", "resid_mid", "are parallel, attention and MLP add at once"),
        ("opt_350m", "attn_norm", "use layer_outputs of the layer before, or embeddings"),
        ("olmo2", "mlp_input_normed", "the MLP in Olmo2ForCausalLM reads no norm; use mlp_input"),
        ("mixtral", "mlp_act", "experts have many"),
        ("modernbert", "attn_norm", r"in layers 0; leave them out with --layers"),
        ("bert", "final_hidden", "has no norm after its last block"),
        ("llama", "attn_scores", "use attn_weights"),
        ("llama", "pooled", "LlamaForCausalLM shows nothing of the kind"),
    ],
)
def test_refusals_say_why(adapter_of, name, site, says):
    adapter = adapter_of(name)
    with pytest.raises(CaptureError, match=says):
        adapter.points(site, range(adapter.n_layers))


@pytest.mark.parametrize("name", ALL)
def test_logits_are_the_models(adapter_of, name):
    adapter, tokens = adapter_of(name), tokens_for()
    acts = read(adapter, tokens, ["logits", "logits_top", "logits_top_ids"])
    expected = run_model(adapter.net, tokens).logits
    close(acts["logits"], expected)
    top = expected.sort(dim=-1, descending=True)
    close(acts["logits_top"], top.values[..., :10])
    assert acts["logits_top_ids"].tolist() == top.indices[..., :10].tolist()


@pytest.mark.parametrize("name", ALL)
def test_final_hidden_is_what_the_norm_gives(adapter_of, name):
    adapter, tokens = adapter_of(name), tokens_for()
    if name in ("opt_350m", "bert", "roberta"):
        assert adapter.point("final_hidden") is None
        return
    found = read(adapter, tokens, ["final_hidden"])["final_hidden"]
    close(found, run_model(adapter.net, tokens, output_hidden_states=True).hidden_states[-1])


@pytest.mark.parametrize("name", ALL)
def test_padded_rows_equal_rows_alone(adapter_of, name):
    adapter = adapter_of(name)
    sites = [each for each in LAYER_SITES if any(each in b.points for b in adapter.blocks)]
    sites.append("embeddings")
    tokens, lengths = tokens_for(3, 11, seed=2), [11, 4, 7]
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    padded = read(adapter, {"tokens": tokens * mask, "mask": mask}, sites)
    for row, length in enumerate(lengths):
        alone = read(adapter, tokens[row : row + 1, :length], sites)
        for site in sites:
            pairs = [(padded[site], alone[site])]
            if site != "embeddings":
                pairs = [(padded[site][each], alone[site][each]) for each in alone[site]]
            for together, single in pairs:
                real = (
                    together[row, ..., :length, :length]
                    if site == "attn_weights"
                    else (together[row, :length])
                )
                close(real, single[0])


@pytest.mark.parametrize("name", ALL)
def test_attention_recomputed_from_what_it_reads(adapter_of, name):
    adapter, tokens = adapter_of(name), tokens_for()
    has = [each for each in range(adapter.n_layers) if "attn_norm" in adapter.blocks[each].points]
    assert has or "attn_norm" in LACKS[name]
    acts = read(adapter, tokens, ["attn_norm", "attn_weights"] if has else ["attn_weights"])
    for layer in has:
        found = adapter.attention(layer, acts["attn_norm"][layer].float())
        close(found, acts["attn_weights"][layer])
    adapter.prepare([])
