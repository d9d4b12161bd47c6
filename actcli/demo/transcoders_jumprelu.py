"""How the JumpReLU transcoder learns: thresholds with pseudo-gradients, and a price on L0.

Rajamanoharan et al., 2024, arXiv:2407.14435. A feature is active where it is above its own
threshold. Neither the jump nor the count of active features has a slope in the threshold, so both
get that of a smoothed step: the error's expected slope, estimated by a rectangle of a small width.

Tensor legend: N tokens, H width that is read, O width that is written, D features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actcli.demo.transcoders import Firing, Transcoder, auxiliary_error
from actcli.demo.transcoders_step import DeadRule, Step, step_of


class JumpReluLearner:
    """A transcoder with its thresholds and the counters of its training."""

    def __init__(
        self,
        transcoder: Transcoder,
        *,
        target_l0: float,
        sparsity: float,
        bandwidth: float,
        threshold: float,
        dead: DeadRule,
    ) -> None:
        """Take a transcoder as it starts.

        Args:
            transcoder: its weights.
            target_l0: active features of a token that are aimed at.
            sparsity: coefficient of `(L0 / target_l0 - 1)^2`, L0 the mean over a batch.
            bandwidth: width of the rectangle.
            threshold: of every feature at the start.
            dead: what becomes of dead features.
        """
        self.transcoder = transcoder
        start_D = torch.full((transcoder.n_features,), threshold).log()
        self._log_threshold_D = torch.nn.Parameter(start_D)
        self.firing = Firing(transcoder.n_features, n_batches_to_dead=dead.n_batches)
        self._target_l0, self._sparsity, self._bandwidth = target_l0, sparsity, bandwidth
        self._dead = dead

    @property
    def threshold(self) -> Tensor:
        """The thresholds (D,)."""
        return self._log_threshold_D.exp()

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """What the optimiser moves."""
        return [*self.transcoder.parameters(), self._log_threshold_D]

    def loss(self, x_NH: Tensor, y_NO: Tensor) -> Step:
        """Return the loss on a batch; the counters move on."""
        hidden_ND, threshold_D = self.transcoder.hidden(x_NH), self.threshold
        acts_ND, is_active_ND = jump(hidden_ND, threshold_D, bandwidth=self._bandwidth)
        residual_NO = y_NO - self.transcoder.decode(acts_ND)
        l0 = is_active_ND.sum() / len(x_NH)
        auxiliary = auxiliary_error(
            self.transcoder,
            hidden_ND,
            residual_NO,
            is_dead_D=self.firing.is_dead_D,
            k=self._dead.k,
        )
        self.firing.add(acts_ND)
        price = self._sparsity * (l0 / self._target_l0 - 1).square()
        total = residual_NO.square().mean() + price + self._dead.penalty * auxiliary
        return step_of(total, residual_NO=residual_NO, y_NO=y_NO, acts_ND=acts_ND)


def jump(hidden_ND: Tensor, threshold_D: Tensor, *, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return the activations (N, D), and 1 where a feature is active, else 0 (N, D).

    Their slopes in the threshold are the paper's pseudo-derivatives, with e the bandwidth and K a
    rectangle of width and height 1: -(threshold / e) K((h - threshold) / e) for the activation
    and -(1 / e) K((h - threshold) / e) for the step. The step has no slope in h.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _Jump.apply
    return apply(hidden_ND, threshold_D, bandwidth)


class _Jump(torch.autograd.Function):
    """Both at once: they share the comparison and the rectangle."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, threshold_D: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        is_active_ND = (hidden_ND > threshold_D).to(hidden_ND.dtype)
        ctx.save_for_backward(hidden_ND, threshold_D, is_active_ND)
        ctx.bandwidth = bandwidth
        return hidden_ND * is_active_ND, is_active_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        acts_gradient_ND, step_gradient_ND = gradients
        hidden_ND, threshold_D, is_active_ND = ctx.saved_tensors
        is_near_ND = (hidden_ND - threshold_D).abs() < ctx.bandwidth / 2
        pull_ND = (acts_gradient_ND * threshold_D + step_gradient_ND) * is_near_ND
        return acts_gradient_ND * is_active_ND, -pull_ND.sum(dim=0) / ctx.bandwidth, None
