"""Learned maps that carry a layer's residual stream to where the final norm and head can read it.

Two formats are read, neither of which runs code:

    tuned lens   a folder with config.json and params.pt, keys `i.weight` (H, H) and `i.bias` (H):
                 for what enters block i, our layer i; h + W h + b
    J-lens       a file .pt with n_prompts, source_layers, d_model and, for block l, a matrix J
                 (H, H): for what block l gives, our layer l + 1; J h. The matrices stand under the
                 key `J` by block, or each under a key `J.l`

Layers are those of `reports.lens_table`: 0 enters block 0, l is what block l-1 gives.

Tensor legend: R rows, H hidden.
"""

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actcli.errors import ModelError, reason

_CONFIG, _PARAMETERS = "config.json", "params.pt"
_TUNED_KEY = re.compile(r"(\d+)\.(weight|bias)", re.ASCII)
_JACOBIAN_KEY = re.compile(r"J[._]?(\d+)", re.ASCII)


@dataclass(frozen=True)
class Translator:
    """h -> M h + b, or h + M h + b where `adds`."""

    matrix_HH: Tensor
    bias_H: Tensor | None = None
    adds: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrix, and the bias if there is one."""
        return (self.matrix_HH,) if self.bias_H is None else (self.matrix_HH, self.bias_H)

    def to(self, device: torch.device) -> "Translator":
        """Return the same on another device."""
        bias_H = None if self.bias_H is None else self.bias_H.to(device)
        return replace(self, matrix_HH=self.matrix_HH.to(device), bias_H=bias_H)

    def __call__(self, resid_RH: Tensor) -> Tensor:
        """Translate, in float32."""
        resid_RH = resid_RH.float()
        out_RH = resid_RH @ self.matrix_HH.T.to(resid_RH.device, torch.float32)
        if self.bias_H is not None:
            out_RH += self.bias_H.to(resid_RH.device)
        return out_RH.add_(resid_RH) if self.adds else out_RH


@dataclass(frozen=True)
class Translators:
    """The translators of a model, by layer of the residual stream."""

    path: Path
    kind: str
    """tuned lens, or J-lens."""

    by_layer: Mapping[int, Translator]
    n_layers: int

    def has(self, layer: int) -> bool:
        """Whether there is one for this layer."""
        return layer in self.by_layer

    @property
    def missing(self) -> tuple[int, ...]:
        """The layers, 0 to the last, that are read as they are."""
        return tuple(layer for layer in range(self.n_layers + 1) if not self.has(layer))

    def to(self, device: torch.device) -> "Translators":
        """Return the same on another device, so that nothing is moved for each use."""
        moved = {layer: each.to(device) for layer, each in self.by_layer.items()}
        return replace(self, by_layer=moved)

    def apply(self, layer: int, resid_RH: Tensor) -> Tensor:
        """Return the translated stream in float32; the stream itself where there is none."""
        return self.by_layer[layer](resid_RH) if self.has(layer) else resid_RH.float()


def load_translators(path: Path, *, d_model: int, n_layers: int) -> Translators:
    """Read a tuned-lens folder or a J-lens file.

    Args:
        path: the folder, or the file.
        d_model: H of the model that will be read.
        n_layers: its number of blocks.

    Raises:
        ModelError: it is neither, it is damaged, or it was made for a model of another shape.
    """
    if path.is_dir():
        kind, by_layer = "tuned lens", _tuned_lens(path, n_layers)
    else:
        kind, by_layer = "J-lens", _jacobian_lens(path)
    _check(path, by_layer, d_model=d_model, n_layers=n_layers)
    return Translators(path, kind, dict(sorted(by_layer.items())), n_layers)


def _tuned_lens(folder: Path, n_layers: int) -> dict[int, Translator]:
    config = _read_config(folder)
    stated = config.get("num_hidden_layers", n_layers)
    if stated != n_layers:
        raise ModelError(f"{folder} is for a model of {stated} blocks, this one has {n_layers}")
    tensors = _read_tensors(folder / _PARAMETERS)
    parts: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        found = _TUNED_KEY.fullmatch(str(key))
        if found is None or not isinstance(value, Tensor):
            raise ModelError(
                f"{folder / _PARAMETERS} has the key {key!r}; a tuned lens has <layer>.weight and "
                "<layer>.bias, tensors"
            )
        parts.setdefault(int(found[1]), {})[found[2]] = value
    for layer, each in parts.items():
        if "weight" not in each:
            raise ModelError(f"{folder / _PARAMETERS} has a bias and no weight for layer {layer}")
    return {
        layer: Translator(each["weight"], each.get("bias"), adds=True)
        for layer, each in parts.items()
    }


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no tuned lens: {_CONFIG} cannot be read ({reason(error)})"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / _CONFIG} is no JSON object")
    return config


def _jacobian_lens(file: Path) -> dict[int, Translator]:
    fields = _read_tensors(file)
    inner = fields.get("J")
    if isinstance(inner, Mapping):
        numbered = {str(block): value for block, value in inner.items()}
    else:
        found = [(_JACOBIAN_KEY.fullmatch(str(key)), value) for key, value in fields.items()]
        numbered = {match[1]: value for match, value in found if match is not None}
    if not numbered or not all(
        block.isdecimal() and isinstance(value, Tensor) for block, value in numbered.items()
    ):
        raise ModelError(
            f"{file} is no J-lens: expected a matrix for each block under the key 'J', or under "
            f"'J.0', 'J.1', ...; found the keys {', '.join(map(str, list(fields)[:8])) or 'none'}"
        )
    return {int(block) + 1: Translator(value) for block, value in numbered.items()}


def _read_tensors(file: Path) -> Mapping[Any, Any]:
    """Read what torch saved; tensors and plain values only, never code."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(f"cannot read the translators {file}: {reason(error)}") from error
    if not isinstance(found, Mapping):
        raise ModelError(f"{file} holds {type(found).__name__}; expected tensors by name")
    return found


def _check(path: Path, by_layer: Mapping[int, Translator], *, d_model: int, n_layers: int) -> None:
    if not by_layer:
        raise ModelError(f"{path} has no translators")
    if max(by_layer) > n_layers:
        raise ModelError(
            f"{path} has a translator for layer {max(by_layer)}, the model's last layer is "
            f"{n_layers}: it was made for another model"
        )
    for layer, each in by_layer.items():
        shapes = [list(tensor.shape) for tensor in each.tensors]
        if shapes != [[d_model, d_model], [d_model]][: len(shapes)]:
            raise ModelError(
                f"{path} has the shape {shapes[0]} at layer {layer}, the model has width "
                f"{d_model}: it was made for another model"
            )
        if not all(bool(tensor.isfinite().all()) for tensor in each.tensors):
            raise ModelError(f"{path} has NaN or infinite values at layer {layer}")
