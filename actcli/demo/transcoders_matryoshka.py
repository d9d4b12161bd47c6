"""How the Matryoshka transcoder learns: BatchTopK, and a loss that every nested prefix shares.

BatchTopK (Bussmann, Leask and Nanda, 2024, arXiv:2412.06410) keeps the k * N largest activations of
a batch of N tokens. What later stands for it is one threshold, a running mean of the smallest
activation that was kept. Matryoshka (Bussmann et al., 2025, arXiv:2503.17547): features are in
groups, and each prefix of groups has to predict the target alone.

Tensor legend: N tokens, H width that is read, O width that is written, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actcli.demo.transcoders import Firing, Transcoder, auxiliary_error
from actcli.demo.transcoders_step import DeadRule, Step, step_of

THRESHOLD_DECAY = 0.99
"""Of the running mean of the smallest activation kept."""


class MatryoshkaLearner:
    """A transcoder with its threshold and the counters of its training."""

    def __init__(
        self, transcoder: Transcoder, *, k: int, prefix_sizes: Sequence[int], dead: DeadRule
    ) -> None:
        """Take a transcoder as it starts.

        Args:
            transcoder: its weights.
            k: active features of a token, mean over a batch.
            prefix_sizes: the sizes of the groups, one after another; they sum to D.
            dead: what becomes of dead features.
        """
        self.transcoder, self.threshold = transcoder, torch.zeros(())
        self.firing = Firing(transcoder.n_features, n_batches_to_dead=dead.n_batches)
        self._k, self._prefix_sizes, self._dead = k, tuple(prefix_sizes), dead

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """What the optimiser moves."""
        return list(self.transcoder.parameters())

    def loss(self, x_NH: Tensor, y_NO: Tensor) -> Step:
        """Return the loss on a batch; the threshold and the counters move on."""
        hidden_ND = self.transcoder.hidden(x_NH)
        acts_ND = batch_top_k(hidden_ND, k=self._k)
        self.threshold = moved_threshold(self.threshold, acts_ND.detach())
        errors, residual_NO = prefix_errors(
            self.transcoder, acts_ND, y_NO, prefix_sizes=self._prefix_sizes
        )
        auxiliary = auxiliary_error(
            self.transcoder,
            hidden_ND,
            residual_NO,
            is_dead_D=self.firing.is_dead_D,
            k=self._dead.k,
        )
        self.firing.add(acts_ND)
        total = errors.mean() + self._dead.penalty * auxiliary
        return step_of(total, residual_NO=residual_NO, y_NO=y_NO, acts_ND=acts_ND)


def batch_top_k(hidden_ND: Tensor, *, k: int) -> Tensor:
    """Keep the k * N largest positive values of a batch; the others become 0."""
    flat_F = hidden_ND.relu().flatten()
    top = flat_F.topk(k * len(hidden_ND), sorted=False)
    return torch.zeros_like(flat_F).scatter(0, top.indices, top.values).view_as(hidden_ND)


def moved_threshold(threshold: Tensor, acts_ND: Tensor) -> Tensor:
    """Return the running mean with the smallest positive activation of one more batch."""
    kept_F = acts_ND[acts_ND > 0]
    if not len(kept_F):
        return threshold
    return THRESHOLD_DECAY * threshold + (1 - THRESHOLD_DECAY) * kept_F.min()


def prefix_errors(
    transcoder: Transcoder, acts_ND: Tensor, y_NO: Tensor, *, prefix_sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the mean squared error of every nested prefix, and what the last leaves (N, O)."""
    residual_NO, errors, start = y_NO - transcoder.b_dec_O, [], 0
    for size in prefix_sizes:
        group = slice(start, start + size)
        residual_NO = residual_NO - acts_ND[:, group] @ transcoder.W_dec_DO[group]
        errors.append(residual_NO.square().mean())
        start += size
    return torch.stack(errors), residual_NO
