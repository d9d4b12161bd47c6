"""Which tokens of a batch are real and which are kept, where samples differ in length.

Axis letters: B samples of a batch, T tokens of its longest sample, P kept positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Pairs (sample of the batch, place on its token axis)."""


class KeptPositions(NamedTuple):
    """The chosen positions in each sample of a batch."""

    index_BP: NDArray[np.int64]
    """Tokens, counted from the start; 0 where the sample has no such token."""

    is_there_BP: NDArray[np.bool_]
    """Whether the sample has such a token."""


def kept_positions(positions: Sequence[int], lengths_B: NDArray[np.int64]) -> KeptPositions:
    """Find positions in samples of these lengths; negative ones count from a sample's own end."""
    wanted_P, lengths_B1 = np.array(positions, dtype=np.int64), lengths_B[:, None]
    index_BP = np.where(wanted_P < 0, wanted_P + lengths_B1, wanted_P)
    is_there_BP = (index_BP >= 0) & (index_BP < lengths_B1)
    return KeptPositions(np.where(is_there_BP, index_BP, 0), is_there_BP)


def kept_mask(
    mask_BT: NDArray[np.uint8], positions: Sequence[int], lengths_B: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return the mask of the kept positions, (B, P), 1 at real tokens."""
    index_BP, is_there_BP = kept_positions(positions, lengths_B)
    mask_BP: NDArray[np.uint8] = np.take_along_axis(mask_BT, index_BP, axis=1) * is_there_BP
    return mask_BP


def padding(lengths_B: NDArray[np.int64], n_tokens: int) -> Places:
    """Return the places of a batch beyond the end of their sample."""
    rows, tokens = np.nonzero(np.arange(n_tokens) >= lengths_B[:, None])
    return rows, tokens
