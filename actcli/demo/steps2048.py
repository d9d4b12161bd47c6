"""Rows of a steps file, and the held-out games of the teacher that the package ships.

Array legend: G games, N rows, M moves.
"""

import numpy as np
from numpy.typing import NDArray

from actcli.demo.game2048 import N_MOVES, Boards, unpack
from actcli.demo.play2048 import Games
from actcli.demo.teacher2048 import evaluate, judge

Rows = NDArray[np.void]

STEP_ROW_DTYPE = np.dtype(
    [
        ("run_id", "<u4"),
        ("step_index", "<u4"),
        ("board", "<u8"),
        ("board_eval", "<i4"),
        ("tile_65536_mask", "<u2"),
        ("move_dir", "u1"),
        ("valuation_type", "u1"),
        ("ev_legal", "u1"),
        ("max_rank", "u1"),
        ("seed", "<u4"),
        ("branch_evs", "<f4", (N_MOVES,)),
    ],
    align=True,
)
"""One move of one game, 48 bytes.

`run_id` number of the game, `seed` its seed; `step_index` the turn, from 0; `board` before the
move; `board_eval` the teacher's static value of it; `move_dir` the move played (0 up, 1 down,
2 left, 3 right); `branch_evs` the teacher's value of each move, 0 where illegal; bit m of
`ev_legal` says that move m is legal; `max_rank` the largest exponent on the board;
`tile_65536_mask` and `valuation_type` are 0 here: no such tile, one kind of value.
"""


def teacher_games(seeds_G: Boards) -> tuple[Rows, NDArray[np.int64]]:
    """Let the teacher play each game to its end; return all rows, game by game, and the scores."""
    games, turns = Games(seeds_G), []
    while (alive_G := games.alive).any():
        rows = _rows_of(games, where_G=alive_G)
        turns.append(rows)
        moves_G = np.zeros(len(seeds_G), dtype=np.int64)
        moves_G[alive_G] = rows["move_dir"]
        games.advance(moves_G, where_G=alive_G)
    rows = np.concatenate(turns)
    return rows[np.lexsort((rows["step_index"], rows["run_id"]))], games.scores_G


def thinned(rows: Rows, *, n_rows: int) -> Rows:
    """Return `n_rows` rows at even distances, in their order."""
    return rows[np.arange(n_rows) * len(rows) // n_rows]


def legal_of(rows: Rows) -> NDArray[np.bool_]:
    """Return which moves are legal in each row, (N, 4)."""
    return (rows["ev_legal"][:, None] >> np.arange(N_MOVES) & 1).astype(bool)


def _rows_of(games: Games, *, where_G: NDArray[np.bool_]) -> Rows:
    """Describe the next move of the games of `where_G`."""
    boards_N = games.boards_G[where_G]
    opinion = judge(boards_N)
    rows = np.zeros(len(boards_N), dtype=STEP_ROW_DTYPE)
    rows["run_id"] = np.flatnonzero(where_G)
    rows["step_index"] = games.turns_G[where_G]
    rows["board"] = boards_N
    rows["board_eval"] = np.rint(evaluate(boards_N))
    rows["move_dir"] = opinion.best
    rows["ev_legal"] = opinion.legal @ (1 << np.arange(N_MOVES))
    rows["max_rank"] = unpack(boards_N).max(axis=1)
    rows["seed"] = games.seeds_G[where_G]
    rows["branch_evs"] = opinion.values
    return rows
