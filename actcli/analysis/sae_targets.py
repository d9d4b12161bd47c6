"""What is summed of the targets themselves: once for all dictionaries that share them.

Tensor legend: N tokens, O target width, S runs of tokens of one cluster, C clusters.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_clusters import Floats, Runs, VarianceTable
from actcli.analysis.sae_held import HELD_BYTES, HeldTargets

_LEAST_SCALE = 0.01


class TargetChunk(NamedTuple):
    """Some tokens of the target, and what every dictionary needs of them."""

    t_NO: Tensor
    squares_N: Tensor
    """|t|^2."""

    norms_N: Tensor
    """|t|."""

    centre_O: Floats
    """Mean of all tokens so far, these among them."""

    centred_NO: Tensor
    """t - centre."""

    apart_N: Tensor
    """|t - centre|^2."""

    room_NO: Tensor
    """For vectors that are not needed for long: memory that is used again."""

    numbers_N: NDArray[np.int64]
    """Which token of all it is."""

    scales_N: Tensor
    """|t - centre|^2, but no less than a hundredth of the median of the chunk."""

    held: HeldTargets
    """Tokens that the target keeps for a second look."""


class TargetSums:
    """Mean and variance of a target, in one pass; its first tokens are kept, see `LegacySums`."""

    def __init__(self, width: int, *, most: int, held_bytes: int = HELD_BYTES) -> None:
        self.table = VarianceTable(width=width, most=most)
        self.n = 0
        self.held = HeldTargets(width, held_bytes=held_bytes)
        self._mean_O = np.zeros(width)
        self._rooms = torch.empty(2, 0, width)

    def add(self, t_NO: Tensor, runs: Runs) -> TargetChunk:
        """Sum some tokens (N, O), float32."""
        self.n += len(t_NO)
        mean_O: Floats = t_NO.mean(0).cpu().double().numpy()
        self._mean_O += (mean_O - self._mean_O) * len(t_NO) / self.n
        centre_O = torch.from_numpy(self._mean_O).to(t_NO)
        chunk = self._chunk(t_NO, centre_O, runs)
        self.table.add_rows(runs, chunk.centred_NO, chunk.apart_N, centre_O=chunk.centre_O)
        return chunk

    def _chunk(self, t_NO: Tensor, centre_O: Tensor, runs: Runs) -> TargetChunk:
        if self._rooms.shape[1] < len(t_NO):
            self._rooms = t_NO.new_empty(2, *t_NO.shape)
        room_NO, centred_NO = self._rooms[:, : len(t_NO)]
        torch.sub(t_NO, centre_O, out=centred_NO)
        norms_N = torch.linalg.vector_norm(t_NO, dim=-1)
        apart_N = torch.linalg.vector_norm(centred_NO, dim=-1).square()
        scales_N = apart_N.clamp(min=_LEAST_SCALE * float(apart_N.median()))
        return TargetChunk(
            t_NO=t_NO,
            squares_N=norms_N.square(),
            norms_N=norms_N,
            centre_O=centre_O.cpu().double().numpy(),
            centred_NO=centred_NO,
            apart_N=apart_N,
            room_NO=room_NO,
            numbers_N=self.held.add(t_NO, scales_N, runs),
            scales_N=scales_N,
            held=self.held,
        )
