"""Every number of `sae-eval` that tables, pages and comparisons name: one label, one definition.

t is the target, r the reconstruction, e = t - r, n the tokens that count, d the dimensions of the
target; sums run over all of them. The code is in `actcli.analysis.sae_formulas`.
"""

import math
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

Direction = Literal["lower", "higher", "none"]
"""What is better; none where neither is."""


class Metric(NamedTuple):
    """A number of a report."""

    path: str
    """In `DictionaryReport`."""

    label: str
    words: str
    """Its definition."""

    better: Direction = "none"
    kind: Literal["number", "percent", "count"] = "number"
    is_compared: bool = False
    """Whether dictionaries are compared by it."""


class FvuDefinition(NamedTuple):
    """One of the ways to say how much of the target is left unexplained."""

    path: str
    """The metric that has it."""

    sign: Literal[1, -1] = 1
    """-1 where the metric is what is left of 1: a difference is the other way round there."""

    @property
    def label(self) -> str:
        """What it is called, by the name of the metric."""
        label = METRICS[self.path].label
        return label if self.sign > 0 else f"1 - {label[0].lower()}{label[1:]}"

    @property
    def words(self) -> str:
        """Its formula."""
        words = METRICS[self.path].words
        return words if self.sign > 0 else words.removeprefix("1 - ")


FVU_DEFINITIONS = {
    "standard": FvuDefinition("reconstruction.fvu"),
    "centered": FvuDefinition("reconstruction.explained_variance_centered", -1),
    "legacy": FvuDefinition("reconstruction.explained_variance_legacy", -1),
    "upstream": FvuDefinition("reconstruction.fvu_scalar_mean"),
    "about-zero": FvuDefinition("reconstruction.fvu_about_zero"),
}
"""What `--fvu-definition` chooses from."""


def value_at(report: BaseModel, path: str) -> float | None:
    """Return the number at a path of a report.

    Returns:
        None where it is not defined, not finite, or was not measured.
    """
    found: Any = report
    for name in path.split("."):
        found = None if found is None else getattr(found, name)
    return None if found is None or not math.isfinite(found) else float(found)


_RECONSTRUCTION = (
    Metric(
        "reconstruction.fvu",
        "FVU (standard)",
        "sum e^2 / sum (t - mean t)^2, the mean of each dimension",
        "lower",
        is_compared=True,
    ),
    Metric(
        "reconstruction.explained_variance",
        "Explained variance",
        "1 - FVU",
        "higher",
        is_compared=True,
    ),
    Metric(
        "reconstruction.explained_variance_centered",
        "Explained variance, centred",
        "1 - sum var(e) / sum var(t): a constant error does not count",
        "higher",
        is_compared=True,
    ),
    Metric(
        "reconstruction.explained_variance_legacy",
        "Explained variance, legacy",
        "1 - mean over tokens of |e|^2 / |t - mean t|^2, as older published tables have it",
        "higher",
        is_compared=True,
    ),
    Metric(
        "reconstruction.fvu_scalar_mean",
        "FVU, one mean",
        "sum e^2 / sum (t - m)^2, with one mean m of all elements: the Matryoshka program's",
        "lower",
        is_compared=True,
    ),
    Metric(
        "reconstruction.fvu_about_zero",
        "FVU about zero",
        "sum e^2 / sum t^2",
        "lower",
        is_compared=True,
    ),
    Metric("reconstruction.mse", "MSE", "sum e^2 / (n d), per element", "lower", is_compared=True),
    Metric("reconstruction.mae", "MAE", "sum |e| / (n d), per element", "lower", is_compared=True),
    Metric(
        "reconstruction.cosine_similarity",
        "Cosine",
        "mean over tokens of cos(t, r)",
        "higher",
        is_compared=True,
    ),
    Metric(
        "reconstruction.cosine_flat",
        "Cosine, flat",
        "of all tokens as one vector: sum t r / sqrt(sum t^2 sum r^2)",
        "higher",
        is_compared=True,
    ),
    Metric(
        "reconstruction.l2_ratio",
        "L2 ratio",
        "mean over tokens of |r| / |t|; 1 is right",
        is_compared=True,
    ),
    Metric(
        "reconstruction.relative_reconstruction_bias",
        "Reconstruction bias",
        "sum r^2 / sum t r; below 1 the reconstruction is too short",
        is_compared=True,
    ),
)

_SPARSITY = (
    Metric("sparsity.mean_l0", "L0, mean", "active features of a token", is_compared=True),
    Metric("sparsity.median_l0", "L0, median", "the lower median over tokens"),
    Metric("sparsity.l0_std", "L0, spread", "standard deviation over tokens, with n - 1"),
    Metric("sparsity.min_l0", "L0, least", "of any token", kind="count"),
    Metric("sparsity.max_l0", "L0, most", "of any token", kind="count"),
    Metric("sparsity.mean_l1", "L1, mean", "sum of |activation| of a token", is_compared=True),
)

_FEATURES = (
    Metric(
        "feature_utilization.dead_percentage",
        "Dead features, %",
        "features that never fired on these tokens",
        "lower",
        "percent",
        is_compared=True,
    ),
    Metric(
        "feature_utilization.dead_count",
        "Dead features, number",
        "the same, counted",
        "lower",
        "count",
    ),
    Metric(
        "feature_utilization.dense_1_percentage",
        "Features above 1 %, %",
        "features that fire on more than 1 % of the tokens",
        kind="percent",
        is_compared=True,
    ),
    Metric(
        "feature_utilization.dense_10_percentage",
        "Features above 10 %, %",
        "features that fire on more than 10 % of the tokens",
        kind="percent",
        is_compared=True,
    ),
    Metric(
        "feature_utilization.n_dense",
        "Dense features",
        "features that fire on more than a share of the tokens (--dense-threshold)",
        kind="count",
    ),
    Metric("feature_utilization.mean_density", "Mean density", "mean L0 / number of features"),
    Metric("activation_stats.max_activation", "Largest activation", "of all tokens and features"),
    Metric("activation_stats.mean_activation", "Mean activation", "of those other than 0"),
)

_WEIGHTS = (
    Metric(
        "absorption.score",
        "Absorption (pairs)",
        "share of the pairs of decoder rows with |cosine| above the threshold: how redundant the "
        "decoder is; not the absorption of Chanin et al.",
        "lower",
        is_compared=True,
    ),
    Metric("absorption.unordered_pairs", "Such pairs", "each pair once", "lower", "count"),
    Metric(
        "cosines.mean_abs_decoder_cosine",
        "Mean |cosine| of pairs",
        "over all pairs of decoder rows",
    ),
    Metric(
        "cosines.max_decoder_cosine.mean",
        "Nearest decoder row",
        "largest cosine with another's decoder row, mean over features",
        "lower",
        is_compared=True,
    ),
    Metric(
        "cosines.max_decoder_cosine.p99",
        "Nearest decoder row, 99 %",
        "the 99th percentile of the same",
        "lower",
    ),
    Metric(
        "cosines.max_decoder_abs_cosine.mean",
        "Nearest decoder row, |cosine|",
        "the largest of the absolute value, mean over features",
        "lower",
    ),
    Metric(
        "cosines.max_encoder_cosine.mean",
        "Nearest encoder column",
        "largest cosine with another's encoder column, mean over features",
        "lower",
    ),
    Metric(
        "cosines.encoder_decoder_cosine.mean",
        "Encoder and decoder",
        "cosine of a feature's own two, mean over features",
        is_compared=True,
    ),
    Metric("cosines.encoder_norm.mean", "Encoder norm", "mean length of the columns"),
    Metric("cosines.decoder_norm.mean", "Decoder norm", "mean length of the rows"),
    Metric("cosines.encoder_bias.mean", "Encoder bias", "mean over features"),
)

_LOSS = (
    Metric(
        "loss.ce_recovered",
        "CE recovered",
        "(CE zero - CE spliced) / (CE zero - CE original)",
        "higher",
        is_compared=True,
    ),
    Metric(
        "loss.kl_recovered",
        "KL recovered",
        "(KL zero - KL spliced) / KL zero",
        "higher",
        is_compared=True,
    ),
    Metric("loss.ce_spliced", "CE spliced", "nats; with the reconstruction in the model", "lower"),
    Metric("loss.kl_spliced", "KL spliced", "nats; KL(original || spliced)", "lower"),
    Metric("loss.ce_original", "CE original", "nats; the model by itself"),
    Metric("loss.ce_zero", "CE zero", "nats; with 0 in the place of the target"),
)

_FIRST_LETTER = (
    Metric(
        "first_letter_absorption.mean_absorption_fraction",
        "Absorption (first letter)",
        "Chanin et al. 2024 (arXiv:2409.14507): mean over letters of the mean fraction over their "
        "words",
        "lower",
        is_compared=True,
    ),
    Metric(
        "first_letter_absorption.full_absorption_rate",
        "Full absorption",
        "Chanin et al. 2024: mean over letters of the share of words that another feature absorbs",
        "lower",
    ),
)

GROUPS = {
    "Reconstruction": _RECONSTRUCTION,
    "Sparsity": _SPARSITY,
    "Features": _FEATURES,
    "Weights": _WEIGHTS,
    "Loss of the model": _LOSS,
    "First-letter absorption": _FIRST_LETTER,
}
"""All metrics, in the order of tables. Neither more nor fewer active features are better as such:
fewer cost reconstruction."""

METRICS = {metric.path: metric for group in GROUPS.values() for metric in group}
"""All metrics by their path."""
