"""The checkpoint of an SPD run: `model_<step>.pth`, a state dict of target, components and gates.

    target_model.<key>                    the weights of the target
    _components.<module>.V|U|bias         `<module>` with dashes for dots
    ci_fn.<key>                           the functions of the causal importances

Older names of these are read as well. The file is mapped into memory: only tensors that are used
are read from disk.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from actcli.errors import ModelError, reason

_COMPONENT = re.compile(r"_components\.([^.]+)\.([VU])$")
_STEP = re.compile(r"model_(\d+)\.pth")


@dataclass(frozen=True)
class SpdCheckpoint:
    """The state dict of a run, in its three parts."""

    path: Path
    target: Mapping[str, Tensor]
    """The target's own state dict; empty where the run does not hold it."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """V (inputs, C) and U (C, outputs) by dotted module name."""

    gates: Mapping[str, Tensor]
    """The state of the causal importances, keys without `ci_fn.`."""


def find_checkpoint(place: Path) -> Path:
    """The checkpoint of the highest step in a run's folder, or the file that was given.

    Raises:
        ModelError: there is none.
    """
    if place.is_file():
        return place
    steps = {int(found[1]): each for each in place.glob("model_*.pth") if (found := _is_step(each))}
    if not steps:
        raise ModelError(
            f"{place} is no SPD run with weights: expected model_<step>.pth beside "
            f"final_config.yaml"
        )
    return steps[max(steps)]


def read_checkpoint(path: Path) -> SpdCheckpoint:
    """Open a checkpoint.

    Raises:
        ModelError: it is damaged or holds no components.
    """
    state = {_current_name(key): value for key, value in read_state(path).items()}
    factors: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if found := _COMPONENT.match(key):
            factors.setdefault(found[1].replace("-", "."), {})[found[2]] = value
    lone = sorted(name for name, pair in factors.items() if len(pair) < len("VU"))
    if not factors or lone:
        lacks = f"{lone[0]} has not both V and U" if lone else "it holds no _components.<module>.V"
        raise ModelError(f"{path} is no checkpoint of an SPD run: {lacks}")
    return SpdCheckpoint(
        path,
        target=_below("target_model.", state),
        factors={name: (pair["V"], pair["U"]) for name, pair in sorted(factors.items())},
        gates=_below("ci_fn.", state),
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Open a file of `torch.save` that holds a state dict, and map it into memory.

    Raises:
        ModelError: it is damaged or holds something else.
    """
    try:
        state = _loaded(path)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(f"cannot read the weights in {path}: {reason(error)}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}; expected tensors by name")
    return {str(key): value.detach() for key, value in state.items() if isinstance(value, Tensor)}


def _loaded(path: Path) -> object:
    is_mappable = zipfile.is_zipfile(path)  # the format of torch 1.5 and before is not
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)


def _is_step(path: Path) -> re.Match[str] | None:
    return _STEP.fullmatch(path.name)


def _current_name(key: str) -> str:
    """The present name of a key of an older version."""
    key = key.replace("_gates.", "_ci_fns.")
    if key.startswith("_ci_fns."):
        key = f"ci_fn.{key}"
    if key.startswith("patched_model."):
        key = f"target_model.{key.removeprefix('patched_model.')}"
    if found := re.match(r"target_model\.(.+)\.components\.([VU])$", key):
        return f"_components.{found[1].replace('.', '-')}.{found[2]}"
    return re.sub(r"^(target_model\..+)\.original\.(weight|bias)$", r"\1.\2", key)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
