"""sparsify: `sae.safetensors` beside `cfg.json`, in a folder named for its hookpoint.

    encoder.weight (D, I), encoder.bias (D,), W_dec (D, O), b_dec (O,), W_skip (O, I)

relu, then the k largest of a token, or the largest of each of k groups of neighbours (groupmax).
b_dec is taken off the input of an SAE, not of a transcoder (`transcode`).
"""

from typing import Any

from actcli.errors import ModelError
from actcli.saes.activations import GroupMax, TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.places import place_of
from actcli.saes.weights import Weights, check_k

FORMAT = "sparsify"
FILES = ("sae.safetensors",)
_CONFIG = "cfg.json"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.name in FILES


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or its configuration is missing.
    """
    del options
    config, weights = checkpoint.config(_CONFIG), Weights(checkpoint)
    W_enc_DI = weights.take("encoder.weight", None, None)
    n_features, d_in = W_enc_DI.shape
    W_dec_DO = weights.take("W_dec", n_features, None)
    d_out = W_dec_DO.shape[1]
    b_dec_O = weights.take("b_dec", d_out)
    is_transcoder = bool(config.get("transcode", False))
    if not is_transcoder and d_out != d_in:
        raise ModelError(
            f"{checkpoint.path} reads a width of {d_in} and writes {d_out}, and {_CONFIG} does not "
            f"say transcode: true"
        )
    W_skip_OI = weights.maybe("W_skip", d_out, d_in)
    return Dictionary(
        origin=_origin(checkpoint, config, dtype=weights.dtype("encoder.weight")),
        W_enc_ID=W_enc_DI.T,
        b_enc_D=weights.take("encoder.bias", n_features),
        W_dec_DO=W_dec_DO,
        b_dec_O=b_dec_O,
        activation=_activation(config, n_features, checkpoint),
        centre_I=None if is_transcoder else b_dec_O,
        W_skip_IO=None if W_skip_OI is None else W_skip_OI.T,
    )


def _activation(config: dict[str, Any], n_features: int, checkpoint: Checkpoint) -> TopK | GroupMax:
    name, where = config.get("activation", "topk"), str(checkpoint.folder)
    k = check_k(config.get("k"), n_features=n_features, where=where)
    if name == "topk":
        return TopK(k)
    if name != "groupmax":
        raise ModelError(f"{where} has the activation {name!r}; expected topk or groupmax")
    if n_features % k:
        raise ModelError(f"{where}: {n_features} features do not make {k} groups of equal size")
    return GroupMax(k)


def _origin(checkpoint: Checkpoint, config: dict[str, Any], *, dtype: str) -> Origin:
    hook, is_transcoder = checkpoint.folder.name, bool(config.get("transcode", False))
    place = place_of(hook, is_input=is_transcoder)
    if place.layer is None and place.site is None:
        place = Place(hook)
    run = Checkpoint(checkpoint.folder).config("config.json", needed=False)
    return Origin(
        name=hook,
        path=checkpoint.path,
        format=FORMAT,
        architecture=str(config.get("activation", "topk")),
        dtype=dtype,
        reads=place,
        writes=place_of(hook) if is_transcoder else None,
        is_transcoder=is_transcoder,
        model=run.get("model"),
    )
