"""How both built-in transcoders are trained: the choices, and the loop over batches.

Tensor legend: N tokens, H width that is read, O width that is written.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from actcli.demo.transcoders import (
    Scales,
    Transcoder,
    Weights,
    folded,
    initial_transcoder,
    scales_of,
)
from actcli.demo.transcoders_jumprelu import JumpReluLearner
from actcli.demo.transcoders_matryoshka import MatryoshkaLearner
from actcli.demo.transcoders_step import DeadRule, Learner, Step
from actcli.demo.transcoders_tokens import GAINED, NORMED, WRITTEN, Tokens

log = logging.getLogger("train_facts_transcoders")


class Recipe(NamedTuple):
    """The choices of the training: of both transcoders, then of each."""

    n_steps: int = 3_000
    batch_size: int = 1_024
    n_sentences: int = 30_000
    n_initial: int = 20_000
    """Tokens that the first features are drawn from."""
    learning_rate: float = 2e-3
    lowest_rate: float = 4e-5
    warmup_steps: int = 150
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_norm: float = 1.0
    start: float = 0.3
    """Threshold at the start."""
    share: float = 1 / 16
    """On which share of the tokens a feature is above it at the start."""
    dead: DeadRule = DeadRule()

    k: int = 10
    prefix_sizes: tuple[int, ...] = (64, 128, 192, 256, 384)

    target_l0: float = 16.0
    sparsity: float = 1.0
    bandwidth: float = 0.3

    @property
    def n_features(self) -> int:
        """Features of either transcoder."""
        return sum(self.prefix_sizes)


class Trained(NamedTuple):
    """A finished training."""

    learner: Learner
    weights: Weights
    last: Step
    losses: list[float]
    """Of every step."""
    seconds: float


def train_matryoshka(tokens: Tokens, *, recipe: Recipe, seed: int) -> Trained:
    """Train the transcoder that reads the MLP's input with gain."""

    def make(transcoder: Transcoder) -> MatryoshkaLearner:
        sizes = recipe.prefix_sizes
        return MatryoshkaLearner(transcoder, k=recipe.k, prefix_sizes=sizes, dead=recipe.dead)

    return _train(make, tokens, site=GAINED, recipe=recipe, seed=seed)


def train_jumprelu(tokens: Tokens, *, recipe: Recipe, seed: int) -> Trained:
    """Train the transcoder that reads the MLP's input without gain."""

    def make(transcoder: Transcoder) -> JumpReluLearner:
        return JumpReluLearner(
            transcoder,
            target_l0=recipe.target_l0,
            sparsity=recipe.sparsity,
            bandwidth=recipe.bandwidth,
            threshold=recipe.start,
            dead=recipe.dead,
        )

    return _train(make, tokens, site=NORMED, recipe=recipe, seed=seed)


def _train(
    make: Callable[[Transcoder], Learner],
    tokens: Tokens,
    *,
    site: str,
    recipe: Recipe,
    seed: int,
) -> Trained:
    """Let a transcoder learn from a site of the tokens; `make` says how."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    x_NH, y_NO = tokens.sites[site], tokens.sites[WRITTEN]
    drawn = torch.randperm(len(tokens))[: recipe.n_initial]
    scales = scales_of(x_NH[drawn].float(), y_NO[drawn].float())
    transcoder = initial_transcoder(
        *_scaled(x_NH, y_NO, rows=drawn, scales=scales),
        n_features=recipe.n_features,
        share=recipe.share,
        threshold=recipe.start,
    )
    learner = make(transcoder)
    optimizer = torch.optim.Adam(learner.weights, lr=recipe.learning_rate, betas=recipe.betas)
    losses: list[float] = []
    for step in range(recipe.n_steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, recipe=recipe)
        rows = torch.randint(len(tokens), (recipe.batch_size,))
        found = learner.loss(*_scaled(x_NH, y_NO, rows=rows, scales=scales))
        optimizer.zero_grad()
        found.total.backward()  # type: ignore[no-untyped-call]  # not typed upstream
        transcoder.flatten_gradient()
        torch.nn.utils.clip_grad_norm_(learner.weights, recipe.gradient_norm)
        optimizer.step()
        transcoder.normalise()
        losses.append(found.total.item())
        if (step + 1) % 250 == 0:
            _report(step + 1, learner=learner, found=found)
    weights = folded(transcoder, threshold=learner.threshold, scales=scales)
    return Trained(learner, weights, found, losses, seconds=time.perf_counter() - start)


def _scaled(x_NH: Tensor, y_NO: Tensor, *, rows: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    return x_NH[rows].float() / scales.x, y_NO[rows].float() / scales.y


def _rate(step: int, *, recipe: Recipe) -> float:
    """Rise linearly, then fall along a cosine."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.n_steps - recipe.warmup_steps)
    fall = 0.5 + 0.5 * math.cos(math.pi * done)
    return recipe.lowest_rate + (recipe.learning_rate - recipe.lowest_rate) * fall


def _report(step: int, *, learner: Learner, found: Step) -> None:
    log.info(
        "step %d: loss %.4f, FVU %.4f, L0 %.2f, %d silent, threshold %.4f",
        step,
        found.total.item(),
        found.fvu,
        found.l0,
        int(learner.firing.is_dead_D.sum()),
        learner.threshold.mean().item(),
    )
