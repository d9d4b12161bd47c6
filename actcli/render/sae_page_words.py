"""What the page of an evaluation calls each number, and its formula in words.

t is the target, r the reconstruction, e = t - r, n the tokens that count, d the dimensions of the
target; sums run over all of them. The code is in `actcli.analysis.sae_formulas`.
"""

from typing import Literal, NamedTuple

from actcli.reports.sae_eval import Direction

Kind = Literal["number", "percent", "count"]


class Figure(NamedTuple):
    """A row of the table."""

    path: str
    """In `DictionaryReport`."""

    label: str
    words: str
    better: Direction = "none"
    kind: Kind = "number"


GROUPS: dict[str, tuple[Figure, ...]] = {
    "Reconstruction": (
        Figure(
            "reconstruction.fvu",
            "FVU",
            "sum e² / sum (t − mean t)², the mean for each dimension",
            "lower",
        ),
        Figure("reconstruction.explained_variance", "explained variance", "1 − FVU", "higher"),
        Figure(
            "reconstruction.explained_variance_centered",
            "explained variance, centred",
            "1 − sum var(e) / sum var(t): a constant error does not count",
            "higher",
        ),
        Figure(
            "reconstruction.explained_variance_legacy",
            "explained variance, legacy",
            "1 − mean over tokens of |e|² / |t − mean t|², as older published tables have it",
            "higher",
        ),
        Figure(
            "reconstruction.fvu_scalar_mean",
            "FVU, one mean",
            "sum e² / sum (t − m)², with one mean m of all elements: the Matryoshka program's",
            "lower",
        ),
        Figure("reconstruction.fvu_about_zero", "FVU about zero", "sum e² / sum t²", "lower"),
        Figure("reconstruction.mse", "MSE", "sum e² / (n d), per element", "lower"),
        Figure("reconstruction.mae", "MAE", "sum |e| / (n d), per element", "lower"),
        Figure(
            "reconstruction.cosine_similarity",
            "cosine, per token",
            "mean over tokens of t·r / (|t| |r|)",
            "higher",
        ),
        Figure(
            "reconstruction.cosine_flat",
            "cosine, all as one vector",
            "sum t r / sqrt(sum t² · sum r²)",
            "higher",
        ),
        Figure("reconstruction.l2_ratio", "l2 ratio", "mean over tokens of |r| / |t|; 1 is right"),
        Figure(
            "reconstruction.relative_reconstruction_bias",
            "relative bias",
            "sum |r|² / sum t r; below 1 the reconstruction is too short",
        ),
    ),
    "Sparsity": (
        Figure("sparsity.mean_l0", "mean L0", "active features of a token, those other than 0"),
        Figure("sparsity.median_l0", "median L0", "the lower median over tokens"),
        Figure("sparsity.l0_std", "spread of L0", "standard deviation over tokens, with n − 1"),
        Figure("sparsity.min_l0", "least L0", "of any token", kind="count"),
        Figure("sparsity.max_l0", "largest L0", "of any token", kind="count"),
        Figure("sparsity.mean_l1", "mean L1", "mean over tokens of the sum of |activation|"),
    ),
    "Features": (
        Figure(
            "feature_utilization.dead_percentage",
            "dead",
            "features that never fired on these tokens",
            "lower",
            "percent",
        ),
        Figure(
            "feature_utilization.dead_count",
            "dead, number",
            "the same, counted",
            "lower",
            "count",
        ),
        Figure(
            "feature_utilization.dense_1_percentage",
            "denser than 1 %",
            "features that fire on more than 1 % of the tokens",
            kind="percent",
        ),
        Figure(
            "feature_utilization.dense_10_percentage",
            "denser than 10 %",
            "features that fire on more than 10 % of the tokens",
            kind="percent",
        ),
        Figure("feature_utilization.mean_density", "mean density", "mean L0 / number of features"),
        Figure("activation_stats.max_activation", "largest activation", "of all tokens, features"),
        Figure("activation_stats.mean_activation", "mean activation", "of those other than 0"),
    ),
    "Weights": (
        Figure(
            "absorption.score",
            "decoder redundancy",
            "share of the pairs of decoder rows with |cosine| above the threshold; the Matryoshka "
            "program calls it absorption, which it is not in the sense of Chanin et al.",
            "lower",
        ),
        Figure(
            "absorption.unordered_pairs",
            "such pairs",
            "each pair once",
            "lower",
            "count",
        ),
        Figure(
            "cosines.max_decoder_cosine.mean",
            "nearest decoder row",
            "mean over features of the largest cosine with another's decoder row",
            "lower",
        ),
        Figure(
            "cosines.max_decoder_cosine.p99",
            "nearest decoder row, 99 %",
            "the 99th percentile of the same",
            "lower",
        ),
        Figure(
            "cosines.max_encoder_cosine.mean",
            "nearest encoder column",
            "mean over features of the largest cosine with another's encoder column",
            "lower",
        ),
        Figure(
            "cosines.encoder_decoder_cosine.mean",
            "encoder with decoder",
            "mean over features of the cosine of encoder column and decoder row",
        ),
        Figure("cosines.encoder_norm.mean", "encoder norm", "mean length of the columns"),
        Figure("cosines.decoder_norm.mean", "decoder norm", "mean length of the rows"),
    ),
    "Loss of the model": (
        Figure(
            "loss.ce_recovered",
            "CE recovered",
            "(CE zero − CE spliced) / (CE zero − CE original)",
            "higher",
        ),
        Figure(
            "loss.kl_recovered",
            "KL recovered",
            "(KL zero − KL spliced) / KL zero",
            "higher",
        ),
        Figure("loss.ce_spliced", "CE spliced", "with the reconstruction in place, nats", "lower"),
        Figure("loss.kl_spliced", "KL spliced", "KL(original || spliced), nats", "lower"),
        Figure("loss.ce_original", "CE original", "of the model as it is, nats"),
        Figure("loss.ce_zero", "CE zero", "with 0 in place of the target, nats"),
    ),
    "First-letter absorption": (
        Figure(
            "first_letter_absorption.mean_absorption_fraction",
            "mean fraction absorbed",
            "Chanin et al. 2024 (arXiv:2409.14507): mean over letters of that over their words",
            "lower",
        ),
        Figure(
            "first_letter_absorption.full_absorption_rate",
            "fully absorbed",
            "mean over letters of the share of words that one other feature absorbs; same source",
            "lower",
        ),
    ),
}

UPSTREAM_GROUP = "As the Matryoshka program computes them"
UPSTREAM = (
    Figure(
        "reconstruction.fvu",
        "FVU",
        "mean e² / (var t + 1e-8) of each batch, one mean of all elements; batches averaged",
        "lower",
    ),
    Figure("reconstruction.mse", "MSE", "mean e² of each batch, averaged", "lower"),
    Figure("reconstruction.mae", "MAE", "mean |e| of each batch, averaged", "lower"),
    Figure(
        "reconstruction.cosine_similarity",
        "cosine",
        "of each batch as one vector, averaged",
        "higher",
    ),
    Figure("sparsity.mean_l0", "mean L0", "features above 0 of a token"),
    Figure(
        "absorption.score",
        "absorption",
        "share of decoder pairs with |cosine| above 0.9; of more than 8192 features, a random 8192",
        "lower",
    ),
    Figure(
        "feature_utilization.dead_count",
        "dead, number",
        "always 0: that program does not store what it would need",
        kind="count",
    ),
)
"""Rows of `EvaluationReport.upstream`, their paths in its `metrics.json`."""

FVU_WORDS = {
    "standard": "FVU",
    "centered": "1 − explained variance, centred",
    "legacy": "1 − explained variance, legacy",
    "upstream": "FVU, one mean",
    "about-zero": "FVU about zero",
}
"""Which row is meant by a definition that winners go by."""
