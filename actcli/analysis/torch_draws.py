"""Random indices as torch draws them on the CPU, without importing torch."""

import numpy as np
from numpy.typing import NDArray

_WIDE_FROM = 1 << 28


def draw_like_torch(n: int, *, count: int, seed: int) -> NDArray[np.int64]:
    """Draw indices below n with replacement, as torch's CPU generator does.

    The same as `torch.randint(n, (count,), generator=torch.Generator().manual_seed(seed))`: words
    of the Mersenne Twister modulo n, one word of 32 bits each for n < 2**28, else two (the first
    is the higher half).
    """
    twister = np.random.RandomState(seed % (1 << 32))
    words = count * (2 if n >= _WIDE_FROM else 1)
    drawn = twister.randint(0, 1 << 32, size=words, dtype=np.uint32).astype(np.uint64)
    if n >= _WIDE_FROM:
        drawn = drawn[0::2] << np.uint64(32) | drawn[1::2]
    return (drawn % np.uint64(n)).astype(np.int64)
