"""Read `.npy` files, and nothing else: numpy's own loader also takes archives and pickles."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.errors import SamplesError, reason


def map_npy(path: Path) -> NDArray[Any]:
    """Return the array in an `.npy` file, mapped, not read.

    Raises:
        SamplesError: it is missing, damaged, truncated, or of another format.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise SamplesError(f"{path} is not a readable .npy file: {reason(error)}") from error
    return array
