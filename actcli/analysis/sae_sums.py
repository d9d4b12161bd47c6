"""What is summed of one dictionary: features that fire, and the errors of its reconstruction.

Each number of a token is computed in float32 and summed in float64, over all batches together and
by cluster of samples. Nothing grows with the number of tokens.

Tensor legend: N tokens, O target width, D features, M active features of all tokens, S runs of
tokens of one cluster, K sums.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_clusters import ClusterTable, Floats, Runs, VarianceTable
from actcli.analysis.sae_legacy import LegacySums
from actcli.analysis.sae_targets import TargetChunk
from actcli.saes.dictionary import SparseActs

RECONSTRUCTION_SUMS = (
    "errors",  # |e|^2
    "abs_errors",  # sum |e_d|
    "products",  # t.r
    "squares_in",  # |t|^2
    "squares_out",  # |r|^2
    "norms_in",  # |t|
    "norms_out",  # |r|
    "cosines",  # cos(t, r), where neither is 0
    "n_cosines",
    "length_ratios",  # |r| / |t|, where t is not 0
    "n_length_ratios",
)
ACTIVITY_SUMS = ("active", "absolute")  # features other than 0; sum of |activation|


class Errors(NamedTuple):
    """Numbers of single tokens, (N,) each."""

    errors_N: Tensor
    norms_N: Tensor
    products_N: Tensor
    cosines_N: Tensor
    """NaN where either vector is 0."""


def errors_of(r_NO: Tensor, chunk: TargetChunk) -> Errors:
    """Compare reconstructions (N, O) with their target; leaves e = t - r in `chunk.room_NO`."""
    products_N = torch.mul(chunk.t_NO, r_NO, out=chunk.room_NO).sum(-1)
    torch.sub(chunk.t_NO, r_NO, out=chunk.room_NO)
    errors_N = torch.linalg.vector_norm(chunk.room_NO, dim=-1).square()
    norms_N = torch.linalg.vector_norm(r_NO, dim=-1)
    return Errors(errors_N, norms_N, products_N, products_N / (norms_N * chunk.norms_N))


class ReconstructionSums:
    """Errors of the full reconstruction."""

    def __init__(self, width: int, *, most: int) -> None:
        self.table = ClusterTable(sums=len(RECONSTRUCTION_SUMS), most=most)
        self.residuals = VarianceTable(width=width, most=most)
        self.legacy = LegacySums(width, most=most)

    def add(self, r_NO: Tensor, chunk: TargetChunk, runs: Runs) -> None:
        """Sum the reconstructions (N, O) of the tokens of a chunk."""
        found = errors_of(r_NO, chunk)
        e_NO = chunk.room_NO
        lengths_N = found.norms_N / chunk.norms_N
        lengths_N[chunk.norms_N == 0] = torch.nan
        rows = [
            found.errors_N,
            torch.linalg.vector_norm(e_NO, ord=1, dim=-1),
            found.products_N,
            chunk.squares_N,
            found.norms_N.square(),
            chunk.norms_N,
            found.norms_N,
            *_where_defined(found.cosines_N),
            *_where_defined(lengths_N),
        ]
        values_KN: Floats = torch.stack(rows).cpu().double().numpy()
        self.table.add(runs, runs.sum(values_KN))
        self._add_residuals(e_NO, runs)
        self.legacy.add(found.errors_N, chunk, runs)

    def _add_residuals(self, e_NO: Tensor, runs: Runs) -> None:
        """Sum e about its mean, which may be much larger than its spread; e is lost."""
        centre_O = e_NO.mean(0)
        e_NO -= centre_O
        apart_N = torch.linalg.vector_norm(e_NO, dim=-1).square()
        self.residuals.add_rows(runs, e_NO, apart_N, centre_O=centre_O.cpu().double().numpy())


def _where_defined(values_N: Tensor) -> tuple[Tensor, Tensor]:
    there_N = ~values_N.isnan()
    return torch.where(there_N, values_N, 0), there_N.to(values_N)


class PrefixSums:
    """Errors of the reconstruction by the first features alone."""

    def __init__(self) -> None:
        self.errors = 0.0
        self.cosines = 0.0
        self.n_cosines = 0

    def add(self, r_NO: Tensor, chunk: TargetChunk) -> None:
        """Sum the reconstructions (N, O) of the tokens of a chunk."""
        found = errors_of(r_NO, chunk)
        cosines_N, there_N = _where_defined(found.cosines_N)
        self.errors += float(found.errors_N.cpu().double().sum())
        self.cosines += float(cosines_N.cpu().double().sum())
        self.n_cosines += int(there_N.sum())


class ActivitySums:
    """Which features fire, how many at once, how strongly."""

    def __init__(self, n_features: int, *, most: int) -> None:
        self.table = ClusterTable(sums=len(ACTIVITY_SUMS), most=most)
        self.fired_D = np.zeros(n_features, dtype=np.int64)
        self.tokens_by_l0: NDArray[np.int64] = np.zeros(n_features + 1, dtype=np.int64)
        self.total = 0.0
        self.largest: float | None = None

    def add(self, acts: SparseActs, runs: Runs) -> None:
        """Count the active features of the tokens of a chunk."""
        # Counts are taken on the host: not every device has float64.
        tokens_M, values_M = acts.tokens_M.cpu(), acts.values_M.cpu().double()
        l0_N = torch.bincount(tokens_M, minlength=acts.n_tokens)
        l1_N = torch.bincount(tokens_M, weights=values_M.abs(), minlength=acts.n_tokens)
        n_features = len(self.fired_D)
        self.fired_D += torch.bincount(acts.features_M.cpu(), minlength=n_features).numpy()
        self.tokens_by_l0 += torch.bincount(l0_N, minlength=n_features + 1).numpy()
        values_KN: Floats = torch.stack([l0_N.double(), l1_N]).numpy()
        self.table.add(runs, runs.sum(values_KN))
        if len(values_M):
            self.total += float(values_M.sum())
            most = float(values_M.max())
            self.largest = most if self.largest is None else max(self.largest, most)
