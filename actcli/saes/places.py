"""What libraries call the places in a model that a dictionary reads and writes, as our sites.

TransformerLens: `blocks.8.hook_resid_post`; Hugging Face: `model.layers.8.mlp`;
dictionary_learning: `resid_post_layer_8`; Matryoshka runs: `mlp_in` with a layer. What has no site
of ours (the heads' outputs before they are mixed) keeps its name and layer.
"""

import re

from actcli.saes.dictionary import Place

_TRANSFORMER_LENS = {
    "hook_resid_post": "layer_outputs",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "mlp_input",
    "mlp.hook_in": "mlp_input",
    "ln2.hook_out": "mlp_input",
    "ln2.hook_normalized": "mlp_input_normed",
    "ln1.hook_out": "attn_norm",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_out": "mlp_out",
    "hook_attn_out": "attn_out",
}
_HUGGING_FACE = {
    "": "layer_outputs",
    "output": "layer_outputs",
    "mlp": "mlp_out",
    "mlp.output": "mlp_out",
    "mlp.input": "mlp_input",
    "pre_feedforward_layernorm": "mlp_input",
    "pre_feedforward_layernorm.output": "mlp_input",
    "post_feedforward_layernorm": "mlp_out",
    "post_feedforward_layernorm.output": "mlp_out",
    "self_attn": "attn_out",
    "self_attn.output": "attn_out",
    "attn": "attn_out",
    "attention": "attn_out",
    "input": "resid_pre",
}
_SHORT = {
    "resid_post": "layer_outputs",
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "mlp_in": "mlp_input",
    "mlp_out": "mlp_out",
    "mlp": "mlp_out",
    "attn_out": "attn_out",
    "attention_out": "attn_out",
}
_WHOLE = {"embed_tokens": "embeddings", "model.embed_tokens": "embeddings"}
_BLOCKS = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYERS = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)(?:\.(.+))?")
_NAMED = re.compile(r"(.+?)(?:_layer_?(\d+))?")


def place_of(hook: str, *, layer: int | None = None, is_input: bool = False) -> Place:
    """Return the place that a library calls by that name.

    Args:
        hook: the name.
        layer: the layer, where the name does not say.
        is_input: whether a name of a module means what goes into it (what a transcoder reads).
    """
    if hook in _WHOLE:
        return Place(hook, _WHOLE[hook])
    if found := _BLOCKS.fullmatch(hook):
        return _placed(hook, _TRANSFORMER_LENS.get(found[2]), int(found[1]))
    if found := _LAYERS.fullmatch(hook):
        rest = found[2] or ""
        site = "mlp_input" if is_input and rest == "mlp" else _HUGGING_FACE.get(rest)
        return _placed(hook, site, int(found[1]))
    found = _NAMED.fullmatch(hook)
    name, number = (found[1], found[2]) if found else (hook, None)
    site = _SHORT.get(name, _TRANSFORMER_LENS.get(name))
    return _placed(hook, site, layer if number is None else int(number))


def _placed(hook: str, site: str | None, layer: int | None) -> Place:
    """Put the stream before a block where we have it: after the block before."""
    if site != "resid_pre":
        return Place(hook, site, layer)
    if layer is None:
        return Place(hook)
    return Place(hook, "layer_outputs", layer - 1) if layer else Place(hook, "embeddings")
