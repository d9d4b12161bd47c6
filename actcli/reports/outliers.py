"""What `outliers` answers."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Histogram, Report


class Quartiles(BaseModel):
    """Quartiles of signed activations.

    Of n numbers in order x_0 <= ... <= x_(n-1), the quantile q lies at p = (n - 1) q, linearly
    between x_floor(p) and the next. NaNs are left out, infinities take part.
    """

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    q1: float
    """25 % of the values are below."""

    median: float
    """Half of the values are below."""

    q3: float
    """75 % of the values are below."""

    iqr: float
    """q3 - q1."""


class MagnitudeStats(BaseModel):
    """Magnitudes |x| of outliers; all 0 if there are none. Quartiles as in `Quartiles`."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    min: float
    """The smallest."""

    q1: float
    """25 % are below."""

    median: float
    """Half are below."""

    q3: float
    """75 % are below."""

    max: float
    """The largest."""


class OutlierReport(Report):
    """Outliers of one tensor of a dump.

    With activations x of shape (N, L, T, H) and the threshold t: a hit is x > t or x < -t, compared
    exactly (as float64); a location is a (sample, token, dimension) at which at least
    min_layer_fraction of the layers are hits; an outlier is a hit at a location. Without the layer
    rule every hit is an outlier. An infinity is a hit, a NaN never is.
    """

    input: str
    """The dump."""

    key: str
    """The tensor."""

    shape: tuple[int, ...]
    """Its shape as stored."""

    dtype: str
    """Its dtype, in the words of the safetensors format."""

    size_mib: float
    """Size of the analysed layers in MiB."""

    threshold: float
    """t."""

    min_layer_fraction: float | None
    """Fraction of layers that must be hits at a location; null without the layer rule."""

    layers: tuple[int, ...]
    """The analysed layers, as the model numbers them; counts by layer are in this order."""

    tokens: tuple[int, ...]
    """The token positions, as the model numbers them; counts by token are in this order."""

    masked_positions: int
    """(sample, token) places that the dump's mask leaves out of every number here: padding. 0 where
    it has none."""

    total_elements: int
    """N L T H, of the analysed layers, without what is masked out."""

    nan_count: int
    """Elements that are NaN."""

    positive_infinity_count: int
    """Elements that are +infinity."""

    negative_infinity_count: int
    """Elements that are -infinity."""

    element_hits: int
    """Hits, before the layer rule."""

    outlier_occurrences: int
    """Outliers."""

    outlier_occurrence_rate: float
    """outlier_occurrences / total_elements."""

    location_total: int
    """N T H, without what is masked out."""

    location_outliers: int | None
    """Locations that keep the layer rule."""

    location_rate: float | None
    """location_outliers / location_total."""

    mean_layer_hit: float
    """Mean, over the locations that keep the rule, of the fraction of layers that are hits."""

    dim_counts: tuple[int, ...]
    """Outliers by hidden dimension."""

    pos_counts: tuple[int, ...]
    """Those with x > t, by hidden dimension."""

    neg_counts: tuple[int, ...]
    """Those with x < -t, by hidden dimension."""

    layer_counts: tuple[int, ...]
    """Outliers by layer."""

    token_counts: tuple[int, ...]
    """Outliers by token position."""

    first_layer_counts: tuple[int, ...]
    """(sample, token, dimension) places by the first layer at which they hold an outlier."""

    layer_dim_counts: tuple[tuple[int, ...], ...]
    """Outliers by layer and hidden dimension."""

    outlier_mag_stats: MagnitudeStats
    """Magnitudes of the outliers."""

    outlier_mag_exact: bool
    """Whether those are of all outliers; else of a sample."""

    outlier_mag_used: int
    """How many outliers went into outlier_mag_stats."""

    magnitude_histogram: Histogram
    """Magnitudes of all finite outliers, 16 bins for each doubling."""

    iqr_stats: Quartiles | None
    """Quartiles of all elements, hits or not; null if not wanted or there are none."""

    iqr_exact: bool
    """Whether those are of all elements; else of a sample."""

    iqr_used: int
    """How many elements went into iqr_stats."""

    sampling_seed: int | None
    """Seed of the samples; null if nothing was sampled."""

    def ranked_dims(self) -> list[int]:
        """Return the dimensions with outliers, most first; of equals the lower index first."""
        dims = (dim for dim, count in enumerate(self.dim_counts) if count)
        return sorted(dims, key=lambda dim: (-self.dim_counts[dim], dim))


class CommonDim(BaseModel):
    """A dimension with outliers in both tensors."""

    dim: int
    min_count: int
    """The smaller of the two counts."""


class DimComparison(BaseModel):
    """Which hidden dimensions two tensors have outliers in."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    key_a: str
    """The first tensor."""

    key_b: str
    """The second tensor."""

    dims_a: int
    """Dimensions with outliers in the first."""

    dims_b: int
    """Dimensions with outliers in the second."""

    common: int
    """Dimensions with outliers in both."""

    jaccard: float
    """common / (dimensions with outliers in either); 0 if there are none."""

    common_dims: tuple[CommonDim, ...]
    """All common ones, by the smaller count, most first; of equals the lower index first."""

    @classmethod
    def of(cls, a: OutlierReport, b: OutlierReport) -> Self:
        """Compare two reports."""
        dims_a, dims_b = set(a.ranked_dims()), set(b.ranked_dims())
        common = [
            CommonDim(dim=dim, min_count=min(a.dim_counts[dim], b.dim_counts[dim]))
            for dim in dims_a & dims_b
        ]
        return cls(
            key_a=a.key,
            key_b=b.key,
            dims_a=len(dims_a),
            dims_b=len(dims_b),
            common=len(common),
            jaccard=len(common) / len(dims_a | dims_b) if common else 0.0,
            common_dims=tuple(sorted(common, key=lambda each: (-each.min_count, each.dim))),
        )


class ComparedOutliersReport(Report):
    """Outliers of two tensors of a dump, and the dimensions that they share."""

    first: OutlierReport
    """Of --key."""

    second: OutlierReport
    """Of --compare-key."""

    comparison: DimComparison
    """The shared dimensions."""
