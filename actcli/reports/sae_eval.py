"""What `sae-eval` answers: how good a dictionary is, and how it compares with others.

The keys of `absorption`, `feature_utilization`, `sparsity`, `reconstruction` and `activation_stats`
that the Matryoshka program writes keep their names; what each means here stands below it in
`actcli.reports.sae_metrics` and `actcli.reports.sae_weights`. A number that cannot be defined is
null, never NaN.
"""

from pydantic import BaseModel, ConfigDict, Field

from actcli.reports.base import Report
from actcli.reports.sae_glossary import Direction
from actcli.reports.sae_metrics import (
    ActivationReport,
    DensityReport,
    LossReport,
    PrefixReport,
    ReconstructionReport,
    SparsityReport,
    UtilizationReport,
)
from actcli.reports.sae_subject import DictionaryDescription, TokenSet
from actcli.reports.sae_weights import AbsorptionReport, CosineReport, FirstLetterReport

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


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

    upstream: dict[str, dict[str, dict[str, int | float | None]]] = Field(default_factory=dict)
    """By name: the figures as the Matryoshka program computes them, where `--compat upstream` asks
    for them; see `actcli.analysis.sae_upstream`."""

    elapsed_s: float = 0.0
    warnings: tuple[str, ...] = ()
