"""What `gammas` answers."""

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Histogram, Report


class GammaStats(BaseModel):
    """The gain of one norm."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    module: str
    """The norm's name in the model."""

    shape: tuple[int, ...]
    """Its shape."""

    dtype: str
    """Its dtype, in the words of the safetensors format."""

    total: int
    """Its elements."""

    ones: int
    """Elements with |gamma - 1| <= tolerance, in float64."""

    ones_share: float
    """ones / total; 0 if it is empty."""

    nan_count: int
    """Elements that are NaN; the figures below are of the others."""

    min: float | None
    """The smallest; null if there is none."""

    max: float | None
    """The largest."""

    mean: float | None
    """Their mean, summed in float64."""

    std: float | None
    """sqrt(mean((gamma - mean)^2)), in float64."""

    histogram: Histogram
    """All finite elements, in bins of equal width that all norms of the report share."""


class GammaReport(Report):
    """The gains of a model's norms: have they moved away from 1?"""

    source: str
    """The dump or the model."""

    tolerance: float
    """How far from 1 still counts as 1."""

    modules: tuple[GammaStats, ...]
    """One norm each, in the order of the model."""

    total: int
    """Elements of all norms."""

    ones: int
    """Elements within the tolerance of 1."""

    all_ones: bool
    """Whether all of them are."""
