"""The fast engine against a slow one that slides a list of cells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.demo.game2048 import first_boards, move_all, pack, spawn, transpose, unpack
from actcli.models.encoder2048 import MOVES

exponents = st.lists(st.integers(0, 15), min_size=16, max_size=16)
few_exponents = st.lists(st.integers(0, 3), min_size=16, max_size=16)
some_boards = st.lists(exponents | few_exponents, min_size=1, max_size=20)


def packed(cells_by_board):
    return pack(np.array(cells_by_board, dtype=np.uint8))


def slow_slide(line):
    """Slide a list of four exponents to its start; return the line and the reward."""
    tiles = [tile for tile in line if tile]
    slid, reward = [], 0
    while tiles:
        tile = tiles.pop(0)
        if tiles and tiles[0] == tile < 15:
            tiles.pop(0)
            tile += 1
            reward += 2**tile
        slid.append(tile)
    return slid + [0] * (4 - len(slid)), reward


def slow_move(cells, move):
    """Move a board, a list of 16 exponents, by walking its cells in Python."""
    board, reward = list(cells), 0
    for lane in range(4):
        along = [4 * i + lane for i in range(4)] if move in ("up", "down") else None
        along = along or [4 * lane + i for i in range(4)]
        along = along[::-1] if move in ("down", "right") else along
        line, gained = slow_slide([board[cell] for cell in along])
        reward += gained
        for cell, tile in zip(along, line, strict=True):
            board[cell] = tile
    return board, reward


@given(some_boards)
def test_moves_equal_the_slow_ones(cells_by_board):
    moved = move_all(packed(cells_by_board))
    for game, cells in enumerate(cells_by_board):
        for number, move in enumerate(MOVES):
            board, reward = slow_move(cells, move)
            assert unpack(moved.boards[game, number]).tolist() == board
            assert moved.rewards[game, number] == reward
            assert moved.legal[game, number] == (board != cells)


@given(some_boards)
def test_unpack_undoes_pack(cells_by_board):
    assert unpack(packed(cells_by_board)).tolist() == cells_by_board


def test_the_first_cell_is_in_the_top_four_bits():
    assert packed([list(range(16))])[0] == 0x0123456789ABCDEF


@given(some_boards)
def test_transpose_makes_rows_columns(cells_by_board):
    grids = unpack(transpose(packed(cells_by_board))).reshape(-1, 4, 4)
    assert (grids == np.array(cells_by_board).reshape(-1, 4, 4).transpose(0, 2, 1)).all()


def test_two_largest_tiles_do_not_merge():
    assert unpack(move_all(packed([[15, 15, *[0] * 14]])).boards[0, 2]).tolist()[:2] == [15, 15]


def test_spawn_fills_every_empty_cell_alike_and_one_in_ten_with_a_four():
    n_draws = 20_000
    before = packed([[1, 0, 2, 0, 3, 0, 4, 0] * 2] * n_draws)
    after = unpack(spawn(before, seeds_G=np.arange(n_draws, dtype=np.uint64), turns_G=before))
    new = after.astype(int) - unpack(before)
    assert (np.count_nonzero(new, axis=1) == 1).all()
    counts = np.count_nonzero(new, axis=0)
    assert counts[0::2].tolist() == [0] * 8
    assert counts[1::2] == pytest.approx([n_draws / 8] * 8, rel=0.1)
    assert (new == 2).sum() == pytest.approx(n_draws / 10, rel=0.1)


def test_spawn_depends_on_the_turn_and_the_seed():
    boards = np.zeros(200, dtype=np.uint64)
    zeros, numbers = np.zeros_like(boards), np.arange(200, dtype=np.uint64)
    assert len(set(spawn(boards, seeds_G=zeros, turns_G=numbers))) > 16
    assert len(set(spawn(boards, seeds_G=numbers, turns_G=zeros))) > 16
    assert len(set(spawn(boards, seeds_G=zeros, turns_G=zeros))) == 1


def test_a_game_begins_with_two_tiles():
    cells = unpack(first_boards(np.arange(100, dtype=np.uint64)))
    assert (np.count_nonzero(cells, axis=1) == 2).all()
    assert set(cells[cells > 0].tolist()) == {1, 2}
