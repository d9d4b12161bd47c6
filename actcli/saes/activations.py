"""What turns pre-activations into features: the non-linearities of published dictionaries.

A feature is active where its value is not 0; values may be negative (`TopK` by magnitude).

Tensor legend: N tokens, D features, M any features of any tokens, K features of each token.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor


class Activation(Protocol):
    """A non-linearity over the features of a token."""

    def __call__(self, pre_ND: Tensor) -> Tensor:
        """Return the features (N, D), 0 where a feature is not active."""
        ...

    def to(self, device: torch.device | str) -> "Activation":
        """Return the same with its tensors on a device."""
        ...


class Elementwise(Activation, Protocol):
    """A non-linearity that looks at each feature by itself, and is 0 below some value."""

    def floor(self) -> Tensor | float:
        """Return what a pre-activation must be above for its feature to be active, (D,) or ()."""
        ...

    def of_features(self, features_M: Tensor) -> Activation:
        """Return the same for a list of features (M,): it maps (M,) to (M,)."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Each feature by itself: relu, JumpReLU, and what BatchTopK becomes after training.

    a = h where h > threshold, else 0. Source: Rajamanoharan et al. 2024, "Jumping Ahead"
    (arXiv:2407.14435), eq. 3.
    """

    threshold_D: Tensor | None = None
    """(D,), or () for one that all features share; None stands for 0: a plain relu."""

    relu: bool = True
    """Whether negative values never pass, even above a negative threshold."""

    def __call__(self, pre_ND: Tensor) -> Tensor:
        """Return the features (N, D)."""
        values_ND = torch.relu(pre_ND) if self.relu else pre_ND
        if self.threshold_D is None:
            return values_ND
        return torch.where(pre_ND > self.threshold_D, values_ND, 0)

    def floor(self) -> Tensor | float:
        """Return the threshold; 0 if that is higher, and negative values never pass."""
        if self.threshold_D is None:
            return 0.0 if self.relu else -torch.inf
        return self.threshold_D.clamp(min=0) if self.relu else self.threshold_D

    def of_features(self, features_M: Tensor) -> "Threshold":
        """Return the same for a list of features."""
        if self.threshold_D is None or not self.threshold_D.ndim:
            return self
        return replace(self, threshold_D=self.threshold_D[features_M])

    def to(self, device: torch.device | str) -> "Threshold":
        """Return the same on a device."""
        if self.threshold_D is None:
            return self
        return replace(self, threshold_D=self.threshold_D.to(device))


@dataclass(frozen=True)
class Gated:
    """One product for two questions: does a feature fire, and how strongly.

    a = (h + gate_bias > 0) * relu(h * exp(log_scale) + magnitude_bias), with h = z @ W_enc without
    a bias. Source: Rajamanoharan et al. 2024 (arXiv:2404.16014), eq. 6 and 7.
    """

    gate_bias_D: Tensor
    log_scale_D: Tensor
    magnitude_bias_D: Tensor

    def __call__(self, pre_ND: Tensor) -> Tensor:
        """Return the features (N, D)."""
        magnitude_ND = torch.relu(pre_ND * self.log_scale_D.exp() + self.magnitude_bias_D)
        return torch.where(pre_ND + self.gate_bias_D > 0, magnitude_ND, 0)

    def floor(self) -> Tensor:
        """Return the higher of what opens the gate and what gives a magnitude, less rounding."""
        floor_D = torch.maximum(
            -self.gate_bias_D, -self.magnitude_bias_D * (-self.log_scale_D).exp()
        )
        return floor_D - 1e-5 * floor_D.abs() - 1e-30

    def of_features(self, features_M: Tensor) -> "Gated":
        """Return the same for a list of features."""
        return Gated(
            self.gate_bias_D[features_M],
            self.log_scale_D[features_M],
            self.magnitude_bias_D[features_M],
        )

    def to(self, device: torch.device | str) -> "Gated":
        """Return the same on a device."""
        return Gated(
            self.gate_bias_D.to(device),
            self.log_scale_D.to(device),
            self.magnitude_bias_D.to(device),
        )


@dataclass(frozen=True)
class TopK:
    """The k largest features of each token. Source: Gao et al. 2024 (arXiv:2406.04093)."""

    k: int
    by: Literal["value", "magnitude"] = "value"
    relu: bool = True
    """Whether negative values among them become 0: then fewer than k are active."""

    def __call__(self, pre_ND: Tensor) -> Tensor:
        """Return the features (N, D)."""
        index_NK, values_NK = self.pick(pre_ND)
        return torch.zeros_like(pre_ND).scatter_(-1, index_NK, values_NK)

    def pick(self, pre_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k features of each token and their values (N, K), some of them perhaps 0."""
        ranked_ND = pre_ND.abs() if self.by == "magnitude" else pre_ND
        index_NK = ranked_ND.topk(self.k, dim=-1).indices
        values_NK = pre_ND.gather(-1, index_NK)
        return index_NK, torch.relu(values_NK) if self.relu else values_NK

    def to(self, device: torch.device | str) -> "TopK":
        """Return itself: it has no tensors."""
        del device
        return self


@dataclass(frozen=True)
class GroupMax:
    """The largest of each of k groups of neighbouring features, if positive."""

    k: int

    def __call__(self, pre_ND: Tensor) -> Tensor:
        """Return the features (N, D)."""
        groups_NKG = torch.relu(pre_ND).view(len(pre_ND), self.k, -1)
        best_NK1 = groups_NKG.argmax(-1, keepdim=True)
        kept_NKG = torch.zeros_like(groups_NKG)
        kept_NKG.scatter_(-1, best_NK1, groups_NKG.gather(-1, best_NK1))
        return kept_NKG.flatten(-2)

    def to(self, device: torch.device | str) -> "GroupMax":
        """Return itself: it has no tensors."""
        del device
        return self
