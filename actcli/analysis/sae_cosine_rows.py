"""Rows of a matrix as directions, exactly and rounded, with bounds on what rounding does.

The cosine of rows i and j is w_i . w_j / (|w_i| |w_j|), in float64 from the weights as they are:
`Directions.cosines`. That is dear, so most pairs are judged by a cheaper product of rounded rows:
`RoundedRows`.

**The bound.** u is a row of length 1, C some of its coordinates, t = |u outside C| and
p = |u in C|. v is u in C, rounded to float32 or bfloat16, and e = |v - u in C| what that changed,
measured in float64 for each row (for bfloat16 at most p 2^-8, in the mean half of that). Since
any choice of coordinates splits a scalar product into two, Cauchy and Schwarz give

    |u_i . u_j - v_i . v_j| <= t_i t_j + e_i p_j + p_i e_j + e_i e_j

The machine computes v_i . v_j with products and sums in float32, in any order: that adds at most
2 (c + 8) 2^-24 q, with c coordinates and q = (p_i + e_i) (p_j + e_j) >= sum |v_i| |v_j|; the factor
2 covers units that round each partial sum twice, or towards 0. If the product is itself stored in
bfloat16 it is off by 2^-8 of itself, at most 2^-8 q. The sum of all of these is `slack`. It is
taken over the largest t, p and e of a block of rows, and widened by 1e-12 for the float64 sums
behind them. Numbers that are too small for float32 (below 2^-126) may become 0: that is below 1e-12
too, for any width.

Tensor legend: D rows, O width, R rows with a direction, C coordinates of them, P pairs, I and J
rows of two blocks.
"""

from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

_PAIRS = 128
"""Pairs at a time in `cosines`: their rows stay in the processor's cache."""

_CHUNK = 1 << 20
"""Elements at a time in float64."""

_PROBE = 512
_SLACK_OF_SUMS = 1e-12


class Directions:
    """The rows of a matrix that are not 0, and their lengths."""

    def __init__(self, W_DO: Tensor) -> None:
        """Measure every row of W (D, O), in float64."""
        device = W_DO.device
        self._W_DO = W_DO.detach()
        self.norms_D = torch.empty(len(W_DO), dtype=torch.float64, device=device)
        self.energy_O = torch.zeros(W_DO.shape[1], dtype=torch.float64, device=device)
        """Sum of squares of each coordinate, over the rows of length 1."""

        for chunk in chunks(len(W_DO), W_DO.shape[1]):
            squares_CO = self._W_DO[chunk].double().square_()
            squares_C = squares_CO.sum(1)
            self.norms_D[chunk] = squares_C.sqrt()
            self.energy_O += torch.where(squares_C > 0, 1 / squares_C, 0.0) @ squares_CO
        self.index_R = self.norms_D.nonzero().squeeze(1)
        """Which row of W each is."""

    def __len__(self) -> int:
        """Return how many rows have a direction."""
        return len(self.index_R)

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return self._W_DO.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._W_DO.device

    def reorder(self, order_R: Tensor) -> None:
        """Number the rows anew."""
        self.index_R = self.index_R[order_R]

    def unit(self, rows: slice | Tensor, columns_C: Tensor | None = None) -> Tensor:
        """Return some rows with length 1, or some coordinates of them, in float64."""
        index_I = self.index_R[rows]
        weights_IO = self._W_DO[index_I]
        kept_IC = weights_IO if columns_C is None else weights_IO[:, columns_C]
        return kept_IC.double() / self.norms_D[index_I, None]

    def cosines(self, first_P: Tensor, second_P: Tensor) -> Tensor:
        """Return the cosines of pairs of rows (P,), in float64: the numbers that decide."""
        found_P = torch.empty(len(first_P), dtype=torch.float64, device=self.device)
        for start in range(0, len(first_P), _PAIRS):
            pairs = slice(start, start + _PAIRS)
            first, second = self.index_R[first_P[pairs]], self.index_R[second_P[pairs]]
            rows_PO, others_PO = self._W_DO[first].double(), self._W_DO[second].double()
            products_P = torch.linalg.vecdot(rows_PO, others_PO)
            found_P[pairs] = products_P / self.norms_D[first] / self.norms_D[second]
        return found_P.clamp_(-1, 1)


@dataclass(frozen=True)
class RoundedRows:
    """All rows with length 1, some coordinates of them, rounded; see the module for the bound."""

    rows_RC: Tensor
    tails_R: Tensor
    """t: length of what was left out."""

    lengths_R: Tensor
    """p: length of what is there."""

    errors_R: Tensor
    """e: length of what rounding changed."""

    @classmethod
    def of(
        cls, directions: Directions, *, columns_C: Tensor | None = None, dtype: torch.dtype
    ) -> "RoundedRows":
        """Round the rows; all coordinates, unless some are given."""
        n, width = len(directions), directions.width
        shape = n, width if columns_C is None else len(columns_C)
        rows_RC = torch.empty(shape, dtype=dtype, device=directions.device)
        tails_R, lengths_R, errors_R = directions.norms_D.new_zeros(3, n)
        for chunk in chunks(n, width):
            unit_IC = directions.unit(chunk, columns_C)
            lengths_R[chunk] = torch.linalg.vector_norm(unit_IC, dim=1)
            rows_RC[chunk] = unit_IC.to(dtype)
            errors_R[chunk] = unit_IC.sub_(rows_RC[chunk]).square_().sum(1).sqrt()
        if columns_C is None:
            return cls(rows_RC, tails_R, lengths_R, errors_R)
        rest_R = (1 - lengths_R.square()).clamp_min_(0)
        return cls(rows_RC, (rest_R + _SLACK_OF_SUMS).sqrt(), lengths_R, errors_R)

    def product(self, rows: slice, others: slice) -> Tensor:
        """Return the products of two blocks of rows (I, J)."""
        return self.rows_RC[rows] @ self.rows_RC[others].T

    def slack(self, rows: slice, others: slice, *, stored: bool = True) -> float:
        """Return how far any element of `product` may be from the cosine.

        Without `stored`, what storing the product in bfloat16 adds is left out.
        """
        tail, length, error = self._largest(rows)
        other_tail, other_length, other_error = self._largest(others)
        left_out = tail * other_tail
        rounding = error * other_length + length * other_error + error * other_error
        q = (length + error) * (other_length + other_error)
        of_machine = 2 * (self.rows_RC.shape[1] + 8) * 2.0**-24
        if stored and self.rows_RC.dtype == torch.bfloat16:
            of_machine += 2.0**-8 * (1 + of_machine)
        return left_out + rounding + of_machine * q + _SLACK_OF_SUMS

    def _largest(self, rows: slice) -> tuple[float, float, float]:
        table = torch.stack([self.tails_R[rows], self.lengths_R[rows], self.errors_R[rows]])
        tail, length, error = table.amax(1).tolist()
        return tail, length, error


def chunks(n: int, width: int) -> list[slice]:
    """Cut n rows into slices that hold about a million elements."""
    step = max(1, _CHUNK // max(1, width))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return which of float32 and bfloat16 this machine multiplies faster.

    Results do not depend on it. On a GPU it is float32, which is fast enough there.
    """
    if device.type == "cpu" and _bfloat16_is_faster():
        return torch.bfloat16
    return torch.float32


@cache
def _bfloat16_is_faster() -> bool:
    plain, half = _seconds(torch.float32), _seconds(torch.bfloat16)
    return half < 0.75 * plain


def _seconds(dtype: torch.dtype) -> float:
    block = torch.ones(_PROBE, _PROBE, dtype=dtype)
    times = []
    for _ in range(4):
        began = perf_counter()
        block @ block
        times.append(perf_counter() - began)
    return min(times)
