"""Tensors of a checkpoint, taken one by one, checked, as float32."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actcli.errors import ModelError, nearest
from actcli.saes.checkpoint import Checkpoint

_FLOATS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Weights:
    """The tensors of a file."""

    checkpoint: Checkpoint
    prefix: str = ""
    """Before every key."""

    @property
    def _content(self) -> Mapping[str, Any]:
        return self.checkpoint.content

    def has(self, key: str) -> bool:
        """Whether there is a tensor of that name."""
        return isinstance(self._content.get(self.prefix + key), Tensor)

    def take(self, key: str, *sizes: int | None) -> Tensor:
        """Return a tensor in float32.

        Args:
            key: its name.
            sizes: the shape that it must have; None for an axis of any length.

        Raises:
            ModelError: it is missing, of another shape, not of floats, or not finite.
        """
        found = self._tensor(key)
        if len(found.shape) != len(sizes) or any(
            wanted not in (None, size) for size, wanted in zip(found.shape, sizes, strict=True)
        ):
            raise ModelError(
                f"{self._where(key)} has the shape {_shape(found.shape)}; expected {_shape(sizes)}"
            )
        self.dtype(key)
        values = found.detach().to(torch.float32)
        if not values.numel():
            raise ModelError(f"{self._where(key)} is empty: its shape is {_shape(values.shape)}")
        if not all(math.isfinite(each) for each in values.aminmax()):  # NaN is the least and most
            raise ModelError(f"{self._where(key)} holds NaN or infinite values: it is damaged")
        return values

    def maybe(self, key: str, *sizes: int | None) -> Tensor | None:
        """Return the same, or None where there is no such tensor."""
        return self.take(key, *sizes) if self.has(key) else None

    def threshold(self, key: str, n_features: int) -> Tensor:
        """Return thresholds: of each feature (D,), or one of all, of shape ().

        Raises:
            ModelError: as for `take`.
        """
        shape = self._tensor(key).shape
        if shape.numel() == 1:
            return self.take(key, *shape).reshape(())
        flat = tuple(size for size in shape if size != 1)  # some store (1, D)
        return self.take(key, *shape if flat == (n_features,) else (n_features,)).reshape(-1)

    def dtype(self, key: str) -> str:
        """Return the name of the dtype as stored.

        Raises:
            ModelError: it is missing, or not of plain floats.
        """
        dtype = self._tensor(key).dtype
        if dtype not in _FLOATS:
            found = str(dtype).removeprefix("torch.")
            raise ModelError(
                f"{self._where(key)} is of dtype {found}; supported are "
                f"{', '.join(_FLOATS.values())}: convert the weights to one of these"
            )
        return _FLOATS[dtype]

    def integer(self, key: str) -> int | None:
        """Return a whole number, or None where there is none of that name.

        Raises:
            ModelError: it is not one.
        """
        found = self._content.get(self.prefix + key)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if found is None or (isinstance(found, int) and not isinstance(found, bool)):
            return found
        raise ModelError(f"{self._where(key)} is {found!r}; expected a whole number")

    def _tensor(self, key: str) -> Tensor:
        found = self._content.get(self.prefix + key)
        if not isinstance(found, Tensor):
            tensors = [name for name, each in self._content.items() if isinstance(each, Tensor)]
            raise ModelError(
                f"{self.checkpoint.path} lacks the tensor {self.prefix + key!r}; "
                f"{nearest(self.prefix + key, tensors)}"
            )
        return found

    def _where(self, key: str) -> str:
        return f"{self.prefix}{key} in {self.checkpoint.path}"


def check_k(k: object, *, n_features: int, where: str) -> int:
    """Return the k of a top-k.

    Raises:
        ModelError: it is not a whole number from 1 to the number of features.
    """
    if isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= n_features:
        return k
    raise ModelError(f"{where}: k is {k!r}; expected a whole number from 1 to {n_features}")


def _shape(sizes: tuple[int | None, ...] | torch.Size) -> str:
    inside = ", ".join("any" if size is None else str(size) for size in sizes)
    return f"({inside},)" if len(sizes) == 1 else f"({inside})"
