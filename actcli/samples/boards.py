"""2048 boards as samples: chosen rows of a steps folder.

Tensor legend: B rows, T cells.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.samples.source import Rows, SampleBatch, as_index
from actcli.samples.steps import N_CELLS, StepsData, Survey
from actcli.store.header import TensorInfo


class GivenBoards:
    """Boards (N, 16) that are at hand already."""

    def __init__(self, boards_NT: NDArray[np.uint8]) -> None:
        self._boards_NT = boards_NT

    def __len__(self) -> int:
        return len(self._boards_NT)

    @property
    def n_tokens(self) -> int:
        """One token a cell."""
        return int(self._boards_NT.shape[1])

    @property
    def lengths(self) -> None:
        """All boards have `n_tokens`."""
        return None

    @property
    def largest_token(self) -> int:
        """The largest exponent on any board."""
        return int(self._boards_NT.max(initial=0))

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """`boards` (N, T) uint8."""
        return {"boards": TensorInfo("U8", self._boards_NT.shape)}

    def batch(self, rows: Rows) -> SampleBatch:
        """Boards as tokens (B, T) for the model, and as they are."""
        boards_BT = self._boards_NT[as_index(rows)]
        return SampleBatch(rows, {"tokens": boards_BT.astype(np.int64)}, {"boards": boards_BT})

    def manifest(self) -> dict[str, Any]:
        """Nothing is known of where they come from."""
        return {}


class BoardSamples:
    """The boards at the chosen rows; a dump keeps them and their row numbers."""

    def __init__(self, steps: StepsData, indices: NDArray[np.int64]) -> None:
        self.steps, self.indices = steps, indices

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def survey(self) -> Survey:
        """Largest tile and hash of the chosen boards, from one look through them."""
        return self.steps.survey(self.indices)

    @property
    def n_tokens(self) -> int:
        """One token a cell."""
        return N_CELLS

    @property
    def lengths(self) -> None:
        """All boards have `n_tokens`."""
        return None

    @property
    def largest_token(self) -> int:
        """The largest exponent on a chosen board."""
        return self.survey.largest_tile

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """`indices` (N,) int64 and `boards` (N, 16) uint8."""
        return {
            "indices": TensorInfo("I64", (len(self),)),
            "boards": TensorInfo("U8", (len(self), N_CELLS)),
        }

    def batch(self, rows: Rows) -> SampleBatch:
        """Boards as tokens (B, 16) for the model, and as uint8 for the dump."""
        indices_B = self.indices[as_index(rows)]
        boards_BT = self.steps.boards(indices_B)
        return SampleBatch(
            rows,
            inputs={"tokens": boards_BT.astype(np.int64)},
            stored={"indices": indices_B, "boards": boards_BT},
        )

    def manifest(self) -> dict[str, Any]:
        """The folder, its files, and a hash of the chosen boards in their order."""
        return self.steps.fingerprint() | {"chosen_boards_sha256": self.survey.sha256}
