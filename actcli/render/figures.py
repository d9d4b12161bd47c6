"""Reports as pictures."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from actcli.reports.outliers import OutlierReport

_DPI = 160
_WIDTH = 12.0
_COLOURS = "viridis_r"
_MOST_NAMED = 12
_CLOSEST_NAMES = 0.035
_MOST_LAYER_TICKS = 16


def outlier_picture(reports: Sequence[OutlierReport]) -> bytes:
    """Draw, for each tensor, outliers by layer and hidden dimension, and their magnitudes.

    Returns:
        a PNG file.
    """
    heights = [min(6.0, 2.6 + 0.12 * len(each.layers)) for each in reports]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subfigures(len(reports), 1, squeeze=False, height_ratios=heights)
    for panel, report in zip(panels[:, 0], reports, strict=True):
        panel.suptitle(_title(report), fontsize=10)
        counts_axes, magnitude_axes = panel.subplots(1, 2, width_ratios=(3, 1))
        _draw_counts(panel, counts_axes, report)
        _draw_magnitudes(magnitude_axes, report)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _title(report: OutlierReport) -> str:
    rule = (
        "no layer rule"
        if report.min_layer_fraction is None
        else f"in at least {report.min_layer_fraction:.0%} of the layers"
    )
    title = (
        f"{report.key}: {report.outlier_occurrences:,} outliers "
        f"({report.outlier_occurrence_rate:.3%}) with |x| > {report.threshold:g}, {rule}"
    )
    return title.replace("$", r"\$")


def _draw_counts(panel: Any, axes: Axes, report: OutlierReport) -> None:
    counts_LH = np.array(report.layer_dim_counts, dtype=float).reshape(len(report.layers), -1)
    axes.set_xlabel("hidden dimension")
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(_MOST_LAYER_TICKS, integer=True))
    axes.yaxis.set_major_formatter(lambda place, _: _layer_name(report, place))
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    if not counts_LH.any():
        _say_none(axes)
        axes.set_xlim(-0.5, max(counts_LH.shape[1], 1) - 0.5)
        axes.set_ylim(max(len(report.layers), 1) - 0.5, -0.5)
        return
    shown = np.ma.masked_equal(_at_least_visible(counts_LH), 0)
    extent = (-0.5, counts_LH.shape[1] - 0.5, len(report.layers) - 0.5, -0.5)
    image = axes.imshow(
        shown,
        aspect="auto",
        interpolation="nearest",
        cmap=_COLOURS,
        norm=LogNorm(1, max(2.0, counts_LH.max())),
        extent=extent,
    )
    panel.colorbar(image, ax=axes, label="outliers", pad=0.01)
    _name_dims(axes, report)


def _at_least_visible(counts_LH: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Widen single columns of a very wide picture, which would be thinner than a pixel."""
    n_dims = counts_LH.shape[1]
    reach = n_dims // 1024
    if not reach:
        return counts_LH
    wide = np.pad(counts_LH, ((0, 0), (reach, reach)))
    shifts = [wide[:, shift : shift + n_dims] for shift in range(2 * reach + 1)]
    return np.asarray(np.max(shifts, axis=0))


def _layer_name(report: OutlierReport, place: float) -> str:
    index = round(place)
    return str(report.layers[index]) if 0 <= index < len(report.layers) else ""


def _name_dims(axes: Axes, report: OutlierReport) -> None:
    """Write the numbers of the strongest dimensions above the picture, none over another."""
    n_dims = len(report.dim_counts)
    named: list[int] = []
    for dim in report.ranked_dims():
        if all(abs(dim - other) > _CLOSEST_NAMES * n_dims for other in named):
            named.append(dim)
        if len(named) == _MOST_NAMED:
            break
    above = axes.secondary_xaxis("top")
    above.set_xticks(named, [str(dim) for dim in named], fontsize=7)
    above.tick_params(length=3, pad=1)


def _draw_magnitudes(axes: Axes, report: OutlierReport) -> None:
    histogram = report.magnitude_histogram
    axes.set_xlabel("magnitude |x|")
    axes.set_ylabel("outliers per unit of |x|")
    if not histogram.counts:
        _say_none(axes)
        return
    edges = np.array(histogram.edges)
    density = np.array(histogram.counts) / np.diff(edges)  # the bins widen with the magnitude
    axes.stairs(density, edges, fill=True, color="#3b6ea8")
    axes.set_yscale("log")
    axes.set_ylim(density[density > 0].min() / 2, density.max() * 2)
    if edges[-1] > 30 * max(edges[0], 1e-30):
        axes.set_xscale("log")
    if report.threshold > 0:
        axes.axvline(report.threshold, color="black", linewidth=0.8, linestyle=":")


def _say_none(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no outliers", transform=axes.transAxes, ha="center", va="center")
