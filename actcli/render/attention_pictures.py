"""Attention on boards as PNG files: one head each, or a grid of heads.

A picture of one head differs from the next in its map and title alone, so the rest (board, labels,
colour bar) is drawn once per board and kept as a background; a head costs a blit and the PNG.

All pictures of a run share one colour scale, so that they can be compared.

Tensor legend: B samples, L layers, A heads, T queries, S keys.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from actcli.render.attention_figures import (
    AVERAGE,
    DPI,
    Blitted,
    Drawn,
    columns_with_least_left_over,
    drawn_heads,
    empty_map,
    sample_folder,
    save_figure,
    sink_width,
    with_sink,
)
from actcli.render.board import draw_board
from actcli.reports.attention import AttentionMaps


def cell_names(side: int) -> list[str]:
    """r1c1, r1c2, ...: the positions on a board, row-major."""
    return [f"r{row + 1}c{column + 1}" for row in range(side) for column in range(side)]


def write_head_pictures(
    maps: AttentionMaps, folder: Path, *, heads: list[int], average: bool, limit: float
) -> Iterator[Path]:
    """Write a picture of each board, layer and head, giving each path when it is done.

    Files are `board_<row>/head_00.png`, with sinks also `head_00_sink.png`, for the mean of all
    heads `head_avg.png`; a folder `layer_01` comes between where there are several layers.

    Args:
        maps: the attention of all heads.
        folder: where to write.
        heads: heads to draw.
        average: whether to draw the mean of all heads, too.
        limit: where the colour scale ends.
    """
    strip = _SinkStrip(maps.side) if maps.has_sinks else None
    for place, sample in enumerate(maps.samples):
        picture = _HeadPicture(maps.side, maps.boards_BT[place], limit)
        for layer, layer_number in enumerate(maps.layers):
            target = sample_folder(folder / f"board_{sample}", maps, layer_number)
            for drawn in drawn_heads(maps, place, layer, heads, average=average):
                title = f"Layer {layer_number + 1} {drawn.title}"
                path = target / f"{drawn.stem}.png"
                picture.write(path, drawn.weights_TS, f"{title} (sample {sample})")
                yield path
                if strip is not None:
                    path = target / f"{drawn.stem}_sink.png"
                    strip.write(path, drawn.sink_T, title.replace(AVERAGE, "Avg"))
                    yield path


def write_grid_pictures(
    maps: AttentionMaps, folder: Path, *, heads: list[int], average: bool, limit: float
) -> Iterator[Path]:
    """Write one picture a board: heads of a layer, or layers × heads.

    Sinks are an extra column at the right of each map. The mean of all heads is drawn with the
    heads of a single layer.
    """
    for place, sample in enumerate(maps.samples):
        target = folder / f"board_{sample}"
        target.mkdir(parents=True, exist_ok=True)
        if len(maps.layers) == 1:
            path = target / f"layer_{maps.layers[0] + 1:02d}_heads.png"
            drawn = [*drawn_heads(maps, place, 0, heads, average=average)]
            save_figure(_layer_grid(maps, place, drawn, limit), path)
        else:
            path = target / "layers_heads.png"
            save_figure(_model_grid(maps, place, heads, limit), path)
        yield path


def write_board_texts(maps: AttentionMaps, folder: Path) -> Iterator[Path]:
    """Write `board_<row>/board.txt`: exponents, a line a row of the board."""
    for place, sample in enumerate(maps.samples):
        path = folder / f"board_{sample}" / "board.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = maps.boards_BT[place].reshape(maps.side, maps.side).tolist()
        path.write_text("".join(" ".join(f"{e:2d}" for e in row) + "\n" for row in rows))
        yield path


class _HeadPicture:
    """The picture of one head, beside one board."""

    def __init__(self, side: int, board_T: NDArray[np.uint8], limit: float) -> None:
        figure = Figure(figsize=(7.6, 4.2), dpi=DPI, layout="constrained")
        map_axes, board_axes = figure.subplots(1, 2, width_ratios=(1.75, 1))
        draw_board(board_axes, board_T)
        self._image = empty_map(map_axes, side * side, side * side, limit)
        names = cell_names(side)
        map_axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        map_axes.set_yticks(range(len(names)), names, fontsize=6)
        map_axes.set(xlabel="Key position", ylabel="Query position")
        figure.colorbar(self._image, ax=map_axes, label="attention weight", pad=0.02)
        self._title = map_axes.set_title(" ", fontsize=11)
        frame = list(map_axes.spines.values())
        self._blitted = Blitted(figure, [self._image, self._title, *frame])

    def write(self, path: Path, weights_TS: NDArray[np.float32], title: str) -> None:
        self._image.set_data(weights_TS)
        self._title.set_text(title)
        self._blitted.save(path)


class _SinkStrip:
    """The mass of the sink of each query, as one row of cells on a scale from 0 to 1."""

    def __init__(self, side: int) -> None:
        figure = Figure(figsize=(4.8, 1.6), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        self._image = axes.imshow(
            np.zeros((1, side * side)), cmap="viridis", vmin=0, vmax=1, aspect="auto"
        )
        names = cell_names(side)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks([0], ["sink"], fontsize=7)
        axes.set_xlabel("Query position", fontsize=8)
        figure.colorbar(self._image, ax=axes, pad=0.02).ax.tick_params(labelsize=6)
        self._title = axes.set_title(" ", fontsize=9)
        frame = list(axes.spines.values())
        self._blitted = Blitted(figure, [self._image, self._title, *frame])

    def write(self, path: Path, sink_T: NDArray[np.float32], title: str) -> None:
        self._image.set_data(sink_T[None, :])
        self._title.set_text(f"{title} Sink (mean={sink_T.mean():.3f})")
        self._blitted.save(path)


def _layer_grid(maps: AttentionMaps, place: int, drawn: list[Drawn], limit: float) -> Figure:
    """Heads of one layer, each with its sink column, and the board."""
    n_cells = len(drawn) + 1
    columns = columns_with_least_left_over(n_cells)
    rows = -(-n_cells // columns)
    figure = Figure(figsize=(3.1 * columns + 0.8, 3.0 * rows + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    sample, layer = maps.samples[place], maps.layers[0] + 1
    figure.suptitle(f"Layer {layer}, heads (sample {sample})")
    axes_in_order = list(grid.flat)
    for number, (axes, each) in enumerate(zip(axes_in_order, drawn, strict=False)):
        image = empty_map(axes, maps.side**2, maps.side**2 + sink_width(maps), limit)
        image.set_data(with_sink(maps, each.weights_TS, each.sink_T))
        axes.set_title(each.title, fontsize=10)
        _label_grid_cell(axes, maps, left=number % columns == 0)
    draw_board(axes_in_order[len(drawn)], maps.boards_BT[place], scale=0.85)
    for axes in axes_in_order[len(drawn) + 1 :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid[:, -1]), label="attention weight", shrink=0.8)
    return figure


def _label_grid_cell(axes: Axes, maps: AttentionMaps, *, left: bool) -> None:
    names = cell_names(maps.side)
    places, labels = list(range(len(names))), list(names)
    if maps.has_sinks:
        places.append(len(names) + sink_width(maps) - 1)
        labels.append("sink")
    axes.set_xticks(places, labels, rotation=90, fontsize=5.5)
    axes.set_yticks(range(len(names)), names if left else [], fontsize=5.5)
    axes.tick_params(length=2, pad=1)


def _model_grid(maps: AttentionMaps, place: int, heads: list[int], limit: float) -> Figure:
    """Layers (down) × heads (across) of one board as one image, and the board beside it."""
    n_layers, tokens, n_heads = len(maps.layers), maps.boards_BT.shape[1], len(heads)
    drawn = tokens + sink_width(maps)
    width, height = drawn + sink_width(maps) + 1, tokens + 1
    canvas = np.full((n_layers * height - 1, n_heads * width), np.nan, dtype=np.float32)
    for layer in range(n_layers):
        for column, each in enumerate(drawn_heads(maps, place, layer, heads, average=False)):
            top, left = layer * height, column * width
            cell = with_sink(maps, each.weights_TS, each.sink_T)
            canvas[top : top + tokens, left : left + drawn] = cell
    figure = Figure(
        figsize=(1.05 * n_heads + 4.6, 1.0 * n_layers + 1.8), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    map_axes, side_axes = figure.subplots(1, 2, width_ratios=(1.05 * n_heads + 0.6, 2.6))
    image = empty_map(map_axes, canvas.shape[0], canvas.shape[1], limit)
    image.set_data(canvas)
    middle = (tokens - 1) / 2
    map_axes.set_xticks(np.arange(n_heads) * width + middle, heads)
    map_axes.set_yticks(np.arange(n_layers) * height + middle, [layer + 1 for layer in maps.layers])
    map_axes.tick_params(length=0)
    map_axes.spines[:].set_visible(False)
    sink = "; last column of a map: its sink" if maps.has_sinks else ""
    map_axes.set(xlabel=f"head (in each map: keys across, queries down{sink})", ylabel="layer")
    map_axes.set_title(f"Layers and heads (sample {maps.samples[place]})", fontsize=11)
    figure.colorbar(image, ax=map_axes, label="attention weight", pad=0.01, shrink=0.7)
    draw_board(side_axes, maps.boards_BT[place], scale=0.9)
    return figure
