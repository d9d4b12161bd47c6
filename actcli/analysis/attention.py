"""Where attention heads look on a board: numbers by which heads can be sorted.

Every number is a mean over the samples and queries given. With w the weights of one query over the
keys and s = 1 - sum(w) the mass of its sink (zero in a model without sinks):

    entropy_bits    -sum_k w_k log2 w_k - s log2 s: of the whole distribution, sink included
    mean_distance   sum_k w_k d(q, k) / sum_k w_k, d in steps along rows and columns (Manhattan)
    self_mass       w at the query's own cell
    row_mass        w on the other cells of its row; column_mass: of its column
    corner_mass     w on the four corners
    equal_mass      w on other cells with the same tile, where the query's cell holds one
    empty_mass      w on empty cells
    sink_mass       s

Masses are shares of 1, sink included.

Tensor legend: B samples, L layers, A heads, T queries, S keys.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actcli.errors import DumpError
from actcli.reports.attention import AttentionMaps, AttentionReport, HeadReport, TextMaps

Floats = NDArray[np.float64]


def check_rows_sum_to_one(maps: AttentionMaps | TextMaps) -> None:
    """Refuse weights that are no distribution: a row with its sink must sum to 1.

    Raises:
        DumpError: a weight is negative or not a number, or a row sums to something else.
    """
    for weights_LATS in maps.weights:
        _check_sums(weights_LATS, maps)


def _check_sums(weights_LATS: NDArray[np.float32], maps: AttentionMaps | TextMaps) -> None:
    sums = weights_LATS.sum(axis=-1, dtype=np.float64)
    too_much = float(np.max(sums, initial=0.0))
    too_little = 1.0 if maps.has_sinks else float(np.min(sums, initial=1.0))
    if not np.isfinite(sums).all() or (weights_LATS < 0).any():
        raise DumpError("the attention weights are not a distribution: some are negative or NaN")
    if too_much > 1 + maps.rounding or too_little < 1 - maps.rounding:
        found = too_much if too_much > 1 + maps.rounding else too_little
        raise DumpError(
            f"the attention weights of a query sum to {found:.4f}, expected 1"
            + (" or less, with a sink" if maps.has_sinks else "")
        )


def entropy_bits(weights: NDArray[np.float32], sinks: NDArray[np.float32]) -> Floats:
    """Entropy of each query's distribution in bits: weights (..., T, S), sinks (..., T)."""
    entropy: Floats = _plogp(weights.astype(np.float64)).sum(axis=-1)
    return entropy + _plogp(sinks.astype(np.float64))


def measure_heads(
    maps: AttentionMaps, *, heads: Sequence[int] | None = None, source: str
) -> AttentionReport:
    """Compute the numbers of every layer and head; see the module for their definitions.

    Args:
        maps: the attention; boards must be square for numbers on the board.
        heads: those to report; all by default.
        source: the dump, for the report.
    """
    numbers = {
        "entropy_bits": entropy_bits(maps.weights_BLATS, maps.sinks_BLAT),
        "sink_mass": maps.sinks_BLAT.astype(np.float64),
        "mean_distance": _mean_distance(maps),
    }
    numbers |= {name: _mass(maps, where) for name, where in _regions(maps).items()}
    means_LA = {name: each.mean(axis=(0, 3)) for name, each in numbers.items()}
    wanted = set(maps.heads if heads is None else heads)
    reports = tuple(
        HeadReport(
            layer=layer + 1,
            head=head,
            **{name: float(each[i, j]) for name, each in means_LA.items()},
        )
        for i, layer in enumerate(maps.layers)
        for j, head in enumerate(maps.heads)
        if head in wanted
    )
    return AttentionReport(input=source, samples=maps.samples, heads=reports)


def _plogp(p: Floats) -> Floats:
    """-p log2 p, and 0 where p is 0."""
    logs = np.log2(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(-p * logs)


def _mean_distance(maps: AttentionMaps) -> Floats:
    cells = np.arange(maps.boards_BT.shape[1])
    rows, columns = cells // maps.side, cells % maps.side
    steps_TS = abs(rows[:, None] - rows) + abs(columns[:, None] - columns)
    weights = maps.weights_BLATS.astype(np.float64)
    total = weights.sum(axis=-1)
    moved = np.einsum("blats,ts->blat", weights, steps_TS.astype(np.float64))
    mean_BLAT: Floats = np.divide(moved, total, out=np.zeros_like(total), where=total > 0)
    return mean_BLAT


def _mass(maps: AttentionMaps, where_BTS: NDArray[np.bool_]) -> Floats:
    """The weight on the marked keys, for each query."""
    chosen = where_BTS.astype(np.float64)
    mass_BLAT: Floats = np.einsum("blats,bts->blat", maps.weights_BLATS.astype(np.float64), chosen)
    return mass_BLAT


def _regions(maps: AttentionMaps) -> dict[str, NDArray[np.bool_]]:
    """Which keys count for which mass: (B, T, S) each."""
    boards, side = maps.boards_BT, maps.side
    n_cells = boards.shape[1]
    cells = np.arange(n_cells)
    rows, columns = cells // side, cells % side
    itself = np.eye(n_cells, dtype=bool)
    corners = np.isin(rows, (0, side - 1)) & np.isin(columns, (0, side - 1))
    same_tile = (boards[:, :, None] == boards[:, None, :]) & (boards[:, :, None] > 0)
    on_board = {
        "self_mass": itself,
        "row_mass": (rows[:, None] == rows) & ~itself,
        "column_mass": (columns[:, None] == columns) & ~itself,
        "corner_mass": np.broadcast_to(corners, (n_cells, n_cells)),
    }
    by_sample = {
        "equal_mass": same_tile & ~itself,
        "empty_mass": np.broadcast_to((boards == 0)[:, None, :], (len(boards), n_cells, n_cells)),
    }
    every = (len(boards), n_cells, n_cells)
    return {name: np.broadcast_to(each, every) for name, each in on_board.items()} | by_sample
