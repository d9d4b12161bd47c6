"""SAELens: `sae_weights.safetensors` beside `cfg.json`, of version 6 and of those before.

    W_enc (I, D), b_enc (D,), W_dec (D, O), b_dec (O,)
    threshold (D,)            jumprelu; topk_threshold (): batchtopk that was not exported
    b_gate, b_mag, r_mag      gated, in place of b_enc
    W_skip (O, I)             skip transcoders

b_dec is taken off the input of an SAE where `apply_b_dec_to_input` says so, never of a transcoder.
With `rescale_acts_by_decoder_norm` pre-activations are multiplied by the norms of the decoder's
rows, and divided by them again before decoding.
"""

from typing import Any

import torch
from torch import Tensor

from actcli.errors import ModelError, nearest
from actcli.saes.activations import Activation, Gated, Threshold, TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin
from actcli.saes.nesting import prefixes_of
from actcli.saes.normalisations import (
    IDENTITY,
    InputOnly,
    Normalisation,
    Rescaled,
    Standardised,
)
from actcli.saes.places import place_of
from actcli.saes.saelens_config import REFUSED, SaeLensConfig, read_config
from actcli.saes.weights import Weights, check_k

FORMAT = "saelens"
FILES = ("sae_weights.safetensors",)

_KNOWN = (
    "standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "matryoshka_batchtopk",
    "transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
_NORMALISATIONS: dict[str, Normalisation] = {
    "none": IDENTITY,
    "layer_norm": Standardised(),
    "constant_norm_rescale": Rescaled(),
    "expected_average_only_in": IDENTITY,
}
_NOT_STORED = (
    "it was trained on activations of mean norm sqrt(d); the file does not hold that factor, and "
    "SAELens does not apply it either: a large FVU may come from there"
)


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.name in FILES and not checkpoint.has("encoder.weight")


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or of an architecture that cannot be evaluated.
    """
    del options
    config, weights = read_config(checkpoint), Weights(checkpoint)
    _check_architecture(config, checkpoint)
    W_enc_ID = weights.take("W_enc", None, None)
    d_in, n_features = W_enc_ID.shape
    W_dec_DO = _scaled(weights.take("W_dec", n_features, None), config, weights)
    b_dec_O = weights.take("b_dec", W_dec_DO.shape[1])
    W_skip_OI = weights.maybe("W_skip", W_dec_DO.shape[1], d_in)
    is_gated = config.architecture == "gated"
    return Dictionary(
        origin=_origin(checkpoint, config, dtype=weights.dtype("W_enc")),
        W_enc_ID=W_enc_ID,
        b_enc_D=torch.zeros(n_features) if is_gated else weights.take("b_enc", n_features),
        W_dec_DO=W_dec_DO,
        b_dec_O=b_dec_O,
        activation=_activation(config, weights, n_features),
        centre_I=_centre(b_dec_O, d_in, config, checkpoint),
        normalisation=_normalisation(config, checkpoint),
        scale_D=W_dec_DO.norm(dim=-1) if config.rescales else None,
        W_skip_IO=None if W_skip_OI is None else W_skip_OI.T,
        prefixes=prefixes_of(
            config.widths, n_features=n_features, where=f"matryoshka_widths of {checkpoint.folder}"
        ),
    )


def _check_architecture(config: SaeLensConfig, checkpoint: Checkpoint) -> None:
    name = config.architecture
    if name in REFUSED:
        raise ModelError(f"{checkpoint.folder} is a {name} SAE of SAELens: {REFUSED[name]}")
    if name not in _KNOWN:
        raise ModelError(
            f"{checkpoint.folder} is of SAELens' architecture {name!r}, which is not known here; "
            f"{nearest(name, _KNOWN)}"
        )
    if config.activation not in ("relu", "topk"):
        raise ModelError(
            f"{checkpoint.folder} has the activation {config.activation!r}; expected relu or topk"
        )


def _scaled(W_dec_DO: Tensor, config: SaeLensConfig, weights: Weights) -> Tensor:
    """Put a scale per feature, found by finetuning, into the decoder: features stay as they are."""
    names = ("scaling_factor", "finetuning_scaling_factor")
    key = next((name for name in names if weights.has(name)), None)
    if key is None:
        return W_dec_DO
    scale_D = weights.take(key, len(W_dec_DO))
    if bool((scale_D == 1).all()):
        return W_dec_DO
    if not config.is_finetuned:
        raise ModelError(
            f"{weights.checkpoint.path} holds a {key} that is not all ones, and cfg.json does not "
            f"say finetuning_scaling_factor: true; whether it counts is not clear"
        )
    return W_dec_DO * scale_D[:, None]


def _activation(config: SaeLensConfig, weights: Weights, n_features: int) -> Activation:
    name = config.architecture
    if name == "gated":
        gate_D, log_scale_D, magnitude_D = (
            weights.take(key, n_features) for key in ("b_gate", "r_mag", "b_mag")
        )
        return Gated(gate_D, log_scale_D, magnitude_D)
    if name in ("topk", "abstopk"):
        k = check_k(config.k, n_features=n_features, where=str(weights.checkpoint.folder))
        return TopK(k, by="magnitude", relu=False) if name == "abstopk" else TopK(k)
    if name.endswith("batchtopk"):
        is_exported = weights.has("threshold")
        key = "threshold" if is_exported else "topk_threshold"
        return Threshold(weights.threshold(key, n_features))
    if name.startswith("jumprelu"):
        return Threshold(weights.threshold("threshold", n_features))
    return Threshold()


def _centre(
    b_dec_O: Tensor, d_in: int, config: SaeLensConfig, checkpoint: Checkpoint
) -> Tensor | None:
    if config.is_transcoder or not config.centres:
        return None
    if len(b_dec_O) != d_in:
        raise ModelError(
            f"{checkpoint.path} takes b_dec off its input, but b_dec has the width "
            f"{len(b_dec_O)}, the input {d_in}"
        )
    return b_dec_O


def _normalisation(config: SaeLensConfig, checkpoint: Checkpoint) -> Normalisation:
    found = _NORMALISATIONS.get(config.normalisation)
    if found is None:
        raise ModelError(
            f"{checkpoint.folder} says normalize_activations: {config.normalisation!r}; "
            f"{nearest(config.normalisation, _NORMALISATIONS)}"
        )
    if config.is_transcoder and found is not IDENTITY:
        return InputOnly(found)
    return found


def _origin(checkpoint: Checkpoint, config: SaeLensConfig, *, dtype: str) -> Origin:
    is_trained_on_norm = config.normalisation == "expected_average_only_in"
    return Origin(
        name=checkpoint.folder.name,
        path=checkpoint.path,
        format=FORMAT,
        architecture=config.architecture,
        dtype=dtype,
        reads=None
        if config.hook is None
        else place_of(config.hook, layer=config.layer, is_input=config.is_transcoder),
        writes=None
        if config.hook_out is None or not config.is_transcoder
        else place_of(config.hook_out, layer=config.layer),
        is_transcoder=config.is_transcoder,
        model=_text(config.model),
        notes=(_NOT_STORED,) if is_trained_on_norm else (),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
