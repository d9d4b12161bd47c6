"""Words and what a model holds of each: what feature absorption is measured on.

A file has `x` (words, width), the activation at the dictionary's input on the last token of each
word, `letters` (words,), the word's first letter from 0 to 25, and maybe `probe_weight`
(26, width) and `probe_bias` (26,), directions in that space that say the letter. Or it is a text
file of words, from which `actcli.capture.spelling` makes the same with a model.

Tensor legend: W words, I input width, A letters of the alphabet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actcli.errors import SamplesError, UsageError, reason

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_KEYS = ("x", "letters", "probe_weight", "probe_bias")


@dataclass(frozen=True)
class Spelling:
    """Words by their first letter, as activations."""

    name: str
    """What messages call it: the file, or the model and its words."""

    x_WI: Tensor
    """float32."""

    letters_W: Tensor
    """int64, 0 to 25."""

    probe_weight_AI: Tensor | None = None
    """Known probes; None if they are to be fitted."""

    probe_bias_A: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.letters_W)

    @property
    def width(self) -> int:
        """Width of the activations."""
        return self.x_WI.shape[1]


def read_spelling(path: Path | str) -> Spelling:
    """Read the activations of words from a `.safetensors` or `.npz` file.

    Raises:
        SamplesError: the file cannot be read, lacks a tensor, or one has the wrong shape or values.
        UsageError: it is a file of another kind, such as words without a model.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise UsageError(
            f"{path} holds no activations: expected a .safetensors or .npz file with x and "
            f"letters; a .txt file of words needs a model (--init) that reads them"
        )
    found = _tensors(path)
    _check_keys(path, found)
    _check_shapes(path, found)
    for key, tensor in found.items():
        if not tensor.isfinite().all():
            raise SamplesError(f"{path}: {key} holds values that are not finite numbers")
    weight = found["probe_weight"].float() if "probe_weight" in found else None
    bias = found["probe_bias"].float() if "probe_bias" in found else None
    letters_W = _letters(path, found["letters"])
    return Spelling(str(path), found["x"].float(), letters_W, weight, bias)


def read_words(path: Path | str) -> list[str]:
    """Read words from a text file, one a line; blank lines are left out, and words that come again.

    Raises:
        SamplesError: the file cannot be read, has no word, or one that begins with no letter a-z.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SamplesError(f"cannot read {path}: {reason(error)}") from error
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise SamplesError(f"{path} holds no word: expected one a line")
    for word in words:
        first_letter(word, source=str(path))
    return words


def first_letter(word: str, *, source: str) -> int:
    """Return the number of a word's first letter, from 0.

    Raises:
        SamplesError: it begins with something else.
    """
    number = ALPHABET.find(word[:1].lower()) if word[:1] else -1
    if number < 0:
        raise SamplesError(
            f"{source}: {word!r} does not begin with a letter from a to z; remove it, "
            f"the first letter is what is measured"
        )
    return number


def _tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            held = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as arrays:
                held = {key: torch.from_numpy(_plain(arrays[key])) for key in arrays.files}
    except (OSError, ValueError, TypeError, BadZipFile, SafetensorError) as error:
        raise SamplesError(f"cannot read {path}: {reason(error)}") from error
    return {key: held[key] for key in _KEYS if key in held}


def _check_keys(path: Path, found: Mapping[str, Tensor]) -> None:
    missing = [key for key in _KEYS[:2] if key not in found]
    if missing:
        raise SamplesError(
            f"{path} has no {missing[0]!r}; expected x (words, width), the activations, and "
            f"letters (words,), from 0 (a) to 25 (z)"
        )
    if "probe_bias" in found and "probe_weight" not in found:
        raise SamplesError(f"{path} has a probe_bias but no probe_weight: give both, or neither")


def _check_shapes(path: Path, found: Mapping[str, Tensor]) -> None:
    shape = list(found["x"].shape)
    if len(shape) != 2 or 0 in shape:
        raise SamplesError(f"{path}: x is {shape}, expected (words, width)")
    n = len(ALPHABET)
    expected = {"letters": shape[:1], "probe_weight": [n, shape[1]], "probe_bias": [n]}
    for key in expected.keys() & found.keys():
        if list(found[key].shape) != expected[key]:
            raise SamplesError(
                f"{path}: {key} is {list(found[key].shape)}, expected {expected[key]}, as x is "
                f"{shape}"
            )


def _plain(array: Any) -> Any:
    """Return an array in the machine's own byte order."""
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="), copy=False)


def _letters(path: Path, letters_W: Tensor) -> Tensor:
    whole_W = letters_W.long()
    wrong_W = (whole_W != letters_W) | (whole_W < 0) | (whole_W >= len(ALPHABET))
    if wrong_W.any():
        raise SamplesError(
            f"{path}: letters holds {letters_W[wrong_W][0].item()}, expected whole numbers from 0 "
            f"(a) to {len(ALPHABET) - 1} (z)"
        )
    return whole_W
