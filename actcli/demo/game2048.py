"""Rules of 2048, for many games at once.

A board is one uint64: cell i (row-major, 0 = top left) holds the exponent of its tile (0 = empty)
in bits 63-4i..60-4i, which is also the `board` field of a steps row. Moves are looked up line by
line in tables of all 65,536 lines. A tile of 32768 (exponent 15) is the largest that four bits
hold, so two of them do not merge here.

Array legend: G games or boards, M moves (in the order of `MOVES`: up, down, left, right),
C cells (16), R rows (4).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Boards = NDArray[np.uint64]
Lines = NDArray[np.uint16]

N_MOVES = 4
N_LINES = 1 << 16
TOP_EXPONENT = 15
FOUR_PROBABILITY = 0.1
CELL_SHIFTS_C = np.arange(60, -1, -4, dtype=np.uint64)
ROW_SHIFTS = tuple(np.uint64(shift) for shift in (48, 32, 16, 0))


class Moved(NamedTuple):
    """What the four moves make of each board, before a new tile appears; each field is (G, M)."""

    boards: Boards
    rewards: NDArray[np.int64]
    legal: NDArray[np.bool_]


def pack(exponents_GC: NDArray[np.uint8]) -> Boards:
    """Return boards (G,) for exponents (G, 16), each at most 15."""
    shifted_GC = exponents_GC.astype(np.uint64) << CELL_SHIFTS_C
    return np.asarray(np.bitwise_or.reduce(shifted_GC, axis=-1))


def unpack(boards_G: Boards) -> NDArray[np.uint8]:
    """Return the exponents of the cells, (G, 16); the inverse of `pack`."""
    return ((boards_G[..., None] >> CELL_SHIFTS_C) & np.uint64(0xF)).astype(np.uint8)


def transpose(boards_G: Boards) -> Boards:
    """Mirror boards on the main diagonal: rows become columns."""
    swapped_G = _swap_bits(boards_G, mask=0x0000F0F00000F0F0, distance=12)
    return _swap_bits(swapped_G, mask=0x00000000FF00FF00, distance=24)


def lines_of(boards_G: Boards) -> list[Lines]:
    """Return the four rows of each board, top first, the leftmost cell in the top four bits."""
    return [((boards_G >> shift) & np.uint64(0xFFFF)).astype(np.uint16) for shift in ROW_SHIFTS]


def all_lines() -> NDArray[np.uint8]:
    """Return the four exponents of every line, (65536, 4), in the order of the line's number."""
    return unpack(np.arange(N_LINES, dtype=np.uint64))[:, 12:]


def move_all(boards_G: Boards) -> Moved:
    """Try the four moves on every board; an illegal move leaves the board as it is, reward 0."""
    turned_G = transpose(boards_G)
    up_G, up_reward_G = _slide(turned_G, toward_end=False)
    down_G, down_reward_G = _slide(turned_G, toward_end=True)
    left_G, left_reward_G = _slide(boards_G, toward_end=False)
    right_G, right_reward_G = _slide(boards_G, toward_end=True)
    boards_GM = np.stack([transpose(up_G), transpose(down_G), left_G, right_G], axis=1)
    rewards_GM = np.stack([up_reward_G, down_reward_G, left_reward_G, right_reward_G], axis=1)
    return Moved(boards_GM, rewards_GM, boards_GM != boards_G[:, None])


def spawn(boards_G: Boards, *, seeds_G: Boards, turns_G: Boards) -> Boards:
    """Put a 2 (or, one time in ten, a 4) on a random empty cell of each board.

    The draw depends on the game's seed and turn only, so a game can be played again by itself.
    Every board must have an empty cell.
    """
    bits_G = _mix(_mix(seeds_G) + turns_G)
    empty_GC = unpack(boards_G) == 0
    assert empty_GC.any(axis=1).all(), "a new tile needs an empty cell"
    wanted_G = _uniform(bits_G) * empty_GC.sum(axis=1)
    cell_G = (empty_GC.cumsum(axis=1) > wanted_G[:, None]).argmax(axis=1)
    exponent_G = np.where(_uniform(_mix(bits_G)) < FOUR_PROBABILITY, 2, 1).astype(np.uint64)
    return np.asarray(boards_G | exponent_G << CELL_SHIFTS_C[cell_G])


def first_boards(seeds_G: Boards) -> Boards:
    """Return starting boards: two tiles each, drawn at the turns -2 and -1 (modulo 2^64)."""
    boards_G = np.zeros_like(seeds_G)
    for turns_before in (2, 1):
        turns_G = np.zeros_like(seeds_G) - np.uint64(turns_before)
        boards_G = spawn(boards_G, seeds_G=seeds_G, turns_G=turns_G)
    return boards_G


def _slide(boards_G: Boards, *, toward_end: bool) -> tuple[Boards, NDArray[np.int64]]:
    """Slide every row toward its start or its end; return the boards and the rewards."""
    result_of_line, reward_of_line = _slide_tables(toward_end=toward_end)
    slid_G = np.zeros_like(boards_G)
    reward_G = np.zeros(boards_G.shape, dtype=np.int64)
    for line_G, shift in zip(lines_of(boards_G), ROW_SHIFTS, strict=True):
        slid_G |= result_of_line[line_G] << shift
        reward_G += reward_of_line[line_G]
    return slid_G, reward_G


@cache
def _slide_tables(*, toward_end: bool) -> tuple[Boards, NDArray[np.int64]]:
    """Return, for every line, the line after the slide and the reward."""
    cells = all_lines()[:, ::-1] if toward_end else all_lines()
    slid, reward = _slide_cells(cells)
    slid = slid[:, ::-1] if toward_end else slid
    return pack(np.pad(slid, ((0, 0), (12, 0)))), reward


def _slide_cells(cells: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Slide lines (n, 4) toward cell 0: close the gaps, merge equal pairs once, close again."""
    cells, reward = _close_gaps(cells), np.zeros(len(cells), dtype=np.int64)
    for left in range(3):
        here, there = cells[:, left], cells[:, left + 1]
        merges = (here == there) & (here > 0) & (here < TOP_EXPONENT)
        cells[merges, left] += 1
        cells[merges, left + 1] = 0
        reward[merges] += 1 << cells[merges, left].astype(np.int64)
    return _close_gaps(cells), reward


def _close_gaps(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Move the tiles of each line to its start and keep their order."""
    order = np.argsort(cells == 0, axis=1, kind="stable")
    return np.take_along_axis(cells, order, axis=1)


def _swap_bits(boards_G: Boards, *, mask: int, distance: int) -> Boards:
    """Swap the bits under `mask` with those `distance` places above them."""
    shift = np.uint64(distance)
    changed_G = (boards_G ^ (boards_G >> shift)) & np.uint64(mask)
    return np.asarray(boards_G ^ changed_G ^ (changed_G << shift))


def _mix(bits_G: Boards) -> Boards:
    """Scramble 64-bit numbers with the splitmix64 finaliser."""
    bits_G = bits_G + np.uint64(0x9E3779B97F4A7C15)
    bits_G = (bits_G ^ (bits_G >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_G = (bits_G ^ (bits_G >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_G ^ (bits_G >> np.uint64(31))


def _uniform(bits_G: Boards) -> NDArray[np.float64]:
    """Turn 64 random bits into a number in [0, 1)."""
    return (bits_G >> np.uint64(11)).astype(np.float64) * 2.0**-53
