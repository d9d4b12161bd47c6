"""Parts of the two built-in transcoders: their weights, their start, and what revives features.

A transcoder reads the input x of a layer's MLP and predicts what the MLP adds to the residual
stream, through features of which few are active on a token:

    h = x @ W_enc + b_enc;  a = h where h > threshold, else 0;  y = a @ W_dec + b_dec

While they learn, inputs and targets are divided by their scales; `folded` puts these back.

Tensor legend: N tokens, H width that is read, O width that is written, D features, M dead features.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Scales(NamedTuple):
    """By what inputs and targets are divided while a transcoder learns."""

    x: float
    y: float


class Weights(NamedTuple):
    """A finished transcoder, for the activations as they are in the model."""

    W_enc_HD: Tensor
    b_enc_D: Tensor
    W_dec_DO: Tensor
    b_dec_O: Tensor
    threshold: Tensor
    """A positive number for all features, or one for each: () or (D,)."""

    def acts(self, x_NH: Tensor) -> Tensor:
        """Return the activations of the features (N, D)."""
        h_ND = x_NH @ self.W_enc_HD + self.b_enc_D
        return h_ND * (h_ND > self.threshold)


class Transcoder(torch.nn.Module):
    """What learns: encoder and decoder, the decoder's rows of norm 1."""

    def __init__(
        self, W_enc_HD: Tensor, b_enc_D: Tensor, W_dec_DO: Tensor, b_dec_O: Tensor
    ) -> None:
        super().__init__()
        self.W_enc_HD = torch.nn.Parameter(W_enc_HD)
        self.b_enc_D = torch.nn.Parameter(b_enc_D)
        self.W_dec_DO = torch.nn.Parameter(W_dec_DO)
        self.b_dec_O = torch.nn.Parameter(b_dec_O)

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return len(self.b_enc_D)

    def hidden(self, x_NH: Tensor) -> Tensor:
        """Return the features before any threshold (N, D)."""
        return torch.addmm(self.b_enc_D, x_NH, self.W_enc_HD)

    def decode(self, acts_ND: Tensor) -> Tensor:
        """Return what the features write (N, O)."""
        return torch.addmm(self.b_dec_O, acts_ND, self.W_dec_DO)

    @torch.no_grad()
    def flatten_gradient(self) -> None:
        """Take out of the decoder's gradient what would only change the norms of its rows."""
        gradient_DO = self.W_dec_DO.grad
        if gradient_DO is not None:
            along_D1 = (gradient_DO * self.W_dec_DO).sum(dim=1, keepdim=True)
            gradient_DO -= along_D1 * self.W_dec_DO

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring the rows of the decoder back to norm 1."""
        self.W_dec_DO.div_(self.W_dec_DO.norm(dim=1, keepdim=True))


class Firing:
    """For how many batches in a row each feature has been silent."""

    def __init__(self, n_features: int, *, n_batches_to_dead: int) -> None:
        self.n_silent_D = torch.zeros(n_features, dtype=torch.int64)
        self._n_batches_to_dead = n_batches_to_dead

    @property
    def is_dead_D(self) -> Tensor:
        """Which features have been silent for too long."""
        return self.n_silent_D >= self._n_batches_to_dead

    def add(self, acts_ND: Tensor) -> None:
        """Count a batch."""
        self.n_silent_D += 1
        self.n_silent_D[(acts_ND > 0).any(dim=0)] = 0


def scales_of(x_NH: Tensor, y_NO: Tensor) -> Scales:
    """Return the root mean square of the inputs, and of the targets about their mean."""
    deviations_NO = y_NO - y_NO.mean(dim=0)
    return Scales(x_NH.square().mean().sqrt().item(), deviations_NO.square().mean().sqrt().item())


def initial_transcoder(
    x_NH: Tensor, y_NO: Tensor, *, n_features: int, share: float, threshold: float
) -> Transcoder:
    """Start every feature at a token: it reads the token's direction and writes the target's.

    Args:
        x_NH: inputs, divided by their scale; see `spread_rows` for which of them are taken.
        y_NO: their targets, divided by their scale.
        n_features: how many features, fewer than there are different inputs.
        share: on which share of these tokens each feature is above the threshold at first.
        threshold: that threshold.
    """
    x_mean_H, y_mean_O = x_NH.mean(dim=0), y_NO.mean(dim=0)
    drawn_D = spread_rows(x_NH, count=n_features)
    W_enc_HD = _directions(x_NH[drawn_D] - x_mean_H).T.contiguous()
    W_dec_DO = _directions(y_NO[drawn_D] - y_mean_O)
    n_below = max(1, round(len(x_NH) * (1 - share)))
    highest_below_D = (x_NH @ W_enc_HD).kthvalue(n_below, dim=0).values
    return Transcoder(W_enc_HD, threshold - highest_below_D, W_dec_DO, y_mean_O.clone())


def spread_rows(x_NH: Tensor, *, count: int) -> Tensor:
    """Draw numbers of rows (count,) that lie apart, so that frequent tokens do not take them all.

    Each is drawn from torch's generator with a chance that goes with its squared distance from the
    nearest one drawn before (k-means++: Arthur and Vassilvitskii, 2007).
    """
    drawn = [int(torch.randint(len(x_NH), ()))]
    nearest_N = (x_NH - x_NH[drawn[0]]).square().sum(dim=1)
    while len(drawn) < count:
        drawn.append(int(nearest_N.multinomial(1)))
        distance_N = (x_NH - x_NH[drawn[-1]]).square().sum(dim=1)
        nearest_N = torch.minimum(nearest_N, distance_N)
    return torch.tensor(drawn)


def auxiliary_error(
    transcoder: Transcoder, hidden_ND: Tensor, residual_NO: Tensor, *, is_dead_D: Tensor, k: int
) -> Tensor:
    """Return the mean squared error of the dead features at what the others leave.

    On each token the `k` largest of the dead features predict the residual (Gao et al., 2024,
    arXiv:2406.04093, A.2), so that they learn to be of use. 0 where none is dead.
    """
    dead_M = is_dead_D.nonzero()[:, 0]
    if not len(dead_M):
        return residual_NO.new_zeros(())
    hidden_NM = hidden_ND[:, dead_M].relu()
    top = hidden_NM.topk(min(k, len(dead_M)), dim=1)
    acts_NM = torch.zeros_like(hidden_NM).scatter(1, top.indices, top.values)
    return (acts_NM @ transcoder.W_dec_DO[dead_M] - residual_NO.detach()).square().mean()


@torch.no_grad()
def folded(transcoder: Transcoder, *, threshold: Tensor, scales: Scales) -> Weights:
    """Return the weights for activations that are not divided by their scales."""
    return Weights(
        W_enc_HD=transcoder.W_enc_HD / scales.x,
        b_enc_D=transcoder.b_enc_D.clone(),
        W_dec_DO=transcoder.W_dec_DO * scales.y,
        b_dec_O=transcoder.b_dec_O * scales.y,
        threshold=threshold.detach().clone(),
    )


def _directions(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
