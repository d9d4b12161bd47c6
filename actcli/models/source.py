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
_WANTED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "model*.pt",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Files of a repository that are fetched: no optimizer states, no other checkpoints, no code."""

_OLDER_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Fetched where a repository has none of the newer ones."""


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, where its family leaves a choice."""

    dtype: str | None = None
    """fp32, fp16 or bf16 to compute in; None for what the file holds."""

    device_map: str | None = None
    """"auto" spreads the layers over all devices (package accelerate)."""

    revision: str | None = None
    """Branch, tag or commit of an hf:// repository."""

    trust_remote_code: bool = False
    """Whether Python code that lies beside the weights may run."""


DEFAULTS = LoadOptions()


@dataclass(frozen=True)
class ModelSource:
    """A place that should hold a model."""

    init: str
    """What the user gave."""

    path: Path
    """The folder or file on this machine."""


def find_source(init: str, options: LoadOptions = DEFAULTS) -> ModelSource:
    """Return the files that `init` names, downloading them for `hf://`.

    Raises:
        ModelError: nothing is there, or the string is not of a known form.
    """
    if is_builtin(init):
        return ModelSource(init, find_builtin(init, holding="config.json", error=ModelError))
    if init.startswith(HF_PREFIX):
        return ModelSource(init, _download(init, options))
    path = Path(init).expanduser()
    if not path.exists():
        raise ModelError(
            f"there is no model at {init!r}: give a folder, a .pt or .safetensors file, "
            f"hf://org/repo, or demo://2048"
        )
    return ModelSource(init, path)


def _download(init: str, options: LoadOptions) -> Path:
    match = _HF_PATTERN.match(init)
    if match is None:
        raise ModelError(
            f"{init!r} is not of the form hf://org/repo[/subfolder][@revision]; "
            f"for example hf://openai-community/gpt2"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if match["revision"] and options.revision not in (None, match["revision"]):
        raise ModelError(f"{init} names a revision, --revision {options.revision} another one")
    subfolder = match["subfolder"]

    def fetch(patterns: tuple[str, ...]) -> Path:
        root = snapshot_download(
            match["repo"],
            revision=match["revision"] or options.revision,
            allow_patterns=[f"{subfolder}/{each}" if subfolder else each for each in patterns],
        )
        return Path(root, subfolder) if subfolder else Path(root)

    try:
        folder = fetch(_WANTED + (("*.py",) if options.trust_remote_code else ()))
        if folder.exists() and not any(
            any(folder.glob(each)) for each in ("*.safetensors", "*.pt")
        ):
            folder = fetch(_OLDER_WEIGHTS)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"cannot fetch {init}: {reason(error)}") from error
    if not folder.exists():
        raise ModelError(f"{init}: the repository has no folder {subfolder!r}")
    return folder
