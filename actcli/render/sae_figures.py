"""An evaluation of sparse dictionaries as plots, a PNG file each."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcli.render.lens_figure import encode, make_figure
from actcli.render.lens_letters import drawable, plain
from actcli.render.lens_tokens import cut, escaped
from actcli.render.records import write_file
from actcli.render.sae_figures_data import (
    COLOURS,
    DENSITY_HEIGHT,
    DENSITY_LABEL,
    FVU_LABEL,
    L0_HEIGHT,
    L0_LABEL,
    MEAN_L0_LABEL,
    SIZE_LABEL,
    Point,
    Steps,
    density_steps,
    l0_limit,
    l0_steps,
    prefix_curves,
    prefix_points,
    whole_point,
)
from actcli.reports.sae_eval import DictionaryReport, EvaluationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE, _LINE = (7.6, 4.2), 0.2
_MARKERS = "osD^vPXh"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MOST_LETTERS, _MOST_FILLED = 44, 3


def write_figures(report: EvaluationReport, folder: Path) -> list[Path]:
    """Draw the plots of an evaluation into a folder.

    `l0.png` and `density.png` are histograms of all dictionaries over one another, `fvu_l0.png`
    has a point for each, with its standard errors and a curve through its nested parts, and
    `prefixes.png` shows the nested parts by their sizes. A plot without anything to show is not
    written.

    Args:
        report: of at least one dictionary.
        folder: an existing folder; files of these names are replaced.

    Returns:
        the files that were written.

    Raises:
        ActcliError: a file cannot be written.
    """
    plots: dict[str, Callable[[EvaluationReport], Figure | None]] = {
        "l0.png": _l0_figure,
        "density.png": _density_figure,
        "fvu_l0.png": _trade_off_figure,
        "prefixes.png": _prefix_figure,
    }
    written = []
    for name, draw in plots.items():
        figure = draw(report)
        if figure is not None:
            write_file(folder / name, encode(figure, folder / name))
            written.append(folder / name)
    return written


def _l0_figure(report: EvaluationReport) -> "Figure":
    figure, axes = _empty(L0_LABEL, L0_HEIGHT, report)
    limit = l0_limit(report.dictionaries)
    few = len(report.dictionaries) <= _MOST_FILLED
    for n, each in enumerate(report.dictionaries):
        _draw_steps(axes, l0_steps(each, limit=limit), n, _name(each), fill=few)
        axes.axvline(each.sparsity.mean_l0, color=_looks(n)["color"], linewidth=0.8, alpha=0.7)
    axes.set_xlim(0, limit)
    axes.set_ylim(bottom=0)
    _name_lines(figure, axes, title="thin line: mean")
    return figure


def _density_figure(report: EvaluationReport) -> "Figure | None":
    steps = [density_steps(each) for each in report.dictionaries]
    if not any(steps):
        return None
    figure, axes = _empty(DENSITY_LABEL, DENSITY_HEIGHT, report)
    few = len(report.dictionaries) <= _MOST_FILLED
    for n, (each, found) in enumerate(zip(report.dictionaries, steps, strict=True)):
        if found is not None:
            dead = each.feature_utilization.dead_percentage
            name = f"{_name(each)} ({dead:.3g} % never fired)"
            _draw_steps(axes, found, n, name, fill=few)
    axes.set_ylim(bottom=0)
    _name_lines(figure, axes)
    return figure


def _trade_off_figure(report: EvaluationReport) -> "Figure | None":
    points = [whole_point(each) for each in report.dictionaries]
    if not any(points):
        return None
    figure, axes = _empty(MEAN_L0_LABEL, FVU_LABEL, report)
    for n, (each, point) in enumerate(zip(report.dictionaries, points, strict=True)):
        if point is not None:
            _draw_point(axes, each, point, n)
    axes.margins(0.08)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _name_lines(figure, axes, title="bars: standard error; line: nested parts")
    return figure


def _draw_point(axes: "Axes", dictionary: DictionaryReport, point: Point, n: int) -> None:
    colour, marker = _looks(n)["color"], _MARKERS[n % len(_MARKERS)]
    parts = prefix_points(dictionary)
    axes.plot(
        [each.l0 for each in parts],
        [each.fvu for each in parts],
        color=colour,
        linewidth=1.1,
        marker=marker,
        markersize=3,
        linestyle=_looks(n)["linestyle"],
    )
    axes.errorbar(
        point.l0,
        point.fvu,
        xerr=point.l0_error,
        yerr=point.fvu_error,
        color=colour,
        marker=marker,
        markersize=7,
        markeredgecolor="white",
        capsize=3,
        linestyle="none",
        label=_name(dictionary),
    )


def _prefix_figure(report: EvaluationReport) -> "Figure | None":
    curves = [prefix_curves(each) for each in report.dictionaries]
    labels = next(([curve.label for curve in found] for found in curves if found), None)
    if labels is None:
        return None
    figure = make_figure(4.0 * len(labels), 4.0)
    _say_tokens(figure, report)
    every_axes: Any = figure.subplots(1, len(labels))
    for place, (axes, label) in enumerate(zip(every_axes, labels, strict=True)):
        _dress(axes, SIZE_LABEL, label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
        for n, (each, found) in enumerate(zip(report.dictionaries, curves, strict=True)):
            if found:
                curve = found[place]
                values = [float("nan") if value is None else value for value in curve.values]
                marker = _MARKERS[n % len(_MARKERS)]
                axes.plot(curve.sizes, values, label=_name(each), marker=marker, **_looks(n))
        axes.set_ylim(bottom=0)
    _name_lines(figure, every_axes[0])
    return figure


def _empty(x_label: str, y_label: str, report: EvaluationReport) -> "tuple[Figure, Axes]":
    width, height = _SIZE
    figure = make_figure(width, height + _LINE * len(report.dictionaries))
    _say_tokens(figure, report)
    axes = figure.subplots()
    _dress(axes, x_label, y_label)
    return figure, axes


def _say_tokens(figure: "Figure", report: EvaluationReport) -> None:
    source = cut(escaped(report.tokens.source), width=70)
    figure.suptitle(drawable(f"{source} · {report.tokens.n_tokens:,} tokens"), **plain(size=9))


def _dress(axes: "Axes", x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_steps(axes: "Axes", steps: Steps, n: int, label: str, *, fill: bool) -> None:
    looks = _looks(n)
    if fill:
        axes.stairs(steps.heights, steps.edges, fill=True, color=looks["color"], alpha=0.12)
    axes.stairs(steps.heights, steps.edges, linewidth=1.5, label=label, **looks)


def _looks(n: int) -> dict[str, Any]:
    dash = _DASHES[n // len(COLOURS) % len(_DASHES)]
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": dash}


def _name(dictionary: DictionaryReport) -> str:
    return cut(drawable(escaped(dictionary.sae.name)), width=_MOST_LETTERS)


def _name_lines(figure: "Figure", axes: "Axes", *, title: str = "") -> None:
    """Name the lines below all axes, where no name can lie over a line."""
    handles, names = axes.get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() * 11 / (8 + max(map(len, names)))))
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, title=title
    )
    legend.get_title().set_fontsize(7)
    for text in legend.get_texts():
        text.set(**plain(size=8))
