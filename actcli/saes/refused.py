"""What is known and not evaluated here, or is no dictionary at all: messages by name."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from actcli.errors import ModelError
from actcli.saes.checkpoint import Checkpoint
from actcli.sites import SITES

_ALL_LAYERS = re.compile(r"(W_enc|params_layer)_\d+\.safetensors")
_MODEL = re.compile(
    r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model.*\.bin|model\.safetensors\.index\.json)"
)
_CLT = (
    "{} holds a cross-layer transcoder: it writes to many layers and needs the features of all "
    "layers below, which is not supported; evaluate a per-layer transcoder or an SAE"
)


def refuse_files(names: Iterable[str], where: str) -> None:
    """Refuse a folder by the names in it.

    Raises:
        ModelError: it is of a kind that is known and cannot be evaluated.
    """
    files = {PurePosixPath(name).name for name in names}
    if any(_ALL_LAYERS.fullmatch(name) for name in files):
        raise ModelError(_CLT.format(where))


def refuse_content(checkpoint: Checkpoint) -> None:
    """Refuse a file by what is in it or beside it.

    Raises:
        ModelError: as for `refuse_files`.
    """
    path = checkpoint.path
    layered = checkpoint.config("config.yaml", needed=False).get("model_kind")
    if layered == "cross_layer_transcoder" or "clt" in path.parent.parts[-2:]:
        raise ModelError(_CLT.format(path))
    if checkpoint.has("log_jumprelu_threshold", "encoder.weight"):
        raise ModelError(
            f"{path} is of the newer format of OpenMOSS (Llama Scope R1), which does not store the "
            f"scale of its inputs in a way that is certain; put that scale into the weights and "
            f"give them with --format raw"
        )


def refuse_other(checkpoint: Checkpoint) -> None:
    """Refuse a file of no known format, if it is clear what it is instead.

    Raises:
        ModelError: it is a model, or a dump.
    """
    path, config = checkpoint.path, checkpoint.config("config.json", needed=False)
    if _MODEL.fullmatch(path.name) and ("model_type" in config or "architectures" in config):
        raise ModelError(
            f"{path.parent} holds a model ({config.get('model_type')}), not a dictionary; a model "
            f"is given with --init"
        )
    if dumped := sorted({site.name for site in SITES} & set(checkpoint.content)):
        raise ModelError(
            f"{path} holds activations ({', '.join(dumped[:3])}), not a dictionary; a dump is "
            f"given with --from-dump"
        )


def nothing_there(names: Iterable[str], where: str) -> str:
    """What to say of a folder without any dictionary."""
    files = sorted({PurePosixPath(name).name for name in names})
    if any(_MODEL.fullmatch(name) for name in files):
        return f"{where} holds a model, not a dictionary; a model is given with --init"
    shown = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "")
    return (
        f"there is no dictionary in {where}: expected a file of weights (.pt, .npz, "
        f".safetensors); found {shown or 'no files'}"
    )
