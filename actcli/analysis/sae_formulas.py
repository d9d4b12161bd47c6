"""The definitions of `sae-eval`, and the errors that the choice of samples leaves.

t is the target, r the reconstruction, e = t - r; n tokens, d dimensions; m is the mean of t over
all tokens. Sums run over tokens and dimensions, over all batches together.

    mse                          sum e^2 / (n d)
    mae                          sum |e| / (n d)
    fvu                          sum e^2 / sum (t - m)^2
    explained_variance_centered  1 - sum (e - mean e)^2 / sum (t - m)^2
    explained_variance_legacy    1 - mean over tokens of |e|^2 / |t - m|^2
    fvu_scalar_mean              sum e^2 / sum (t - mean of all elements of t)^2
    fvu_about_zero               sum e^2 / sum t^2
    cosine_similarity            mean over tokens of t.r / (|t| |r|)
    cosine_flat                  sum t.r / sqrt(sum t^2 sum r^2)
    l2_ratio                     mean over tokens of |r| / |t|
    relative_reconstruction_bias sum |r|^2 / sum t.r

Sources: the standard fvu is 1 - R^2 of regression with many targets, as in sparsify and in SAELens
since 6.54; the centred one is `frac_variance_explained` of dictionary_learning; the legacy one is
`explained_variance_legacy` of SAELens and SAEBench; the scalar mean is that of the Matryoshka
program; the bias is eq. 10 of Rajamanoharan et al. 2024 (arXiv:2404.16014).

All but the flat cosine are ratios R = sum A / sum B. The error of a ratio over C clusters of
samples is, with the influence of cluster i (Cochran 1977, Sampling Techniques, 3rd ed., sec. 6.3
and 6.5: linearised variance of the ratio estimator, clusters drawn with replacement),

    psi_i = (A_i - R B_i) / sum B,    se = sqrt(C / (C - 1) * sum psi_i^2).

The influence of m itself is of second order where sum (t - m)^2 is below, since that is smallest
at the mean. On the legacy one it is of first order: psi_i also has g.(sum over i of (t - m)) / n,
with g the gradient of the mean ratio by m. For the flat cosine, with P = sum t.r, T = sum t^2,
Q = sum r^2, psi_i = R (P_i / P - T_i / 2T - Q_i / 2Q). The error of a difference of two
dictionaries takes psi_i of the first minus psi_i of the second: what is common to both cancels.

Tensor legend: C clusters, O target width, K sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from actcli.analysis.sae_clusters import Floats
from actcli.analysis.sae_legacy import LegacyRatios
from actcli.analysis.sae_sums import ACTIVITY_SUMS, RECONSTRUCTION_SUMS

_NO_VARIANCE = 1e-15
"""Of sum t^2: what float32 cannot tell from a constant."""


@dataclass(frozen=True)
class ClusterSums:
    """All sums of one dictionary, by cluster of samples."""

    n_C: Floats
    means_CO: Floats
    """Mean of the target."""

    squares_C: Floats
    """Squared distances of the target from that mean."""

    reconstruction_CK: Floats
    """Columns: `RECONSTRUCTION_SUMS`."""

    residual_means_CO: Floats
    """Mean of e."""

    residual_squares_C: Floats
    """Squared distances of e from that mean."""

    activity_CK: Floats
    """Columns: `ACTIVITY_SUMS`."""

    legacy: LegacyRatios

    @property
    def n(self) -> float:
        """Number of tokens."""
        return float(self.n_C.sum())

    @property
    def mean_O(self) -> Floats:
        """Mean of the target over all tokens."""
        mean_O: Floats = self.n_C @ self.means_CO / self.n
        return mean_O

    def of(self, name: str) -> Floats:
        """Return one sum by cluster (C,)."""
        if name in ACTIVITY_SUMS:
            return self.activity_CK[:, ACTIVITY_SUMS.index(name)]
        return self.reconstruction_CK[:, RECONSTRUCTION_SUMS.index(name)]

    def about(self, centre_O: Floats | float) -> Floats:
        """Return the squared distances (C,) of the target from any one vector or number."""
        apart_CO = self.means_CO - centre_O
        found_C: Floats = self.squares_C + self.n_C * np.einsum("co,co->c", apart_CO, apart_CO)
        return found_C

    @property
    def is_constant(self) -> bool:
        """Whether the target does not vary, as far as float32 can tell."""
        apart = float(self.about(self.mean_O).sum())
        return apart <= _NO_VARIANCE * float(self.of("squares_in").sum())


class Estimate(NamedTuple):
    """A number, and how each cluster of samples moves it."""

    value: float
    psi_C: Floats

    def standard_error(self) -> float | None:
        """sqrt(C / (C - 1) * sum psi^2); null for a single cluster."""
        return error_of(self.psi_C)


def error_of(psi_C: Floats) -> float | None:
    """Return the standard error that influences (C,) give; None for a single cluster."""
    clusters = len(psi_C)
    if clusters < 2:
        return None
    return float(np.sqrt(clusters / (clusters - 1) * (psi_C @ psi_C)))


def estimate(sums: ClusterSums, field: str) -> Estimate | None:
    """Return a field of `ReconstructionReport` or `SparsityReport`; None where it is undefined."""
    if sums.is_constant and field in OF_VARIANCE:
        return None
    found = ESTIMATES[field](sums)
    return None if found is None or not np.isfinite(found.value) else found


def ratio(over_C: Floats, under_C: Floats) -> Estimate | None:
    """Return sum A / sum B with its influences; None where sum B is 0.

    Args:
        over_C: A by cluster.
        under_C: B by cluster.
    """
    under = under_C.sum()
    if not under:
        return None
    value = float(over_C.sum() / under)
    return Estimate(value, (over_C - value * under_C) / under)


def _rest(found: Estimate | None) -> Estimate | None:
    return None if found is None else Estimate(1 - found.value, -found.psi_C)


def _per_element(name: str) -> Callable[[ClusterSums], Estimate | None]:
    return lambda sums: ratio(sums.of(name), sums.n_C * sums.means_CO.shape[1])


def _per_token(name: str, under: str | None = None) -> Callable[[ClusterSums], Estimate | None]:
    return lambda sums: ratio(sums.of(name), sums.n_C if under is None else sums.of(under))


def _fvu(sums: ClusterSums) -> Estimate | None:
    return ratio(sums.of("errors"), sums.about(sums.mean_O))


def _centered(sums: ClusterSums) -> Estimate | None:
    apart_CO = sums.residual_means_CO - sums.n_C @ sums.residual_means_CO / sums.n
    errors_C = sums.residual_squares_C + sums.n_C * np.einsum("co,co->c", apart_CO, apart_CO)
    return _rest(ratio(errors_C, sums.about(sums.mean_O)))


def _legacy(sums: ClusterSums) -> Estimate | None:
    if not sums.legacy.is_known:
        return None
    total, n, by_cluster_C2, gradient_O, _open = sums.legacy
    moved = ratio(by_cluster_C2[:, 0], by_cluster_C2[:, 1])
    if moved is None:
        return None
    of_mean_C = sums.n_C * ((sums.means_CO - sums.mean_O) @ gradient_O) / (sums.n * n)
    return Estimate(1 - total / n, -moved.psi_C - of_mean_C)


def _scalar_mean(sums: ClusterSums) -> Estimate | None:
    return ratio(sums.of("errors"), sums.about(float(sums.mean_O.mean())))


def _flat_cosine(sums: ClusterSums) -> Estimate | None:
    products_C, in_C, out_C = (sums.of(name) for name in ("products", "squares_in", "squares_out"))
    products, squares_in, squares_out = products_C.sum(), in_C.sum(), out_C.sum()
    length = float(np.sqrt(squares_in) * np.sqrt(squares_out))
    if not length:
        return None
    value = float(products) / length
    psi_C = products_C / length - value * (in_C / squares_in + out_C / squares_out) / 2
    return Estimate(value, psi_C)


ESTIMATES: dict[str, Callable[[ClusterSums], Estimate | None]] = {
    "mse": _per_element("errors"),
    "mse_per_token": _per_token("errors"),
    "mae": _per_element("abs_errors"),
    "fvu": _fvu,
    "explained_variance": lambda sums: _rest(_fvu(sums)),
    "explained_variance_centered": _centered,
    "explained_variance_legacy": _legacy,
    "fvu_scalar_mean": _scalar_mean,
    "fvu_about_zero": _per_token("errors", "squares_in"),
    "cosine_similarity": _per_token("cosines", "n_cosines"),
    "cosine_flat": _flat_cosine,
    "l2_norm_in": _per_token("norms_in"),
    "l2_norm_out": _per_token("norms_out"),
    "l2_ratio": _per_token("length_ratios", "n_length_ratios"),
    "relative_reconstruction_bias": _per_token("squares_out", "products"),
    "mean_l0": _per_token("active"),
    "mean_l1": _per_token("absolute"),
}
OF_VARIANCE = {
    "fvu",
    "explained_variance",
    "explained_variance_centered",
    "explained_variance_legacy",
    "fvu_scalar_mean",
}
OF_SPARSITY = ("mean_l0", "mean_l1")
