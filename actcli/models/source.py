"""Where a model comes from: the string given as `--init`, turned into files on this machine.

    demo://NAME                      built into actcli
    FOLDER | FILE.pt | FILE.safetensors
    hf://ORG/REPO[/SUBFOLDER][@REVISION]   downloaded once by huggingface-hub, then from its cache

What the files hold is decided by looking at them (see the families), never by a flag.
"""

import re
from collections.abc import Sequence
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


@dataclass(frozen=True)
class HubPath:
    """A place in a repository of the Hugging Face hub."""

    repo: str
    inside: str | None
    """The folder or file; None for all of it."""

    revision: str | None


def parse_hub(init: str, revision: str | None = None) -> HubPath:
    """Take `hf://org/repo[/path][@revision]` apart.

    Args:
        init: what the user gave.
        revision: of an option, which must not contradict.

    Raises:
        ModelError: it is not of that form, or names another revision.
    """
    match = _HF_PATTERN.match(init)
    if match is None:
        raise ModelError(
            f"{init!r} is not of the form hf://org/repo[/subfolder][@revision]; "
            f"for example hf://openai-community/gpt2"
        )
    if match["revision"] and revision not in (None, match["revision"]):
        raise ModelError(f"{init} names a revision, --revision {revision} another one")
    return HubPath(match["repo"], match["subfolder"], match["revision"] or revision)


def fetch(
    hub: HubPath, init: str, *, patterns: Sequence[str] | None = None, local: bool = False
) -> Path:
    """Download files of a repository, or find them in the cache; return the repository's folder.

    Args:
        hub: the repository.
        init: what the user gave, for messages.
        patterns: which files, from the root of the repository; None for all.
        local: only look into the cache.

    Raises:
        ModelError: it cannot be reached, or is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                hub.repo,
                revision=hub.revision,
                allow_patterns=None if patterns is None else list(patterns),
                local_files_only=local,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"cannot fetch {init}: {reason(error)}") from error


def _download(init: str, options: LoadOptions) -> Path:
    hub = parse_hub(init, options.revision)
    subfolder = hub.inside

    def below(patterns: tuple[str, ...]) -> Path:
        wanted = [f"{subfolder}/{each}" if subfolder else each for each in patterns]
        root = fetch(hub, init, patterns=wanted)
        return root / subfolder if subfolder else root

    folder = below(_WANTED + (("*.py",) if options.trust_remote_code else ()))
    if folder.exists() and not any(any(folder.glob(each)) for each in ("*.safetensors", "*.pt")):
        folder = below(_OLDER_WEIGHTS)
    if not folder.exists():
        raise ModelError(f"{init}: the repository has no folder {subfolder!r}")
    return folder
