"""Players of 2048 and whole games: to the end for scores, without end for positions.

Array legend: G games, M moves, N positions.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from actcli.demo.game2048 import Boards, first_boards, move_all, spawn, unpack
from actcli.demo.teacher2048 import judge

Moves = NDArray[np.int64]
Legal = NDArray[np.bool_]
Player = Callable[[Boards, Legal], Moves]


class Games:
    """Games side by side; `advance` plays one move in each.

    A game's tiles depend on its seed and its moves only, not on its neighbours.
    """

    def __init__(self, seeds_G: Boards) -> None:
        self.seeds_G = seeds_G.copy()
        self.boards_G = first_boards(seeds_G)
        self.turns_G = np.zeros_like(seeds_G)
        self.scores_G = np.zeros(len(seeds_G), dtype=np.int64)

    @property
    def legal(self) -> Legal:
        """Which moves change the board, (G, M)."""
        return move_all(self.boards_G).legal

    @property
    def alive(self) -> Legal:
        """Which games have a legal move left, (G,)."""
        return np.asarray(self.legal.any(axis=1))

    def advance(self, moves_G: Moves, *, where_G: Legal) -> None:
        """Play a legal move in the games of `where_G` and let a tile appear there."""
        games = np.flatnonzero(where_G)
        moved = move_all(self.boards_G[games])
        chosen = (np.arange(len(games)), moves_G[games])
        assert moved.legal[chosen].all(), "a player chose a move that changes nothing"
        self.scores_G[games] += moved.rewards[chosen]
        self.boards_G[games] = spawn(
            moved.boards[chosen], seeds_G=self.seeds_G[games], turns_G=self.turns_G[games]
        )
        self.turns_G[games] += np.uint64(1)

    def restart(self, *, where_G: Legal) -> None:
        """Begin new games where `where_G`: the seed grows by the number of games."""
        fresh = Games(self.seeds_G[where_G] + np.uint64(len(self.seeds_G)))
        self.seeds_G[where_G], self.boards_G[where_G] = fresh.seeds_G, fresh.boards_G
        self.turns_G[where_G], self.scores_G[where_G] = fresh.turns_G, fresh.scores_G


def seeds_from(first: int, *, count: int) -> Boards:
    """Return `count` game seeds in a row, (G,)."""
    return np.arange(first, first + count, dtype=np.uint64)


def final_scores(player: Player, *, seeds_G: Boards) -> NDArray[np.int64]:
    """Play each game to its end and return the scores, (G,)."""
    games = Games(seeds_G)
    while (alive_G := games.alive).any():
        games.advance(_moves(player, games=games, where_G=alive_G), where_G=alive_G)
    return games.scores_G


def positions_from(player: Player, *, seeds_G: Boards, n_positions: int) -> Boards:
    """Return the boards that a player meets, (N,); a game that ends makes way for a new one."""
    games, met = Games(seeds_G), []
    for _ in range(-(-n_positions // len(seeds_G))):
        games.restart(where_G=~games.alive)
        met.append(games.boards_G.copy())
        alive_G = games.alive
        games.advance(_moves(player, games=games, where_G=alive_G), where_G=alive_G)
    return np.concatenate(met)[:n_positions]


def teacher(boards_G: Boards, _legal_GM: Legal) -> Moves:
    """Play as the search does."""
    return judge(boards_G).best


def random_player(rng: np.random.Generator) -> Player:
    """Make a player that draws one of the legal moves."""

    def play(_boards_G: Boards, legal_GM: Legal) -> Moves:
        draws_GM = np.where(legal_GM, rng.random(legal_GM.shape), -1.0)
        return np.asarray(draws_GM.argmax(axis=1))

    return play


def distracted(player: Player, *, rng: np.random.Generator, share: float) -> Player:
    """Make a player that plays a random move in this share of turns, so as to meet odd boards."""
    at_random = random_player(rng)

    def play(boards_G: Boards, legal_GM: Legal) -> Moves:
        slips_G = rng.random(len(boards_G)) < share
        return np.where(slips_G, at_random(boards_G, legal_GM), player(boards_G, legal_GM))

    return play


def greedy(model: nn.Module) -> Player:
    """Make a player that takes the legal move with the model's largest logit."""

    def play(boards_G: Boards, legal_GM: Legal) -> Moves:
        return greedy_moves(model, boards_G=boards_G, legal_GM=legal_GM)

    return play


def _moves(player: Player, *, games: Games, where_G: Legal) -> Moves:
    """Ask for a move in the games of `where_G`; 0 elsewhere, (G,)."""
    moves_G = np.zeros(len(where_G), dtype=np.int64)
    moves_G[where_G] = player(games.boards_G[where_G], games.legal[where_G])
    return moves_G


def greedy_moves(model: nn.Module, *, boards_G: Boards, legal_GM: Legal) -> Moves:
    """Return the legal move with the model's largest logit for each board, (G,)."""
    with torch.inference_mode():
        logits_GM = model(torch.from_numpy(unpack(boards_G)).long()).numpy()
    return np.asarray(np.where(legal_GM, logits_GM, -np.inf).argmax(axis=1))
