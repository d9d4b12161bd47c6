"""The search player that the demo model learns from: expectimax over a line-by-line evaluation.

A move is worth its best outcome over: our move, every tile that may appear, our next move, and
then the evaluation of the board reached. The evaluation adds up one table entry per row and per
column and wants both to fall from the top left corner, so the teacher keeps its large tiles there
and plays boards mirrored on the main diagonal alike.

Array legend: G boards, M moves, R replies (a board after one tile appeared).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.demo.game2048 import (
    CELL_SHIFTS_C,
    FOUR_PROBABILITY,
    N_MOVES,
    Boards,
    all_lines,
    lines_of,
    move_all,
    transpose,
    unpack,
)

Floats = NDArray[np.float64]

VALUE_WHEN_LOST = 0.0


class Weights(NamedTuple):
    """How much each trait of a line counts."""

    base: float = 25000.0
    empty: float = 270.0
    merge: float = 600.0
    disorder: float = 5.0
    disorder_power: float = 3.5
    tiles: float = 10.0
    tiles_power: float = 3.0


class Opinion(NamedTuple):
    """The value of each move on each board (0 if illegal) and which are legal, both (G, M)."""

    values: Floats
    legal: NDArray[np.bool_]

    @property
    def best(self) -> NDArray[np.int64]:
        """The best legal move, (G,); the first of equals, meaningless where no move is legal."""
        return np.asarray(np.where(self.legal, self.values, -np.inf).argmax(axis=1))


def judge(boards_G: Boards) -> Opinion:
    """Value every move of every board by the search described above."""
    moved = move_all(boards_G)
    legal_GM = moved.legal
    values_GM = np.zeros(legal_GM.shape)
    values_GM[legal_GM] = _expected_reply(moved.boards[legal_GM])
    return Opinion(values_GM, legal_GM)


def evaluate(boards_G: Boards) -> Floats:
    """Return the static value of boards: the sum over their rows and columns."""
    table = line_values(Weights())
    lines = lines_of(boards_G) + lines_of(transpose(boards_G))
    value_G = table[lines[0]]
    for line_G in lines[1:]:
        value_G += table[line_G]
    return value_G


def _expected_reply(boards_G: Boards) -> Floats:
    """Return the mean, over the tile that appears, of the value after our best next move."""
    board_R, cell_R = np.nonzero(unpack(boards_G) == 0)
    share_R = 1.0 / np.bincount(board_R, minlength=len(boards_G))[board_R]
    value_G = np.zeros(len(boards_G))
    for exponent, probability in ((1, 1 - FOUR_PROBABILITY), (2, FOUR_PROBABILITY)):
        replies_R = boards_G[board_R] | np.uint64(exponent) << CELL_SHIFTS_C[cell_R]
        worth_R = _best_next(replies_R) * share_R * probability
        value_G += np.bincount(board_R, weights=worth_R, minlength=len(boards_G))
    return value_G


def _best_next(boards_G: Boards) -> Floats:
    """Return the static value after the best move; `VALUE_WHEN_LOST` where there is none."""
    moved = move_all(boards_G)
    best_G = np.full(len(boards_G), VALUE_WHEN_LOST)
    for move in range(N_MOVES):
        value_G = evaluate(moved.boards[:, move])
        better_G = moved.legal[:, move] & (value_G > best_G)
        best_G[better_G] = value_G[better_G]
    return best_G


@cache
def line_values(weights: Weights) -> Floats:
    """Return the value of every line, (65536,).

    base + empty * (empty cells) + merge * (equal neighbours)
    - tiles * sum(e^tiles_power) - disorder * (what rises along the line), where a step up from
    a to b counts b^disorder_power - a^disorder_power.
    """
    cells = all_lines().astype(np.float64)
    steps = np.diff(cells**weights.disorder_power, axis=1)
    rises = np.clip(steps, 0, None).sum(axis=1)
    equal_pairs = ((np.diff(cells, axis=1) == 0) & (cells[:, 1:] > 0)).sum(axis=1)
    return np.asarray(
        weights.base
        + weights.empty * (cells == 0).sum(axis=1)
        + weights.merge * equal_pairs
        - weights.tiles * (cells**weights.tiles_power).sum(axis=1)
        - weights.disorder * rises
    )
