"""How the encoder learns the teacher's moves.

Lessons are boards with the teacher's value of each move. The model is fitted to the softmax of
those values, so a move that is nearly as good as the best one counts nearly as much. Every board
is shown as it is or mirrored on its main diagonal, drawn anew each time.

There is a side task: a reader of the last block but one must tell, for every cell, which tile it
holds after each move. It says much more about a board than one choice of four does, and the model
learns the teacher's moves several times faster with it. The reader is thrown away afterwards.

Tensor legend: N lessons, B batch, C cells (16), M moves, S symmetries (2), H hidden, V tiles (17).
"""

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from actcli.demo.game2048 import N_MOVES, Boards, move_all, unpack
from actcli.demo.teacher2048 import Opinion, judge
from actcli.models.encoder2048 import Attention, Encoder2048

TEMPERATURE = 200.0
JUDGE_AT_ONCE = 4096


class Lessons(NamedTuple):
    """Boards as tokens (N, 16), the probability of each move (N, 4), the boards after it."""

    tokens: Tensor
    targets: Tensor
    after: Tensor
    """Tokens after each move, before a new tile appears, (N, 4, 16)."""


class Recipe(NamedTuple):
    """The choices of the optimisation."""

    learning_rate: float = 3e-3
    gamma_rate_factor: float = 15.0
    batch_size: int = 128
    warmup_share: float = 0.03
    gradient_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)


class Learner:
    """A model and its optimiser; the learning rate runs over all steps, through every round."""

    def __init__(self, model: Encoder2048, *, recipe: Recipe, n_steps: int, seed: int) -> None:
        self.model, self.recipe, self.n_steps = model, recipe, n_steps
        self.reader = Reader(model)
        groups = _parameter_groups(model, self.reader, recipe=recipe)
        self.optimizer = torch.optim.Adam(groups, betas=recipe.betas)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate_at)
        self.generator = torch.Generator().manual_seed(seed)
        for module in model.modules():
            if isinstance(module, Attention):
                module.explicit = True

    def study(self, lessons: Lessons, *, n_steps: int) -> float:
        """Train for `n_steps` batches and return the mean cross-entropy of the last hundred."""
        losses = [self._step(batch) for batch in self._batches(lessons, n_batches=n_steps)]
        return float(np.mean(losses[-100:]))

    def _step(self, batch: Lessons) -> float:
        loss = nn.functional.cross_entropy(self.model(batch.tokens), batch.targets)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss + self.reader.loss(batch.after))
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _batches(self, lessons: Lessons, *, n_batches: int) -> Iterator[Lessons]:
        """Yield random batches, each board in a random symmetry."""
        cells_SC, moves_SM = symmetries()
        size, generator = self.recipe.batch_size, self.generator
        for _ in range(n_batches):
            picked_B = torch.randint(len(lessons.tokens), (size,), generator=generator)
            symmetry_B = torch.randint(len(cells_SC), (size,), generator=generator)
            cells_BC, moves_BM = cells_SC[symmetry_B], moves_SM[symmetry_B]
            after_BMC = lessons.after[picked_B[:, None], moves_BM]
            yield Lessons(
                lessons.tokens[picked_B].gather(1, cells_BC).long(),
                lessons.targets[picked_B].gather(1, moves_BM),
                after_BMC.gather(2, cells_BC[:, None].expand_as(after_BMC)).long(),
            )

    def _rate_at(self, step: int) -> float:
        """Rise linearly, then fall along a cosine to zero."""
        warmup = self.recipe.warmup_share * self.n_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / (self.n_steps - warmup)))


class Reader(nn.Module):
    """Tells the boards after each move from what the model's last block but one gives."""

    def __init__(self, model: Encoder2048) -> None:
        super().__init__()
        hidden, self.n_tiles = model.config.hidden_size, model.config.input_vocab_size
        self.norm = nn.RMSNorm(hidden, eps=model.config.layer_norm_eps)
        self.head = nn.Linear(hidden, N_MOVES * self.n_tiles)
        self.read_BCH = torch.empty(0)
        model.blocks[-2].register_forward_hook(self._remember)

    def loss(self, after_BMC: Tensor) -> Tensor:
        """Return the mean cross-entropy over boards, moves and cells, of the last forward pass."""
        logits_BCMV = self.head(self.norm(self.read_BCH)).unflatten(-1, (N_MOVES, self.n_tiles))
        return nn.functional.cross_entropy(logits_BCMV.permute(0, 3, 2, 1), after_BMC)

    def _remember(self, _block: nn.Module, _args: object, output_BCH: Tensor) -> None:
        self.read_BCH = output_BCH


def lessons_on(boards_N: Boards) -> Lessons:
    """Ask the teacher about boards, leaving out those where the game is over."""
    boards_N = boards_N[move_all(boards_N).legal.any(axis=1)]
    parts = np.array_split(boards_N, -(-len(boards_N) // JUDGE_AT_ONCE))
    return Lessons(
        tokens=torch.from_numpy(unpack(boards_N)),
        targets=torch.cat([soft_targets(judge(part)) for part in parts]),
        after=torch.from_numpy(unpack(move_all(boards_N).boards)),
    )


def soft_targets(opinion: Opinion) -> Tensor:
    """Return softmax(values / TEMPERATURE) over the legal moves, (N, 4) float32."""
    values_NM = torch.from_numpy(np.where(opinion.legal, opinion.values, -np.inf))
    return (values_NM / TEMPERATURE).softmax(dim=1).float()


def join(parts: list[Lessons]) -> Lessons:
    """Put lessons one after the other."""
    return Lessons(*(torch.cat(field) for field in zip(*parts, strict=True)))


def symmetries() -> tuple[Tensor, Tensor]:
    """Return where each cell (2, 16) and each move (2, 4) comes from, in both forms of a board.

    In the mirrored one rows become columns: up and left change places, and down and right.
    """
    cells = torch.arange(16)
    cells_SC = torch.stack([cells, cells.view(4, 4).T.flatten()])
    return cells_SC, torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])


def _parameter_groups(*models: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Give the RMSNorm gammas their own, higher rate; nothing is decayed."""
    gammas: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in chain.from_iterable(model.modules() for model in models):
        own = list(module.parameters(recurse=False))
        (gammas if isinstance(module, nn.RMSNorm) else others).extend(own)
    rate = recipe.learning_rate
    return [
        {"params": others, "lr": rate},
        {"params": gammas, "lr": rate * recipe.gamma_rate_factor},
    ]
