"""Gemma Scope: `params.npz` (1, for Gemma 2) and `params.safetensors` (2, for Gemma 3).

    W_enc (I, D), b_enc (D,), W_dec (D, O), b_dec (O,), threshold (D,)     2: w_enc, w_dec
    affine_skip_connection (I, O)                                          2, some transcoders

JumpReLU; b_dec is not taken off the input. The files of 1 do not say where they read: that is in
the name of the repository. Its transcoders read the MLP's input before the gain of the norm, those
of 2 with it; both write what the MLP adds to the residual stream, after the norm behind it. Source:
Lieberum et al. 2024 (arXiv:2408.05147), and the cards of the repositories.
"""

import re
from pathlib import Path

from torch import Tensor

from actcli.errors import ModelError
from actcli.saes.activations import Threshold
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.places import place_of
from actcli.saes.weights import Weights

FORMAT = "gemma_scope"
FILES = ("params.npz", "params.safetensors")
_CONFIG = "config.json"
_SIDES = {
    "res": ("layer_outputs", None),
    "mlp": ("mlp_out", None),
    "att": (None, None),
    "transcoders": ("mlp_input_normed", "mlp_out"),
}
"""By the end of the name of a repository of 1: what is read, what is written."""

_KINDS = {
    "transcoder": ("mlp_input", "mlp_out"),
    "resid_post": ("layer_outputs", None),
    "mlp_out": ("mlp_out", None),
    "attn_out": (None, None),
}
"""By the folder of 2, where there is no configuration."""

_REPOSITORY = re.compile(r"gemma-scope-(?!2-)[^/]*-(res|mlp|att|transcoders)(?:/|$)")
_MODEL = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-")
_KIND = re.compile(r"/(transcoder|resid_post|mlp_out|attn_out)[^/]*/")
_LAYER = re.compile(r"layer_(\d+)")
_L0 = re.compile(r"average_l0_(\d+)")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.name in FILES or checkpoint.has("w_enc", "w_dec", "threshold")


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or a cross-layer transcoder.
    """
    del options
    weights = Weights(checkpoint)
    W_enc, W_dec = ("w_enc", "w_dec") if weights.has("w_enc") else ("W_enc", "W_dec")
    W_enc_ID = weights.take(W_enc, None, None)
    d_in, n_features = W_enc_ID.shape
    _refuse_layers(checkpoint, W_dec)
    W_dec_DO = weights.take(W_dec, n_features, None)
    d_out = W_dec_DO.shape[1]
    return Dictionary(
        origin=_origin(checkpoint, dtype=weights.dtype(W_enc)),
        W_enc_ID=W_enc_ID,
        b_enc_D=weights.take("b_enc", n_features),
        W_dec_DO=W_dec_DO,
        b_dec_O=weights.take("b_dec", d_out),
        activation=Threshold(weights.threshold("threshold", n_features)),
        W_skip_IO=weights.maybe("affine_skip_connection", d_in, d_out),
    )


def average_l0s(folder: Path, *, layer: int) -> list[tuple[int, Path]]:
    """Return the dictionaries of a layer of Gemma Scope 1 in a folder, by their rising mean L0.

    Args:
        folder: of the repository, of the layer, or of a width.
        layer: the layer; folders that do not say theirs are taken.
    """
    found = []
    for path in folder.rglob(FILES[0]):
        l0, said = _L0.fullmatch(path.parent.name), _LAYER.findall(path.as_posix())
        if l0 is not None and (not said or int(said[-1]) == layer):
            found.append((int(l0[1]), path.parent))
    return sorted(found)


def _refuse_layers(checkpoint: Checkpoint, W_dec: str) -> None:
    found = checkpoint.content.get(W_dec)
    if isinstance(found, Tensor) and found.ndim == 3:
        raise ModelError(
            f"{checkpoint.path} is a cross-layer transcoder: it writes to {found.shape[1]} layers "
            f"and needs the features of all layers below, which is not supported; evaluate a "
            f"per-layer transcoder or an SAE"
        )


def _origin(checkpoint: Checkpoint, *, dtype: str) -> Origin:
    config = checkpoint.config(_CONFIG, needed=False)
    reads, writes, is_transcoder = _places(checkpoint, config)
    named = [part for part in checkpoint.folder.parts if re.match(r"(layer|width|average)_", part)]
    return Origin(
        name="/".join(named) or checkpoint.folder.name,
        path=checkpoint.path,
        format=FORMAT,
        architecture="jumprelu",
        dtype=dtype,
        reads=reads,
        writes=writes,
        is_transcoder=is_transcoder,
        model=config.get("model_name") or _model(checkpoint),
    )


def _model(checkpoint: Checkpoint) -> str | None:
    """The model that the name of a repository of 1 stands for."""
    found = _MODEL.search(checkpoint.path.absolute().as_posix())
    if found is None:
        return None
    return f"google/gemma-2-{found[1]}" + ("-it" if found[2] == "it" else "")


def _places(
    checkpoint: Checkpoint, config: dict[str, object]
) -> tuple[Place | None, Place | None, bool | None]:
    """What it reads and writes, and whether it is a transcoder: None each where nothing tells."""
    path = checkpoint.path.absolute().as_posix()
    layers = _LAYER.findall(path)
    layer = int(layers[-1]) if layers else None
    if hook := config.get("hf_hook_point_in"):
        out = config.get("hf_hook_point_out")
        writes = place_of(str(out)) if out and out != hook else None
        return place_of(str(hook), is_input=writes is not None), writes, writes is not None
    kind = _REPOSITORY.search(path)
    sites = _SIDES[kind[1]] if kind else None
    if sites is None and checkpoint.name == FILES[1] and (kind := _KIND.search(path)):
        sites = _KINDS[kind[1]]
    if kind is None or sites is None:
        return (None if layer is None else Place(f"layer_{layer}", None, layer)), None, None
    hook = f"{kind[1]}/layer_{layer}"
    reads = Place(hook, "embeddings") if "/embedding/" in path else Place(hook, sites[0], layer)
    writes = None if sites[1] is None else Place(hook, sites[1], layer)
    return reads, writes, writes is not None
