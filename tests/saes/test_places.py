"""What libraries call the places, as sites."""

import pytest

from actcli.saes.places import place_of
from actcli.sites import find_site


@pytest.mark.parametrize(
    ("hook", "site", "layer"),
    [
        ("blocks.3.hook_resid_post", "layer_outputs", 3),
        ("blocks.3.hook_resid_pre", "layer_outputs", 2),
        ("blocks.0.hook_resid_pre", "embeddings", None),
        ("blocks.3.hook_resid_mid", "resid_mid", 3),
        ("blocks.3.hook_mlp_in", "mlp_input", 3),
        ("blocks.3.mlp.hook_in", "mlp_input", 3),
        ("blocks.3.ln2.hook_normalized", "mlp_input_normed", 3),
        ("blocks.3.hook_mlp_out", "mlp_out", 3),
        ("blocks.3.hook_attn_out", "attn_out", 3),
        ("blocks.3.attn.hook_z", None, 3),
        ("model.layers.12", "layer_outputs", 12),
        ("model.layers.12.output", "layer_outputs", 12),
        ("model.layers.12.mlp", "mlp_out", 12),
        ("model.layers.12.pre_feedforward_layernorm.output", "mlp_input", 12),
        ("model.layers.12.post_feedforward_layernorm.output", "mlp_out", 12),
        ("model.layers.12.self_attn", "attn_out", 12),
        ("model.layers.12.self_attn.o_proj.input", None, 12),
        ("model.language_model.layers.12", "layer_outputs", 12),
        ("transformer.h.4", "layer_outputs", 4),
        ("gpt_neox.layers.5.mlp", "mlp_out", 5),
        ("layers.8", "layer_outputs", 8),
        ("embed_tokens", "embeddings", None),
        ("resid_post_layer_8", "layer_outputs", 8),
        ("resid_pre_layer_8", "layer_outputs", 7),
        ("attention_out_layer_8", "attn_out", 8),
        ("mlp_out_layer_8", "mlp_out", 8),
        ("something_else", None, None),
    ],
)
def test_names(hook, site, layer):
    place = place_of(hook)
    assert (place.hook, place.site, place.layer) == (hook, site, layer)
    assert site is None or find_site(site).name == site


@pytest.mark.parametrize(
    ("hook", "layer", "site", "found"),
    [
        ("mlp_in", 8, "mlp_input", 8),
        ("mlp_out", 8, "mlp_out", 8),
        ("resid_pre", 8, "layer_outputs", 7),
        ("resid_pre", 0, "embeddings", None),
        ("resid_pre", None, None, None),
        ("resid_post", 8, "layer_outputs", 8),
        ("hook_mlp_out", 8, "mlp_out", 8),
    ],
)
def test_names_without_a_layer(hook, layer, site, found):
    place = place_of(hook, layer=layer)
    assert (place.site, place.layer) == (site, found)


def test_what_goes_into_a_module():
    assert place_of("layers.8.mlp", is_input=True).site == "mlp_input"
    assert place_of("layers.8.mlp").site == "mlp_out"
    assert place_of("layers.8", is_input=True).site == "layer_outputs"
