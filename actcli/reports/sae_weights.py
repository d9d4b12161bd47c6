"""Figures of a dictionary's weights alone: how its features lie to one another.

The formulas are in `actcli.analysis.sae_cosines` and `actcli.analysis.sae_first_letter`. A number
that cannot be defined is null, never NaN.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


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
