"""Reads the sites of a model through its hook points, with hooks of our own."""

import inspect

import torch
from torch import nn

LAYER_SITES = (
    *("layer_outputs", "attn_norm", "mlp_input", "mlp_input_normed", "resid_mid", "attn_weights"),
    *("attn_out", "mlp_out", "mlp_act", "q", "k", "v"),
)


def tokens_for(rows=2, count=9, seed=0):
    """Ordinary token ids (rows, count)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 100, (rows, count), generator=generator)


def read(adapter, inputs, sites):
    """{site: one float64 tensor per layer, or one for the whole model} of one forward."""
    inputs = inputs if isinstance(inputs, dict) else {"tokens": inputs}
    found, handles = {}, []
    for site in sites:
        if site in LAYER_SITES:
            layers = [each for each in range(adapter.n_layers) if adapter.layer_points(site, each)]
            places = [adapter.layer_points(site, each) for each in layers]
            found[site] = dict.fromkeys(layers)
        else:
            layers, places = [None], [adapter.point(site)]
        for layer, point in zip(layers, places, strict=True):
            handles.append(_hook(adapter.net, point, found, site, layer))
    adapter.prepare(sites)
    try:
        with torch.inference_mode():
            adapter.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _hook(net, point, found, site, layer):
    module = net.get_submodule(point.module)

    def keep(value):
        if isinstance(value, tuple):
            value = value[point.item or 0]
        acts = point.view(value).detach().clone()
        if acts.is_floating_point() and point.dtype is None:
            acts = acts.double()
        if layer is None:
            found[site] = acts
        else:
            assert found[site][layer] is None, "ran twice"
            found[site][layer] = acts

    if point.side == "output":
        return module.register_forward_hook(lambda _module, _args, output: keep(output))
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: keep(args[0] if args else next(iter(kwargs.values()))),
        with_kwargs=True,
    )


def run_model(net: nn.Module, tokens_BT, **options):
    """What the package transformers itself says of a forward."""
    if "use_cache" in inspect.signature(net.forward).parameters:
        options["use_cache"] = False
    with torch.inference_mode():
        return net(input_ids=tokens_BT, **options)
