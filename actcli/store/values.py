"""What the elements of a dump are worth."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_float32(rows: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return rows as float32, given as the store reads them (BF16 as 16-bit codes)."""
    if dtype == "BF16":
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return rows.astype(np.float32)
