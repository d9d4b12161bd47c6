"""Llama Scope (OpenMOSS): `checkpoints/final.safetensors` below `hyperparams.json`.

    encoder.weight (D, I), encoder.bias (D,), decoder.weight (I, D), decoder.bias (I,)

JumpReLU with one threshold. It was trained on activations times s = sqrt(I) / (their mean norm),
which `dataset_average_activation_norm` gives; s is put into the weights: W_enc * s, W_dec / s,
b_dec / s, threshold * s. Source: the reader of SAELens 6.54.
"""

from typing import Any

from actcli.errors import ModelError
from actcli.saes.activations import Threshold
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin
from actcli.saes.places import place_of
from actcli.saes.weights import Weights

FORMAT = "llama_scope"
FILES = ("final.safetensors",)
_CONFIG = "../hyperparams.json"
_EXPECTED = {
    "act_fn": (None, "jumprelu"),
    "norm_activation": (None, "dataset-wise"),
    "apply_decoder_bias_to_pre_encoder": (None, False),
    "use_glu_encoder": (None, False),
}
"""What other values would change the formula, which is not known to us for them."""


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.name in FILES and bool(checkpoint.config(_CONFIG, needed=False))


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or of another architecture than the published ones.
    """
    del options
    config, weights = checkpoint.config(_CONFIG), Weights(checkpoint)
    _check(config, checkpoint)
    W_enc_DI = weights.take("encoder.weight", None, None)
    n_features, d_in = W_enc_DI.shape
    scale = d_in**0.5 / _norm(config, checkpoint)
    hook = config.get("hook_point_in")
    return Dictionary(
        origin=Origin(
            name=checkpoint.folder.parent.name,
            path=checkpoint.path,
            format=FORMAT,
            architecture="jumprelu",
            dtype=weights.dtype("encoder.weight"),
            reads=None if hook is None else place_of(str(hook)),
            is_transcoder=False,
        ),
        W_enc_ID=W_enc_DI.T * scale,
        b_enc_D=weights.take("encoder.bias", n_features),
        W_dec_DO=weights.take("decoder.weight", d_in, n_features).T / scale,
        b_dec_O=weights.take("decoder.bias", d_in) / scale,
        activation=Threshold(
            W_enc_DI.new_tensor(_number(config.get("jump_relu_threshold"), checkpoint) * scale)
        ),
    )


def _check(config: dict[str, Any], checkpoint: Checkpoint) -> None:
    for field, known in _EXPECTED.items():
        if config.get(field) not in known:
            raise ModelError(
                f"{checkpoint.path}: hyperparams.json says {field}: {config[field]!r}; only "
                f"{known[1]!r} is supported for Llama Scope"
            )
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise ModelError(
            f"{checkpoint.path} is a transcoder of Llama Scope, whose output has a scale of its "
            f"own; only its SAEs are supported"
        )


def _norm(config: dict[str, Any], checkpoint: Checkpoint) -> float:
    found = config.get("dataset_average_activation_norm")
    return _number(found.get("in") if isinstance(found, dict) else found, checkpoint)


def _number(value: Any, checkpoint: Checkpoint) -> float:
    if isinstance(value, int | float) and value > 0:
        return float(value)
    raise ModelError(
        f"{checkpoint.path}: hyperparams.json needs jump_relu_threshold and "
        f"dataset_average_activation_norm.in, numbers above 0; found {value!r}"
    )
