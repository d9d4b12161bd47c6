"""The vectorised search against a plain recursive one."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcli.demo.game2048 import move_all, pack, transpose, unpack
from actcli.demo.teacher2048 import Weights, evaluate, judge

boards = st.lists(st.integers(0, 11) | st.just(0), min_size=16, max_size=16).map(
    lambda cells: pack(np.array([cells], dtype=np.uint8))
)


def slow_value(cells):
    """Evaluate a board of 16 exponents, line by line and pair by pair."""
    weights, value = Weights(), 0.0
    grid = np.array(cells).reshape(4, 4).tolist()
    for line in grid + [list(column) for column in zip(*grid, strict=True)]:
        value += weights.base + weights.empty * line.count(0)
        value -= weights.tiles * sum(tile**weights.tiles_power for tile in line)
        for left, right in pairwise(line):
            value += weights.merge * (left == right > 0)
            step = right**weights.disorder_power - left**weights.disorder_power
            value -= weights.disorder * max(0.0, step)
    return value


def slow_judge(board):
    """Return the value of each move of one board by recursion; None where illegal."""
    moved = move_all(board)
    return [
        slow_expectation(moved.boards[0, move]) if moved.legal[0, move] else None
        for move in range(4)
    ]


def slow_expectation(board):
    cells = unpack(board).tolist()
    empty = [cell for cell, tile in enumerate(cells) if tile == 0]
    total = 0.0
    for cell in empty:
        for tile, probability in ((1, 0.9), (2, 0.1)):
            reply = pack(np.array([[*cells[:cell], tile, *cells[cell + 1 :]]], dtype=np.uint8))
            moved = move_all(reply)
            values = [slow_value(unpack(b).tolist()) for b in moved.boards[0][moved.legal[0]]]
            total += probability * max([0.0, *values]) / len(empty)
    return total


@given(boards)
def test_evaluation_equals_the_slow_one(board):
    assert evaluate(board)[0] == pytest.approx(slow_value(unpack(board)[0].tolist()))


@given(boards)
@settings(max_examples=15)
def test_search_equals_the_recursive_one(board):
    opinion, expected = judge(board), slow_judge(board)
    assert opinion.legal[0].tolist() == [value is not None for value in expected]
    assert opinion.values[0] == pytest.approx([value or 0.0 for value in expected])


@given(boards)
def test_a_mirrored_board_is_judged_alike(board):
    values, mirrored = judge(board).values[0], judge(transpose(board)).values[0]
    assert mirrored == pytest.approx(values[[2, 3, 0, 1]])
