"""A file with the weights of a dictionary, and what lies beside it.

`.safetensors`, `.npz` and files of `torch.save` are opened without running code that they bring,
and their tensors read from disk when they are used.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from actcli.errors import ModelError, reason

PICKLES = (".pt", ".pth", ".bin")
SUFFIXES = (*PICKLES, ".safetensors", ".npz")
_ZIP, _LFS_POINTER = b"PK\x03\x04", b"version https://git-lfs"
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_DAMAGED = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class OpenOptions:
    """What the user says of a dictionary where looking at its files does not tell."""

    format: str | None = None
    """Forced: the name of a format, or `raw`."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    """For `raw`: `W_enc`, `W_dec`, ... -> key in the file."""

    activation: str | None = None
    """For `raw`: relu, jumprelu or topk."""

    k: int | None = None
    """Of topk, where the file does not say."""

    width: int | None = None
    """Of the activations, which tells (inputs, features) from (features, inputs) in a raw file."""

    layer: int | None = None
    """Which of several layers in a folder."""

    l0: int | None = None
    """Which of several in a folder: the one with the nearest `average_l0_N`."""

    revision: str | None = None
    """Branch, tag or commit of an hf:// repository."""


DEFAULTS = OpenOptions()


@dataclass(frozen=True)
class Checkpoint:
    """A file with weights."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.path.parent

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """What it holds, tensors and other values, by key; a key inside another has a dot.

        Raises:
            ModelError: it is damaged, or cannot be opened without running its code.
        """
        _check_whole(self.path)
        if self.path.suffix in PICKLES:
            return dict(_flat(_unpickled(self.path)))
        if self.path.suffix == ".npz":
            return _Arrays(self.path)
        return _safetensors(self.path)

    def has(self, *keys: str) -> bool:
        """Whether all of these are in it."""
        return all(key in self.content for key in keys)

    def config(self, name: str, *, needed: bool = True) -> dict[str, Any]:
        """Return what a JSON or YAML file beside it says; {} where it is missing and not needed.

        Raises:
            ModelError: it is missing or damaged.
        """
        path = self.folder / name
        if not path.is_file():
            if not needed:
                return {}
            raise ModelError(
                f"{self.path} lacks its configuration: expected {name} beside it, "
                f"in {self.folder}; copy that file too"
            )
        return _read_config(path)


def _check_whole(path: Path) -> None:
    """Refuse what can be told from the outside to be no file of weights, or half of one."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        is_cut = start.startswith(_ZIP) and not zipfile.is_zipfile(path)
    except OSError as error:
        raise ModelError(f"cannot read the weights in {path}: {reason(error)}") from error
    if not start:
        raise ModelError(f"{path} is empty: copy or download it again")
    if start == _LFS_POINTER:
        raise ModelError(
            f"{path} is a pointer of Git LFS, not the weights: fetch them with 'git lfs pull'"
        )
    if is_cut:
        raise ModelError(f"{path} is truncated, its end is missing: copy or download it again")


class _Arrays(Mapping[str, Any]):
    """The arrays of an `.npz` file, each read once, when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, torch.Tensor] = {}
        try:
            with np.load(path, allow_pickle=False) as file:
                self._names = tuple(file.files)
        except (*_DAMAGED, zipfile.BadZipFile) as error:
            raise ModelError(f"cannot read the weights in {path}: {reason(error)}") from error

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._names:
            raise KeyError(key)
        if key not in self._found:
            self._found[key] = self._read(key)
        return self._found[key]

    def _read(self, key: str) -> torch.Tensor:
        try:
            with np.load(self._path, allow_pickle=False) as file:
                return torch.from_numpy(file[key])
        except (*_DAMAGED, zipfile.BadZipFile) as error:
            raise ModelError(f"cannot read {key!r} in {self._path}: {reason(error)}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except _DAMAGED as error:
        raise ModelError(f"cannot read the weights in {path}: {reason(error)}") from error


def _unpickled(path: Path) -> Mapping[Any, Any]:
    is_mappable = zipfile.is_zipfile(path)  # the format of torch 1.5 and before is not
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        raise ModelError(_refused_pickle(path, str(error))) from error
    except _DAMAGED as error:
        raise ModelError(f"cannot read the weights in {path}: {reason(error)}") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    return content


def _refused_pickle(path: Path, said: str) -> str:
    """What to do about a pickle that holds more than tensors and plain values."""
    found = _GLOBAL.search(said)
    if found is None:
        return f"cannot read the weights in {path}: it is no file of torch.save, or damaged"
    return (
        f"{path} holds an object of the class {found[1]}, which only its own code can load, and no "
        f"code from a checkpoint is run; where you trust it, convert it once: load it with "
        f"torch.load(..., weights_only=False), make the configuration a plain dict, and "
        f"torch.save that with the tensors, or write the tensors to .safetensors"
    )


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"cannot read the configuration {path}: {reason(error)}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds a {type(fields).__name__}; expected named fields")
    return fields
