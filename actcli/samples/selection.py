"""Which rows of a data set are used: drawn by a seed, or named in a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actcli.errors import SamplesError
from actcli.samples.npy import map_npy


def draw_indices(n_rows: int, *, n_samples: int, seed: int) -> NDArray[np.int64]:
    """Draw rows uniformly, in drawn order: without replacement while there are enough.

    numpy's `default_rng(seed)`: `choice(n_rows, n_samples, replace=False)`, or
    `integers(0, n_rows, n_samples)` when more are asked for than there are. The same draw as the
    existing 2048former script, so that dumps of both hold the same rows.
    """
    rng = np.random.default_rng(seed)
    if n_samples > n_rows:
        return rng.integers(0, n_rows, size=n_samples, dtype=np.int64)
    return rng.choice(n_rows, size=n_samples, replace=False).astype(np.int64)


def read_indices(path: Path, *, n_rows: int) -> NDArray[np.int64]:
    """Read row numbers from an `.npy` file, row-major; order and repetitions are kept.

    Negative numbers count from the end.

    Raises:
        SamplesError: unreadable, not integers, empty, or out of range.
    """
    indices = map_npy(path)
    if not np.issubdtype(indices.dtype, np.integer):
        raise SamplesError(
            f"{path} holds {indices.dtype} values, expected integers: save row numbers as int64"
            + (", for a mask: numpy.flatnonzero(mask)" if indices.dtype == bool else "")
        )
    if not indices.size:
        raise SamplesError(f"{path} holds no indices")
    return _in_range(path, indices.reshape(-1), n_rows)


def _in_range(path: Path, indices: NDArray[np.integer], n_rows: int) -> NDArray[np.int64]:
    beyond = np.flatnonzero((indices < -n_rows) | (indices >= n_rows))
    if beyond.size:
        raise SamplesError(
            f"{path}: entry {beyond[0]} is {indices[beyond[0]]}, but the data set has {n_rows} "
            f"rows ({-n_rows} to {n_rows - 1}); {beyond.size} of {indices.size} are out of range"
        )
    wide = indices.astype(np.int64)
    return np.where(wide < 0, wide + n_rows, wide)
