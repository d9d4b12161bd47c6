"""Where a dictionary comes from: the string given as `--checkpoint`, turned into a file.

FOLDER | FILE                            a folder may hold the one dictionary somewhere below
demo://NAME                              built into actcli
hf://ORG/REPO[/PATH][@REVISION]          downloaded once, only what is needed
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from actcli.builtin import find_builtin, is_builtin
from actcli.errors import ModelError, reason
from actcli.models.source import HF_PREFIX, HubPath, fetch, parse_hub
from actcli.saes.checkpoint import SUFFIXES, Checkpoint, OpenOptions
from actcli.saes.choosing import choose

_CONFIGS = ("config.json", "cfg.json", "config.yaml", "hyperparams.json")


def find_checkpoint(spec: str, options: OpenOptions, *, patterns: Sequence[str]) -> Checkpoint:
    """Return the file of weights that is meant, downloading it for `hf://`.

    Args:
        spec: what the user gave.
        options: what chooses among several.
        patterns: names of files that known formats give their weights.

    Raises:
        ModelError: nothing is there.
        UsageError: several are there, and nothing chooses.
    """
    if is_builtin(spec):
        path = find_builtin(spec, holding="README.md", error=ModelError)
    elif spec.startswith(HF_PREFIX):
        path = _downloaded(spec, options, patterns)
    else:
        path = Path(spec).expanduser()
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise ModelError(
            f"there is no dictionary at {spec!r}: give a folder, a file, hf://org/repo/path, or "
            f"demo://facts-matryoshka"
        )
    return Checkpoint(path / choose(_files_below(path), patterns, options, where=spec))


def short_name(spec: str) -> str | None:
    """What to call a dictionary whose folder on this machine says little."""
    if is_builtin(spec):
        return spec.partition("://")[2]
    return None


def _file(path: Path) -> Checkpoint:
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path} is no file of weights that can be read here; expected one of "
            f"{', '.join(SUFFIXES)}, or the folder of a dictionary"
        )
    return Checkpoint(path)


def _files_below(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _downloaded(spec: str, options: OpenOptions, patterns: Sequence[str]) -> Path:
    """The folder or file, with the chosen weights and the configurations around them."""
    hub = parse_hub(spec, options.revision)
    inside = PurePosixPath(hub.inside or "")
    names = _listed(hub, spec)
    if names is None:
        return fetch(hub, spec, local=True) / inside
    if str(inside) in names:
        chosen = inside
    else:
        below = [name for name in names if inside in PurePosixPath(name).parents]
        if not below:
            raise ModelError(f"{spec}: the repository has nothing at {str(inside)!r}")
        relative = [str(PurePosixPath(name).relative_to(inside)) for name in below]
        chosen = inside / choose(relative, patterns, options, where=spec)
    wanted = [str(chosen), *(str(each / name) for each in chosen.parents for name in _CONFIGS)]
    return fetch(hub, spec, patterns=[name for name in wanted if name in names]) / chosen


def _listed(hub: HubPath, spec: str) -> frozenset[str] | None:
    """All files of the repository; None where the hub cannot be reached and the cache must do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Among its bases is that of all errors of the HTTP library, whichever it is.
    bases = HfHubHTTPError.__mro__[1:]
    broken = tuple(each for each in bases if issubclass(each, Exception) and each is not Exception)
    try:
        return frozenset(HfApi().list_repo_files(hub.repo, revision=hub.revision))
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelError(f"cannot fetch {spec}: {reason(error)}") from error
    except broken:
        return None
