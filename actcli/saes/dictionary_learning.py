"""dictionary_learning and the dictionaries of SAEBench: `ae.pt` beside `config.json`.

    encoder.weight (D, I), encoder.bias (D,), decoder.weight (O, D), or W_enc (I, D), b_enc, W_dec
    bias, b_dec, decoder_bias (O,)    taken off the input too
    decoder.bias, b_dec of JumpReLU   not

`trainer.dict_class` decides: the keys of TopK and BatchTopK are the same. AutoEncoderTopK takes the
k largest of each token although it stores a threshold; BatchTopKSAE uses the threshold, which is -1
until training has set it: then every positive value is active.
"""

from dataclasses import dataclass
from typing import Any

import torch

from actcli.errors import ModelError, nearest
from actcli.saes.activations import Activation, Gated, Threshold, TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin
from actcli.saes.nesting import prefixes_of
from actcli.saes.places import place_of
from actcli.saes.weights import Weights, check_k

FORMAT = "dictionary_learning"
FILES = ("ae.pt",)
_CONFIG = "config.json"
_UNTRAINED = "its threshold is still negative, as before training: every positive value is active"


@dataclass(frozen=True)
class _Class:
    """How a class names its biases."""

    b_dec: str
    is_linear: bool = True
    """Whether its matrices are of linear layers (`encoder.weight`), features first."""

    centres: bool = True
    b_enc: str | None = "encoder.bias"


_CLASSES = {
    "AutoEncoder": _Class("bias"),
    "AutoEncoderNew": _Class("decoder.bias", centres=False),
    "GatedAutoEncoder": _Class("decoder_bias", b_enc=None),
    "AutoEncoderTopK": _Class("b_dec"),
    "BatchTopKSAE": _Class("b_dec"),
    "MatryoshkaBatchTopKSAE": _Class("b_dec", is_linear=False, b_enc="b_enc"),
    "JumpReluAutoEncoder": _Class("b_dec", is_linear=False, centres=False, b_enc="b_enc"),
}


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    if checkpoint.name in FILES:
        return True
    config = checkpoint.config(_CONFIG, needed=False)
    return "dict_class" in _trainer(config)


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or of a class that is not known.
    """
    del options
    trainer = _trainer(checkpoint.config(_CONFIG))
    name, weights = str(trainer.get("dict_class")), Weights(checkpoint)
    if name not in _CLASSES:
        raise ModelError(
            f"{checkpoint.folder} holds a dictionary of the class {name}, which is not supported; "
            f"{nearest(name, _CLASSES)}"
        )
    form = _CLASSES[name]
    W_enc = "encoder.weight" if form.is_linear else "W_enc"
    W_enc_ID = weights.take(W_enc, None, None)
    W_enc_ID = W_enc_ID.T if form.is_linear else W_enc_ID
    d_in, n_features = W_enc_ID.shape
    b_dec_O = weights.take(form.b_dec, d_in)
    activation = _activation(name, trainer, weights, n_features)
    return Dictionary(
        origin=_origin(checkpoint, trainer, dtype=weights.dtype(W_enc), activation=activation),
        W_enc_ID=W_enc_ID,
        b_enc_D=weights.take(form.b_enc, n_features) if form.b_enc else torch.zeros(n_features),
        W_dec_DO=weights.take("decoder.weight", d_in, n_features).T
        if form.is_linear
        else weights.take("W_dec", n_features, d_in),
        b_dec_O=b_dec_O,
        activation=activation,
        centre_I=b_dec_O if form.centres else None,
        prefixes=prefixes_of(
            checkpoint.content.get("group_sizes") if name.startswith("Matryoshka") else None,
            n_features=n_features,
            where=f"group_sizes in {checkpoint.path}",
        ),
    )


def _trainer(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("trainer")
    return found if isinstance(found, dict) else {}


def _activation(
    name: str, trainer: dict[str, Any], weights: Weights, n_features: int
) -> Activation:
    if name == "GatedAutoEncoder":
        gate_D, log_scale_D, magnitude_D = (
            weights.take(key, n_features) for key in ("gate_bias", "r_mag", "mag_bias")
        )
        return Gated(gate_D, log_scale_D, magnitude_D)
    if name == "AutoEncoderTopK":
        k = weights.integer("k") or trainer.get("k")
        return TopK(check_k(k, n_features=n_features, where=str(weights.checkpoint.path)))
    if name.startswith("AutoEncoder"):
        return Threshold()
    return Threshold(weights.threshold("threshold", n_features))


def _origin(
    checkpoint: Checkpoint, trainer: dict[str, Any], *, dtype: str, activation: Activation
) -> Origin:
    layer, hook = trainer.get("layer"), trainer.get("submodule_name")
    return Origin(
        name=checkpoint.folder.name,
        path=checkpoint.path,
        format=FORMAT,
        architecture=str(trainer["dict_class"]),
        dtype=dtype,
        reads=None
        if hook is None
        else place_of(str(hook), layer=layer if isinstance(layer, int) else None),
        is_transcoder=False,
        model=trainer.get("lm_name"),
        notes=(_UNTRAINED,) if _is_untrained(activation) else (),
    )


def _is_untrained(activation: Activation) -> bool:
    if not isinstance(activation, Threshold) or activation.threshold_D is None:
        return False
    return activation.threshold_D.ndim == 0 and bool(activation.threshold_D < 0)
