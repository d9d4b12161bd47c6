"""What `sae-eval` answers: how good a dictionary is, and how it compares with others.

The keys of `absorption`, `feature_utilization`, `sparsity`, `reconstruction` and `activation_stats`
that the Matryoshka program writes keep their names; what each means here stands below it, the
formulas in `actcli.analysis.sae_formulas` and `actcli.analysis.sae_cosines`. A number that cannot
be defined is null, never NaN.

t is the target, r the reconstruction, e = t - r; sums run over the tokens that count and over the
dimensions of the target, in float64, over all batches together.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Histogram, Report

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

FVU_DEFINITIONS = ("standard", "centered", "legacy", "upstream", "about-zero")
"""Which field of `ReconstructionReport` each is: fvu; 1 - explained_variance_centered;
1 - explained_variance_legacy; fvu_scalar_mean; fvu_about_zero."""

Direction = Literal["lower", "higher", "none"]
"""What is better; none where neither is."""


class DictionaryDescription(BaseModel):
    """Which dictionary it is."""

    model_config = _PLAIN

    name: str
    path: str
    format: str
    architecture: str
    kind: Literal["sae", "transcoder"]
    d_in: int
    d_out: int
    n_features: int
    dtype: str
    """As stored; it is evaluated in float32."""

    x: str
    """The activation that it reads: a key of the dump, or `site.layer`."""

    y: str
    """Its target."""

    sha256: str
    """Of the file with the weights."""

    prefixes: tuple[int, ...] = ()
    """Features of each nested part."""

    notes: tuple[str, ...] = ()


class TokenSet(BaseModel):
    """Which tokens were counted."""

    model_config = _PLAIN

    source: str
    """The dump, or the model and its texts."""

    n_samples: int
    n_tokens: int
    """Those that count."""

    n_excluded: int
    """Those that were left out, by all rules together."""

    rules: tuple[str, ...] = ()
    """The rules, in words: `first token of each sample`, ..."""

    sha256: str
    """Of the numbers of sample and position of all tokens that count: equal for equal sets."""


class CosinePair(BaseModel):
    """Two features whose decoder rows point nearly the same way, or opposite ways."""

    model_config = _PLAIN

    first: int
    second: int
    cosine: float
    """Signed."""

    prefixes: tuple[int, int] | None = None
    """Which nested part each belongs to, from 0."""


class AbsorptionReport(BaseModel):
    """Share of the pairs of decoder rows with |cosine| above a threshold.

    That is redundancy of the decoder. The feature absorption of Chanin et al. is another thing,
    see `FirstLetterReport`.
    """

    model_config = _PLAIN

    definition: Literal["pairwise_decoder_cosine"] = "pairwise_decoder_cosine"
    score: float | None
    """Pairs above the threshold divided by all pairs; null for a single feature."""

    pairs_above_threshold: int
    """Ordered pairs, as the Matryoshka program counts them: each twice."""

    threshold: float
    unordered_pairs: int
    """Each pair once."""

    unordered_pairs_positive: int
    """Those of them with a positive cosine."""

    total_unordered_pairs: int
    n_features_evaluated: int
    """All of them: none is left out, unlike in the Matryoshka program."""

    n_zero_rows: int
    """Decoder rows of length 0, which have no direction: their pairs do not count as above."""

    pairs: tuple[CosinePair, ...]
    """The strongest ones above the threshold, falling by |cosine|; at most 100."""


class Percentiles(BaseModel):
    """A distribution over features."""

    model_config = _PLAIN

    mean: float
    min: float
    p01: float
    p10: float
    median: float
    p90: float
    p99: float
    max: float


class CosineReport(BaseModel):
    """How close each feature is to its nearest, and to its own encoder; null where undefined."""

    model_config = _PLAIN

    max_decoder_cosine: Percentiles | None
    """Per feature: largest signed cosine of its decoder row with another's."""

    max_decoder_abs_cosine: Percentiles | None
    """The same of the absolute value."""

    max_encoder_cosine: Percentiles | None
    """Per feature: largest signed cosine of its encoder column with another's."""

    encoder_decoder_cosine: Percentiles | None
    """Per feature: cosine of encoder column and decoder row; null where their widths differ."""

    encoder_norm: Percentiles
    decoder_norm: Percentiles
    encoder_bias: Percentiles | None
    mean_abs_decoder_cosine: float | None = None
    """Over all pairs; only where it was asked for (`--pair-statistics`)."""


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


class FirstLetterReport(BaseModel):
    """Feature absorption as Chanin et al. 2024 (arXiv:2409.14507) and SAEBench define it."""

    model_config = _PLAIN

    definition: Literal["first_letter_absorption"] = "first_letter_absorption"
    mean_absorption_fraction: float | None
    """Mean over letters of the mean fraction over their words."""

    full_absorption_rate: float | None
    """Mean over letters of the share of their words that one other feature absorbs."""

    n_letters: int
    n_words: int
    letters: dict[str, tuple[float, float, int]]
    """By letter: mean fraction, rate of full absorption, number of words that the probe knows."""

    main_features: dict[str, tuple[int, ...]] = {}
    """By letter: the features that say it, first the strongest."""


class DictionaryReport(Report):
    """One dictionary: the content of `metrics.json`."""

    sae: DictionaryDescription
    tokens: TokenSet
    absorption: AbsorptionReport
    feature_utilization: UtilizationReport
    sparsity: SparsityReport
    reconstruction: ReconstructionReport
    activation_stats: ActivationReport
    cosines: CosineReport
    density: DensityReport
    prefixes: tuple[PrefixReport, ...] = ()
    loss: LossReport | None = None
    first_letter_absorption: FirstLetterReport | None = None
    warnings: tuple[str, ...] = ()


class MetricDifference(BaseModel):
    """One metric of two dictionaries on the same tokens."""

    model_config = _PLAIN

    metric: str
    """Path in `DictionaryReport`: `reconstruction.fvu`."""

    label: str
    better: Direction
    first: str
    second: str
    difference: float | None
    """First minus second."""

    standard_error: float | None
    """Of the difference, paired over samples; null where a metric has no error over tokens."""

    winner: str | None
    """The better of the two; null for a tie, and where nothing is better."""

    is_tie: bool
    """Whether the difference is below two standard errors, or 0."""


class RankedMetric(BaseModel):
    """One metric of all dictionaries."""

    model_config = _PLAIN

    metric: str
    label: str
    better: Direction
    values: dict[str, float | None]
    """By name of the dictionary."""

    winner: str | None
    """The best of all, if it is ahead of every other by two standard errors; else null."""


class EvaluationReport(Report):
    """All dictionaries of a run: what is printed with `--json`."""

    tokens: TokenSet
    dictionaries: tuple[DictionaryReport, ...]
    metrics: tuple[RankedMetric, ...] = ()
    """None for a single dictionary."""

    differences: tuple[MetricDifference, ...] = ()
    """Every pair of dictionaries, every metric."""

    not_compared: str | None = None
    """Why there is no comparison, where there is none of several."""

    upstream: dict[str, dict[str, dict[str, int | float | None]]] = {}
    """By name: the figures as the Matryoshka program computes them, where `--compat upstream` asks
    for them; see `actcli.analysis.sae_upstream`."""

    elapsed_s: float = 0.0
    warnings: tuple[str, ...] = ()
