"""Where a model comes from: the string given as `--init`, turned into files on this machine.

    demo://NAME                      built into actcli
    FOLDER | FILE.pt | FILE.safetensors
    hf://ORG/REPO[/SUBFOLDER][@REVISION]   downloaded once by huggingface-hub, then from its cache

What the files hold is decided by looking at them (see the families), never by a flag.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from actcli.builtin import find_builtin, is_builtin
from actcli.errors import ModelError, reason

HF_PREFIX = "hf://"
_HF_PATTERN = re.compile(
    r"hf://(?P<repo>[^/@\s]+/[^/@\s]+)(?:/(?P<subfolder>[^@\s]+?))?/?(?:@(?P<revision>\S+))?$"
)
_WANTED = ("config.json", "model*.safetensors", "model*.safetensors.index.json", "model*.pt")
"""Files of a repository that are fetched: no optimizer states, no other checkpoints."""


@dataclass(frozen=True)
class ModelSource:
    """A place that should hold a model."""

    init: str
    """What the user gave."""

    path: Path
    """The folder or file on this machine."""


def find_source(init: str) -> ModelSource:
    """Return the files that `init` names, downloading them for `hf://`.

    Raises:
        ModelError: nothing is there, or the string is not of a known form.
    """
    if is_builtin(init):
        return ModelSource(init, find_builtin(init, holding="config.json", error=ModelError))
    if init.startswith(HF_PREFIX):
        return ModelSource(init, _download(init))
    path = Path(init).expanduser()
    if not path.exists():
        raise ModelError(
            f"there is no model at {init!r}: give a folder, a .pt or .safetensors file, "
            f"hf://org/repo, or demo://2048"
        )
    return ModelSource(init, path)


def _download(init: str) -> Path:
    match = _HF_PATTERN.match(init)
    if match is None:
        raise ModelError(
            f"{init!r} is not of the form hf://org/repo[/subfolder][@revision]; "
            f"for example hf://openai-community/gpt2"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    subfolder = match["subfolder"]
    try:
        root = snapshot_download(
            match["repo"],
            revision=match["revision"],
            allow_patterns=[f"{subfolder}/{each}" if subfolder else each for each in _WANTED],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"cannot fetch {init}: {reason(error)}") from error
    folder = Path(root, subfolder) if subfolder else Path(root)
    if not folder.exists():
        raise ModelError(f"{init}: the repository has no folder {subfolder!r}")
    return folder
