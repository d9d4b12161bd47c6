"""What both ways of learning a transcoder share: the rule for dead features, a step's figures.

Tensor legend: N tokens, H width that is read, O width that is written, D features.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from actcli.demo.transcoders import Firing, Transcoder


class DeadRule(NamedTuple):
    """When a feature counts as dead, and how it is revived."""

    n_batches: int = 20
    """Silent batches in a row."""
    k: int = 32
    """Dead features that predict the residual of a token."""
    penalty: float = 1 / 32
    """Coefficient of their mean squared error."""


class Step(NamedTuple):
    """The figures of a step."""

    total: Tensor
    """The loss."""
    l2: float
    """Mean squared error of all features together."""
    fvu: float
    """It, over the variance of the batch's targets about their mean."""
    l0: float
    """Active features of a token, mean over the batch."""


def step_of(total: Tensor, *, residual_NO: Tensor, y_NO: Tensor, acts_ND: Tensor) -> Step:
    """Measure a batch.

    Args:
        total: the loss.
        residual_NO: what all features together leave of the targets.
        y_NO: the targets.
        acts_ND: the activations.
    """
    l2 = residual_NO.detach().square().mean().item()
    variance = y_NO.var(dim=0, unbiased=False).mean().item()
    n_active = int((acts_ND > 0).sum())
    return Step(total, l2=l2, fvu=l2 / variance, l0=n_active / len(acts_ND))


class Learner(Protocol):
    """A transcoder that learns."""

    transcoder: Transcoder
    firing: Firing

    @property
    def threshold(self) -> Tensor:
        """Above which a feature is active: () or (D,)."""
        ...

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """What the optimiser moves."""
        ...

    def loss(self, x_NH: Tensor, y_NO: Tensor) -> Step:
        """Return the loss on a batch; what is counted moves on."""
        ...
