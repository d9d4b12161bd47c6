"""Decompositions: the weights of Q and K as sums of components, from runs, files or SVD."""

from pathlib import Path
from typing import TYPE_CHECKING

from actcli.builtin import PREFIX, find_builtin, is_builtin
from actcli.errors import UsageError, nearest

if TYPE_CHECKING:
    from actcli.decompositions.factors import Decomposition, Layout
    from actcli.models.adapter import ModelAdapter
    from actcli.models.source import LoadOptions

_RUN, _FILE, _SVDS = "spd", "file", ("svd", "svd-head")
FORMS = "spd:FOLDER, file:FACTORS.safetensors, svd[:RANK], svd-head[:RANK] or demo://NAME"


def open_decomposition(
    spec: str,
    adapter: "ModelAdapter",
    *,
    target: str | None = None,
    layout: "Layout | None" = None,
    harvest: Path | None = None,
) -> "Decomposition":
    """Open what `--decomp` names, for a model that is loaded.

    Args:
        spec: one of `FORMS`.
        adapter: the model.
        target: for a run, where its model's sizes are, in place of what the run says.
        layout: for a file, which way round square factors are.
        harvest: for a run, its harvest database.

    Raises:
        UsageError: it is of none of these forms, or nothing is there.
        ModelError: what is there is damaged, or is of another model.
    """
    from actcli.decompositions.factors_file import FactorsFile
    from actcli.decompositions.spd_run import SpdRun
    from actcli.decompositions.svd import SingularVectors

    kind, rest = _parsed(spec)
    if kind == _RUN:
        return SpdRun(_existing(spec, rest), adapter, target=target, harvest=harvest)
    if kind == _FILE:
        return FactorsFile(_existing(spec, rest), adapter, layout=layout)
    rank = _rank(spec, rest) if rest else None
    return SingularVectors(
        "svd" if kind == "svd" else "svd-head", rank=rank, n_layers=adapter.n_layers
    )


def target_of(spec: str) -> str | None:
    """The model that a decomposition names, where it is one that `--init` takes; else None.

    A run's model may be of a class that only `load_target` can make, singular vectors are of any.

    Raises:
        UsageError: it is of none of the forms, or nothing is there.
        ModelError: the file is damaged.
    """
    kind, rest = _parsed(spec)
    if kind == _RUN:
        from actcli.decompositions.spd_model import folder_of, plain_target

        return plain_target(folder_of(_existing(spec, rest)))
    if kind == _FILE:
        from actcli.decompositions.factors_file import target_named_in

        return target_named_in(_existing(spec, rest))
    return None


def load_target(
    spec: str,
    *,
    target: str | None = None,
    device: str = "cpu",
    options: "LoadOptions | None" = None,
) -> "ModelAdapter":
    """Load the model that a decomposition is of.

    Args:
        spec: one of `FORMS`.
        target: the model in place of the one that it names.
        device: a torch device.
        options: how it is loaded.

    Raises:
        UsageError: the decomposition names no model.
        ModelError: the model is not there, or damaged.
    """
    from actcli.decompositions.spd_model import load_run_target
    from actcli.models import load_model
    from actcli.models.source import DEFAULTS

    kind, rest = _parsed(spec)
    chosen = options or DEFAULTS
    if kind == _RUN:
        place = _existing(spec, rest)
        return load_run_target(place, target=target, device=device, options=chosen)
    init = target or target_of(spec)
    if init is None:
        raise UsageError(f"{spec} can be of any model: name the model with --init")
    named = _parsed(init) if init.startswith(f"{_RUN}:") else None
    if named is not None:  # a file that was written from a run says so
        return load_target(init, device=device, options=chosen)
    return load_model(init, device=device, options=chosen)


def _parsed(spec: str) -> tuple[str, str]:
    """The kind, and what follows the colon."""
    if is_builtin(spec):
        return _RUN, spec
    kind, colon, rest = spec.partition(":")
    if kind in (_RUN, _FILE) and rest:
        return kind, rest
    if kind in _SVDS and bool(colon) == bool(rest):
        return kind, rest
    raise UsageError(f"{spec!r} names no decomposition: give {FORMS}{_hint(spec, kind)}")


def _hint(spec: str, kind: str) -> str:
    """What may have been meant."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return f"; for the run in that folder {_RUN}:{spec}"
    if path.is_file():
        form = _FILE if path.suffix == ".safetensors" else _RUN
        return f"; for that file {form}:{spec}"
    if kind in (_RUN, _FILE):
        return f"; {kind}: needs a path"
    return f"; {nearest(kind, (_RUN, _FILE, *_SVDS))}"


def _existing(spec: str, rest: str) -> Path:
    if rest.startswith(PREFIX):
        return find_builtin(rest, holding="final_config.yaml", error=UsageError)
    path = Path(rest).expanduser()
    if not path.exists():
        raise UsageError(f"{spec}: there is nothing at {path}")
    return path


def _rank(spec: str, rest: str) -> int:
    if not rest.isdecimal() or int(rest) < 1:
        raise UsageError(f"{spec!r}: the rank must be a whole number of at least 1, not {rest!r}")
    return int(rest)
