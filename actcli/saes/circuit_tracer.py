"""circuit-tracer: one transcoder per layer, `layer_8.safetensors`, beside a `config.yaml`.

    W_enc (D, I), b_enc (D,), W_dec (D, O), b_dec (O,), W_skip (O, I)
    activation_function.threshold (D,)    JumpReLU, without a relu
    k ()                                  the k largest of a token, without a relu

With neither it is a relu. Older files hold W_dec the other way round.
"""

import re

from torch import Tensor

from actcli.saes.activations import Activation, Threshold, TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.places import place_of
from actcli.saes.weights import Weights, check_k

FORMAT = "circuit_tracer"
FILES = ("layer_*.safetensors",)
_NAME = re.compile(r"layer_(\d+)\.safetensors")
_CONFIG = "config.yaml"
_THRESHOLD = "activation_function.threshold"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return _NAME.fullmatch(checkpoint.name) is not None and checkpoint.has("W_enc", "W_dec")


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged.
    """
    del options
    weights = Weights(checkpoint)
    W_enc_DI = weights.take("W_enc", None, None)
    n_features, d_in = W_enc_DI.shape
    W_dec_DO = _decoder(weights, n_features)
    d_out = W_dec_DO.shape[1]
    W_skip_OI = weights.maybe("W_skip", d_out, d_in)
    activation, name = _activation(weights, n_features)
    return Dictionary(
        origin=_origin(checkpoint, name, dtype=weights.dtype("W_enc")),
        W_enc_ID=W_enc_DI.T,
        b_enc_D=weights.take("b_enc", n_features),
        W_dec_DO=W_dec_DO,
        b_dec_O=weights.take("b_dec", d_out),
        activation=activation,
        W_skip_IO=None if W_skip_OI is None else W_skip_OI.T,
    )


def _decoder(weights: Weights, n_features: int) -> Tensor:
    """The decoder, features first; told by its shape, the length of b_dec deciding."""
    found = weights.take("W_dec", None, None)
    d_out = len(weights.take("b_dec", None))
    is_turned = found.shape == (d_out, n_features) and d_out != n_features
    return found.T if is_turned else weights.take("W_dec", n_features, d_out)


def _activation(weights: Weights, n_features: int) -> tuple[Activation, str]:
    if weights.has(_THRESHOLD):
        return Threshold(weights.threshold(_THRESHOLD, n_features), relu=False), "jumprelu"
    config, k = _config(weights.checkpoint), weights.integer("k")
    if k is None and config.get("activation") == "topk":
        k = check_k(config.get("k"), n_features=n_features, where=str(weights.checkpoint.path))
    if k is None:
        return Threshold(), "relu"
    where = str(weights.checkpoint.path)
    return TopK(check_k(k, n_features=n_features, where=where), relu=False), "topk"


def _config(checkpoint: Checkpoint) -> dict[str, object]:
    return checkpoint.config(_CONFIG, needed=False)


def _origin(checkpoint: Checkpoint, architecture: str, *, dtype: str) -> Origin:
    config, found = _config(checkpoint), _NAME.fullmatch(checkpoint.name)
    layer = int(found[1]) if found else None
    model = config.get("model_name")
    return Origin(
        name=f"{checkpoint.folder.name}/layer_{layer}",
        path=checkpoint.path,
        format=FORMAT,
        architecture=architecture,
        dtype=dtype,
        reads=_place(config.get("feature_input_hook"), layer),
        writes=_place(config.get("feature_output_hook"), layer),
        is_transcoder=True,
        model=None if model is None else str(model),
        notes=()
        if config
        else (f"no {_CONFIG} beside it: where it reads and writes is not known",),
    )


def _place(hook: object, layer: int | None) -> Place | None:
    return None if hook is None else place_of(f"blocks.{layer}.{hook}")
