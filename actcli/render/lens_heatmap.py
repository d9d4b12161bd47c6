"""The logit lens of a text as a heatmap of layers × positions, PNG or SVG by suffix.

Colours run from dark to bright as the model decides, on a map that colour-blind people can read.

Tensor legend: G layers, T positions, C channels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.render.lens_figure import TextOf, encode, make_figure, set_title
from actcli.render.lens_grid import METRICS, LensGrid, Metric, grid_of
from actcli.render.lens_letters import drawable, plain
from actcli.render.lens_tokens import brief, cut
from actcli.render.records import write_file
from actcli.reports.lens_table import LensTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = "viridis"
_NO_NUMBER = "#d8d8d8"


def write_heatmap(
    path: Path,
    table: LensTable,
    *,
    sample: int,
    text_of: TextOf,
    metric: str = "probability",
    stream: str = "resid",
    note: str = "",
    most_positions: int = 64,
) -> None:
    """Draw the likeliest token of each layer and position, shaded by a number; last layer on top.

    Args:
        path: a `.png` or `.svg` file.
        table: records, of the same positions at each layer.
        sample: number of the text.
        text_of: a token's text.
        metric: one of `METRICS`.
        stream: one of `STREAMS`.
        note: what else the title should say, such as "raw lens (no final norm)".
        most_positions: of a longer text, only the last so many are drawn, and the title says so.

    Raises:
        UsageError: another suffix.
        ActcliError: the file cannot be written.
    """
    every = len(np.unique(table.pos[table.sample == sample]))
    cut_off = f"last {most_positions} of {every} positions" if every > most_positions else ""
    grid = grid_of(table, sample=sample, stream=stream, most_positions=most_positions)
    figure = _draw(grid, metric, text_of)
    missing = "grey: no number" if np.isnan(grid.metric(metric)).any() else ""
    shading = f"top-1 token, shaded by {METRICS[metric].label}"
    set_title(figure, grid, shading, cut_off, missing, note)
    write_file(path, encode(figure, path))


class _Cells(NamedTuple):
    """How large the cells of a heatmap are: in inches, points, and characters."""

    width: float
    font: float
    letters: int


def _draw(grid: LensGrid, metric: str, text_of: TextOf) -> "Figure":
    n_layers, n_positions = len(grid.layers), len(grid.positions)
    cells = _cell_size(n_positions)
    width = max(cells.width * n_positions + 2.0, 5.5)
    figure = make_figure(width, max(0.24 * n_layers + 1.9, 2.6))
    axes = figure.subplots()
    colours, scale = _colours(METRICS[metric], grid.metric(metric))
    values_GT = np.ma.masked_invalid(grid.metric(metric))
    image = axes.imshow(values_GT, cmap=colours, norm=scale, aspect="auto", origin="lower")
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label(METRICS[metric].title, size=8)
    bar.ax.tick_params(labelsize=7)
    if METRICS[metric].is_rank:
        bar.ax.yaxis.set_major_formatter(lambda rank, _: f"{rank:,.0f}")
        bar.ax.minorticks_off()
    room = cells._replace(letters=int(cells.letters * (width - 2.0) / (cells.width * n_positions)))
    _write_cells(axes, grid, image.to_rgba(values_GT), text_of, room)
    _name_positions(axes, grid, text_of, cells)
    axes.set_yticks(range(n_layers), grid.places, fontsize=7)
    axes.tick_params(length=2, pad=2)
    return figure


def _cell_size(n_positions: int) -> _Cells:
    if n_positions <= 16:
        return _Cells(width=0.78, font=7.5, letters=11)
    if n_positions <= 32:
        return _Cells(width=0.6, font=7, letters=9)
    return _Cells(width=0.46, font=6, letters=8)


def _colours(metric: Metric, values_GT: NDArray[np.float32]) -> tuple[Any, Any]:
    """The map and the scale of a metric."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    name = _COLOURS + ("_r" if metric.bright_when_low else "")
    colours = colormaps[name].with_extremes(bad=_NO_NUMBER)
    there = values_GT[np.isfinite(values_GT)]
    largest = float(there.max(initial=0.0))
    if metric.is_rank:
        return colours, LogNorm(1, max(largest, 2.0))
    least = min(float(there.min(initial=0.0)), 0.0)
    return colours, Normalize(least, metric.most or max(largest, 1e-6))


def _write_cells(
    axes: "Axes", grid: LensGrid, colours_GTC: NDArray[Any], text_of: TextOf, cells: _Cells
) -> None:
    inks_GT = _inks(colours_GTC).tolist()
    tokens_GT = grid.shaped(grid.table.top1_id).tolist()
    for layer, tokens in enumerate(tokens_GT):
        for place, token in enumerate(tokens):
            text = _drawn(text_of(token), cells.letters)
            looks = plain(size=cells.font, color=inks_GT[layer][place], in_layout=False)
            axes.text(place, layer, text, ha="center", va="center", **looks)


def _inks(colours_GTC: NDArray[Any]) -> NDArray[np.str_]:
    """Black or white, whichever has more contrast (WCAG 2: relative luminance, sRGB)."""
    linear_GTC = ((colours_GTC[..., :3] + 0.055) / 1.055) ** 2.4
    luminance_GT = linear_GTC @ (0.2126, 0.7152, 0.0722)
    return np.where(luminance_GT > 0.179, "black", "white")


def _name_positions(axes: "Axes", grid: LensGrid, text_of: TextOf, cells: _Cells) -> None:
    names = [
        f"{_drawn(text_of(token), 14)}  {pos}"
        for pos, token in zip(grid.positions, grid.token_ids, strict=True)
    ]
    turned = {"rotation": 55, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **plain(size=cells.font, **turned))
    axes.set_xlabel("input token, position", fontsize=8)


def _drawn(text: str, width: int) -> str:
    """A token's text on few columns, in letters that there are."""
    return cut(drawable(brief(text, width=width)), width=max(width, 7))
