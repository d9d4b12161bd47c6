"""Runs of the Matryoshka program: `checkpoint.pt` (older: `sae.pt`) beside `config.json`.

    W_enc (I, D), b_enc (D,), W_dec (D, O), b_dec (O,), threshold ()

Training takes the k * batch largest of a batch; afterwards a feature is active above one threshold
that all share. b_dec is not taken off the input. With `input_unit_norm` the input is standardised,
and the output gets the input's own scale and mean.
"""

from typing import Any

from actcli.saes.activations import Threshold
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.nesting import prefixes_of
from actcli.saes.normalisations import IDENTITY, Standardised
from actcli.saes.places import place_of
from actcli.saes.weights import Weights

FORMAT = "matryoshka"
FILES = ("checkpoint.pt", "sae.pt")
_CONFIG = "config.json"
_SIZES = ("prefix_sizes", "group_sizes")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    if not checkpoint.has("W_enc", "W_dec", "b_dec"):
        return False
    return checkpoint.name in FILES or any(
        name in checkpoint.config(_CONFIG, needed=False) for name in _SIZES
    )


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or its configuration is missing.
    """
    del options
    config, weights = checkpoint.config(_CONFIG), Weights(checkpoint)
    W_enc_ID = weights.take("W_enc", None, None)
    n_features = W_enc_ID.shape[1]
    W_dec_DO = weights.take("W_dec", n_features, None)
    has_threshold = weights.has("threshold")
    field = next((name for name in _SIZES if name in config), _SIZES[0])
    return Dictionary(
        origin=_origin(checkpoint, config, dtype=weights.dtype("W_enc"), trained=has_threshold),
        W_enc_ID=W_enc_ID,
        b_enc_D=weights.take("b_enc", n_features),
        W_dec_DO=W_dec_DO,
        b_dec_O=weights.take("b_dec", W_dec_DO.shape[1]),
        activation=Threshold(weights.threshold("threshold", n_features) if has_threshold else None),
        normalisation=Standardised() if _truth(config, "input_unit_norm") else IDENTITY,
        prefixes=prefixes_of(
            config.get(field), n_features=n_features, where=f"{field} in {checkpoint.folder}"
        ),
    )


def _origin(checkpoint: Checkpoint, config: dict[str, Any], *, dtype: str, trained: bool) -> Origin:
    reads = _place(config, "source")
    writes = _place(config, "target")
    return Origin(
        name=checkpoint.folder.name,
        path=checkpoint.path,
        format=FORMAT,
        architecture=str(config.get("sae_type", "batchtopk")),
        dtype=dtype,
        reads=reads or _place(config, ""),
        writes=writes,
        is_transcoder=writes is not None and (reads is None or writes.hook != reads.hook),
        model=config.get("model_name"),
        notes=() if trained else ("the file has no threshold: every positive value is active",),
    )


def _place(config: dict[str, Any], side: str) -> Place | None:
    """The source, the target, or (older runs) the only place."""
    prefix = f"{side}_" if side else ""
    hook = config.get(f"{prefix}hook_point") or config.get(f"{prefix}site")
    layer = config.get(f"{prefix}layer", config.get("layer"))
    return None if hook is None else place_of(str(hook), layer=_whole(layer))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int) or str(value).isdecimal() else None


def _truth(config: dict[str, Any], name: str) -> bool:
    """A field that older versions wrote as a string."""
    return str(config.get(name, False)) == "True"
