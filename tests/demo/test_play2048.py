"""Whole games: scores, independence of neighbours, and what is recorded."""

import numpy as np

from actcli.demo import steps2048
from actcli.demo.game2048 import move_all, unpack
from actcli.demo.learn2048 import symmetries
from actcli.demo.play2048 import (
    Games,
    distracted,
    final_scores,
    positions_from,
    random_player,
    seeds_from,
    teacher,
)
from actcli.demo.steps2048 import legal_of
from actcli.demo.teacher2048 import Opinion


def first_legal(_boards, legal):
    return legal.argmax(axis=1)


def test_a_game_does_not_depend_on_its_neighbours():
    together = final_scores(first_legal, seeds_G=seeds_from(3, count=6))
    alone = [final_scores(first_legal, seeds_G=seeds_from(3 + i, count=1))[0] for i in range(6)]
    assert together.tolist() == alone


def test_scores_add_up_the_merges():
    games = Games(seeds_from(0, count=1))
    total = 0
    while games.alive[0]:
        move = first_legal(games.boards_G, games.legal)
        total += move_all(games.boards_G).rewards[0, move[0]]
        games.advance(move, where_G=games.alive)
    assert total == games.scores_G[0] > 0


def test_positions_go_on_with_new_games():
    rng = np.random.default_rng(0)
    boards = positions_from(random_player(rng), seeds_G=seeds_from(0, count=4), n_positions=2001)
    assert len(boards) == 2001
    assert ((unpack(boards) > 0).sum(axis=1) == 2).sum() > 8
    assert move_all(boards).legal.any(axis=1).all()


def test_a_distracted_player_slips_in_the_given_share():
    rng = np.random.default_rng(0)
    legal = np.ones((4000, 4), dtype=bool)
    player = distracted(first_legal, rng=rng, share=0.2)
    moves = player(np.zeros(4000, dtype=np.uint64), legal)
    assert abs((moves > 0).mean() - 0.15) < 0.02


def hasty(boards):
    """Judge by the reward of the move alone; such games are over soon."""
    moved = move_all(boards)
    return Opinion(moved.rewards.astype(float), moved.legal)


def test_rows_tell_the_game(monkeypatch):
    monkeypatch.setattr(steps2048, "judge", hasty)
    rows, scores = steps2048.teacher_games(seeds_from(5, count=2))
    assert (np.diff(rows["run_id"].astype(int)) >= 0).all()
    for run, score in enumerate(scores):
        game = rows[rows["run_id"] == run]
        assert game["step_index"].tolist() == list(range(len(game)))
        assert set(game["seed"]) == {5 + run}
        moved = move_all(game["board"])
        assert moved.rewards[np.arange(len(game)), game["move_dir"]].sum() == score
        assert (moved.legal == legal_of(game)).all()


def test_thinned_rows_are_evenly_spread():
    rows = np.zeros(1000, dtype=steps2048.STEP_ROW_DTYPE)
    rows["step_index"] = np.arange(1000)
    assert steps2048.thinned(rows, n_rows=100)["step_index"].tolist() == list(range(0, 1000, 10))
    assert set(np.diff(steps2048.thinned(rows, n_rows=300)["step_index"])) == {3, 4}


def test_the_mirrored_board_has_its_moves_mirrored():
    boards = positions_from(teacher, seeds_G=seeds_from(9, count=4), n_positions=400)
    cells, moves = (symmetry.numpy() for symmetry in symmetries())
    grids = unpack(boards)
    mirrored = grids[:, cells[1]].reshape(-1, 4, 4)
    assert (mirrored == grids.reshape(-1, 4, 4).transpose(0, 2, 1)).all()
    assert moves.tolist() == [[0, 1, 2, 3], [2, 3, 0, 1]]
