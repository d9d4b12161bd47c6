"""Figures of a dictionary on the tokens that count.

t is the target, r the reconstruction, e = t - r; sums run over the tokens that count and over the
dimensions of the target, in float64, over all batches together. The formulas are in
`actcli.analysis.sae_formulas`. A number that cannot be defined is null, never NaN.
"""

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Histogram

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


class UtilizationReport(BaseModel):
    """How many features ever fire, on the tokens that were read."""

    model_config = _PLAIN

    dead_count: int
    """Features that never fired."""

    dead_percentage: float
    alive_count: int
    total_features: int
    n_tokens: int
    """On so many tokens they did not fire."""

    dead_density_bound: float
    """A feature that never fired has, with 95 % confidence, a density below this:
    1 - 0.05**(1/n), about 3/n, if tokens were independent."""

    dense_1_percentage: float
    """Features that fire on more than 1 % of the tokens."""

    dense_10_percentage: float
    n_dense: int
    """Features above `dense_threshold`."""

    dense_threshold: float
    mean_density: float


class SparsityReport(BaseModel):
    """Active features of a token, L0; activations other than 0 count."""

    model_config = _PLAIN

    mean_l0: float
    median_l0: float
    """The lower median of the tokens."""

    l0_std: float | None
    """With n - 1."""

    min_l0: int
    max_l0: int
    mean_l1: float
    """Mean over tokens of the sum of |activation|."""

    l0_histogram: Histogram


class ReconstructionReport(BaseModel):
    """How near the reconstruction comes; null where the target does not vary."""

    model_config = _PLAIN

    mse: float
    """Per element: sum e^2 / (n d)."""

    mse_per_token: float
    """sum e^2 / n."""

    mae: float
    """Per element."""

    fvu: float | None
    """The standard one: sum e^2 / sum (t - mean t)^2, the mean for each dimension."""

    fvu_definition: str = "standard"
    """Which one tables and winners go by; one of `FVU_DEFINITIONS`."""

    explained_variance: float | None
    """1 - fvu."""

    explained_variance_centered: float | None
    """1 - sum_d var(e_d) / sum_d var(t_d): a constant error does not count."""

    explained_variance_legacy: float | None
    """1 - mean over tokens of |e|^2 / |t - mean t|^2 (published SAEBench figures)."""

    fvu_scalar_mean: float | None
    """The Matryoshka program's: sum e^2 / sum (t - m)^2 with one mean m of all elements."""

    fvu_about_zero: float | None
    """sum e^2 / sum t^2, sometimes called normalised MSE."""

    cosine_similarity: float | None
    """Mean over tokens of cos(t, r); tokens where either is 0 are left out."""

    cosine_flat: float | None
    """cos of all tokens as one vector: sum t r / sqrt(sum t^2 sum r^2)."""

    l2_norm_in: float
    """Mean length of the target."""

    l2_norm_out: float
    """Mean length of the reconstruction."""

    l2_ratio: float | None
    """Mean of |r| / |t|."""

    relative_reconstruction_bias: float | None
    """sum |r|^2 / sum t r (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 10)."""

    standard_errors: dict[str, float | None] = {}
    """By field of this report and of `SparsityReport`: over samples, as of a ratio of sums."""


class ActivationReport(BaseModel):
    """Sizes of the activations other than 0."""

    model_config = _PLAIN

    max_activation: float | None
    mean_activation: float | None
    n_active: int
    """How many there were, of all tokens and features."""


class DensityReport(BaseModel):
    """How often features fire."""

    model_config = _PLAIN

    log10_density: Histogram
    """Of the features that fired; the others are `dead_count`."""

    densest: tuple[tuple[int, float], ...]
    """The densest features and their density, falling; at most 20."""


class PrefixReport(BaseModel):
    """The first features of a nested dictionary, alone."""

    model_config = _PLAIN

    n_features: int
    fvu: float | None
    mse: float
    cosine_similarity: float | None
    mean_l0: float
    dead_count: int
    """Of the features of this part that the part before does not have."""

    n_new_features: int
    redundancy: float | None
    """Share of the pairs within these features with |cosine| above the threshold."""


class LossReport(BaseModel):
    """What the model loses when its activation is replaced by the reconstruction.

    Mean over the tokens that count, in nats. Excluded tokens keep the model's own activation. Zero
    puts 0 in the place of the target (of a transcoder: the output of the MLP, not the stream).
    """

    model_config = _PLAIN

    ce_original: float
    ce_spliced: float
    ce_zero: float
    ce_recovered: float | None
    """(ce_zero - ce_spliced) / (ce_zero - ce_original)."""

    kl_spliced: float
    """KL(original || spliced)."""

    kl_zero: float
    kl_recovered: float | None
    """(kl_zero - kl_spliced) / kl_zero."""

    n_tokens: int
    n_predictions: int
    """Tokens with a next one to predict: those of the cross-entropy."""

    standard_errors: dict[str, float | None] = {}
    """By field: over samples, as of a ratio of sums."""
