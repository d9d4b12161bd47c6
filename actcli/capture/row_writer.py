"""Rows of a batch at their places in a dump: together where they are neighbours, else one by one.

Rows of a batch of short samples are narrower than those of the dump. Each is laid over zeros in a
buffer of the dump's width and written whole: as whole pages, where the dump's rows are.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.ring import aligned_bytes
from actcli.samples.batching import runs
from actcli.samples.source import Rows

WriteRows = Callable[[str, int, memoryview], None]
"""Takes a key, the number of the first row, and the bytes of rows: `DumpWriter.write_rows`. The
bytes may change as soon as it returns."""

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RowWriter:
    """Writes the rows of batches; for one thread."""

    def __init__(self, write_rows: WriteRows) -> None:
        self._write_rows = write_rows
        self._buffer = aligned_bytes(0).numpy()

    def write(
        self, key: str, rows: Rows, values: NDArray[Any], *, row_shape: tuple[int, ...]
    ) -> None:
        """Write rows of one tensor.

        Args:
            key: the tensor's name in the dump.
            rows: numbers of the rows in the dump.
            values: the rows, as many as numbers; axes may be shorter than in the dump.
            row_shape: of a row in the dump.
        """
        if values.shape[1:] != row_shape:
            self._write_widened(key, rows, values, row_shape)
            return
        for first, places in runs(rows):
            self._write_rows(key, first, np.ascontiguousarray(values[places]).data)

    def _write_widened(
        self, key: str, rows: Rows, values: NDArray[Any], row_shape: tuple[int, ...]
    ) -> None:
        n_bytes = math.prod(row_shape) * values.itemsize
        if self._buffer.size < n_bytes:
            self._buffer = aligned_bytes(n_bytes).numpy()
        row = self._buffer[:n_bytes].view(values.dtype).reshape(row_shape)
        row[:] = 0
        part = row[tuple(map(slice, values.shape[1:]))]
        for place, number in enumerate(rows):
            part[:] = values[place]
            self._write_rows(key, int(number), row.data)


def as_integers(tensor: Tensor) -> NDArray[Any]:
    """The bits of a CPU tensor as integers of its width, without a copy; numpy has no bfloat16.

    What is done with them costs no threads of torch, which are the model's.
    """
    return tensor.contiguous().view(_AS_INTEGERS[tensor.element_size()]).numpy()
