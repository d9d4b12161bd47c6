"""Dictionaries published as two linear layers in a `.pt` file: Goodfire, DeepSeek-R1.

    encoder_linear.{weight (D, I), bias (D,)}, decoder_linear.{weight (O, D), bias (O,)}   Goodfire
    encoder.{weight, bias}, decoder.{weight, bias}                                      DeepSeek-R1

A relu, no centring. The layer stands in the name of the file: `...-l19.pth`.
"""

import re

from actcli.saes.activations import Threshold
from actcli.saes.checkpoint import PICKLES, Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.weights import Weights

FORMAT = "linear_pt"
FILES: tuple[str, ...] = ()
_LAYER = re.compile(r"(?:^|[-_])l(\d+)(?:[-_.]|$)")
_NAMES = {"Goodfire": ("encoder_linear", "decoder_linear"), "DeepSeek-R1": ("encoder", "decoder")}


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.path.suffix in PICKLES and _names(checkpoint) is not None


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged.
    """
    del options
    encoder, decoder = _names(checkpoint) or _NAMES["Goodfire"]
    weights = Weights(checkpoint)
    W_enc_DI = weights.take(f"{encoder}.weight", None, None)
    n_features = len(W_enc_DI)
    W_dec_OD = weights.take(f"{decoder}.weight", None, n_features)
    layer = _LAYER.search(checkpoint.name)
    return Dictionary(
        origin=Origin(
            name=checkpoint.path.stem,
            path=checkpoint.path,
            format=FORMAT,
            architecture="standard",
            dtype=weights.dtype(f"{encoder}.weight"),
            reads=Place(layer[0].strip("-_."), "layer_outputs", int(layer[1])) if layer else None,
            is_transcoder=False,
        ),
        W_enc_ID=W_enc_DI.T,
        b_enc_D=weights.take(f"{encoder}.bias", n_features),
        W_dec_DO=W_dec_OD.T,
        b_dec_O=weights.take(f"{decoder}.bias", len(W_dec_OD)),
        activation=Threshold(),
    )


def _names(checkpoint: Checkpoint) -> tuple[str, str] | None:
    for pair in _NAMES.values():
        if checkpoint.has(*(f"{each}.{part}" for each in pair for part in ("weight", "bias"))):
            return pair
    return None
