"""Attention as PNG files: one head each, or a grid of heads.

A picture of one head differs from the next in its map and title alone, so the rest (board, labels,
colour bar) is drawn once per board and kept as a background; a head costs a blit and the PNG.

All pictures of a run share one colour scale, so that they can be compared.

Tensor legend: B samples, L layers, A heads, T queries, S keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from actcli.render.board import draw_board
from actcli.reports.attention import AttentionMaps

_DPI = 160
_COLOURS = "magma"
_GAP_COLOUR = "white"
_FAST_COMPRESSION = 1
_AVERAGE = "Avg Heads"


def cell_names(side: int) -> list[str]:
    """r1c1, r1c2, ...: the positions on a board, row-major."""
    return [f"r{row + 1}c{column + 1}" for row in range(side) for column in range(side)]


def colour_limit(maps: AttentionMaps) -> float:
    """The largest weight or sink of all, where the shared colour scale ends."""
    largest = max(maps.weights_BLATS.max(initial=0.0), maps.sinks_BLAT.max(initial=0.0))
    return max(float(largest), 1e-6)


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
            target = _board_folder(folder, sample, maps, layer_number)
            for drawn in _drawn_heads(maps, place, layer, heads, average=average):
                title = f"Layer {layer_number + 1} {drawn.title}"
                path = target / f"{drawn.stem}.png"
                picture.write(path, drawn.weights_TS, f"{title} (sample {sample})")
                yield path
                if strip is not None:
                    path = target / f"{drawn.stem}_sink.png"
                    strip.write(path, drawn.sink_T, title.replace(_AVERAGE, "Avg"))
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
            drawn = [*_drawn_heads(maps, place, 0, heads, average=average)]
            _save(_layer_grid(maps, place, drawn, limit), path)
        else:
            path = target / "layers_heads.png"
            _save(_model_grid(maps, place, heads, limit), path)
        yield path


def write_board_texts(maps: AttentionMaps, folder: Path) -> Iterator[Path]:
    """Write `board_<row>/board.txt`: exponents, a line a row of the board."""
    for place, sample in enumerate(maps.samples):
        path = folder / f"board_{sample}" / "board.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = maps.boards_BT[place].reshape(maps.side, maps.side).tolist()
        path.write_text("".join(" ".join(f"{e:2d}" for e in row) + "\n" for row in rows))
        yield path


@dataclass(frozen=True)
class _Drawn:
    """One map that gets a file of its own."""

    stem: str
    title: str
    weights_TS: NDArray[np.float32]
    sink_T: NDArray[np.float32]


def _drawn_heads(
    maps: AttentionMaps, place: int, layer: int, heads: list[int], *, average: bool
) -> Iterator[_Drawn]:
    weights_ATS, sinks_AT = maps.weights_BLATS[place, layer], maps.sinks_BLAT[place, layer]
    for head in heads:
        yield _Drawn(f"head_{head:02d}", f"Head {head}", weights_ATS[head], sinks_AT[head])
    if average:
        yield _Drawn("head_avg", _AVERAGE, weights_ATS.mean(axis=0), sinks_AT.mean(axis=0))


def _board_folder(folder: Path, sample: int, maps: AttentionMaps, layer: int) -> Path:
    target = folder / f"board_{sample}"
    if len(maps.layers) > 1:
        target /= f"layer_{layer + 1:02d}"
    target.mkdir(parents=True, exist_ok=True)
    return target


class _Blitted:
    """A figure of which only a few artists change from one picture to the next."""

    def __init__(self, figure: Figure, changing: list[Artist]) -> None:
        self._figure, self._changing = figure, changing
        canvas: Any = FigureCanvasAgg(figure)  # matplotlib's backends are untyped
        for artist in changing:
            artist.set_animated(True)
        canvas.draw()
        self._canvas, self._background = canvas, canvas.copy_from_bbox(figure.bbox)

    def save(self, path: Path) -> None:
        """Draw the changing artists over the background and write the picture."""
        self._canvas.restore_region(self._background)
        for artist in self._changing:
            self._figure.draw_artist(artist)
        picture = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
        picture.save(path, compress_level=_FAST_COMPRESSION, dpi=(_DPI, _DPI))


class _HeadPicture:
    """The picture of one head, beside one board."""

    def __init__(self, side: int, board_T: NDArray[np.uint8], limit: float) -> None:
        figure = Figure(figsize=(7.6, 4.2), dpi=_DPI, layout="constrained")
        map_axes, board_axes = figure.subplots(1, 2, width_ratios=(1.75, 1))
        draw_board(board_axes, board_T)
        self._image = _empty_map(map_axes, side * side, side * side, limit)
        names = cell_names(side)
        map_axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        map_axes.set_yticks(range(len(names)), names, fontsize=6)
        map_axes.set(xlabel="Key position", ylabel="Query position")
        figure.colorbar(self._image, ax=map_axes, label="attention weight", pad=0.02)
        self._title = map_axes.set_title(" ", fontsize=11)
        frame = list(map_axes.spines.values())
        self._blitted = _Blitted(figure, [self._image, self._title, *frame])

    def write(self, path: Path, weights_TS: NDArray[np.float32], title: str) -> None:
        self._image.set_data(weights_TS)
        self._title.set_text(title)
        self._blitted.save(path)


class _SinkStrip:
    """The mass of the sink of each query, as one row of cells on a scale from 0 to 1."""

    def __init__(self, side: int) -> None:
        figure = Figure(figsize=(4.8, 1.6), dpi=_DPI, layout="constrained")
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
        self._blitted = _Blitted(figure, [self._image, self._title, *frame])

    def write(self, path: Path, sink_T: NDArray[np.float32], title: str) -> None:
        self._image.set_data(sink_T[None, :])
        self._title.set_text(f"{title} Sink (mean={sink_T.mean():.3f})")
        self._blitted.save(path)


def _layer_grid(maps: AttentionMaps, place: int, drawn: list[_Drawn], limit: float) -> Figure:
    """Heads of one layer, each with its sink column, and the board."""
    n_cells = len(drawn) + 1
    columns = _columns_with_least_left_over(n_cells)
    rows = -(-n_cells // columns)
    figure = Figure(figsize=(3.1 * columns + 0.8, 3.0 * rows + 0.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    sample, layer = maps.samples[place], maps.layers[0] + 1
    figure.suptitle(f"Layer {layer}, heads (sample {sample})")
    axes_in_order = list(grid.flat)
    for number, (axes, each) in enumerate(zip(axes_in_order, drawn, strict=False)):
        image = _empty_map(axes, maps.side**2, maps.side**2 + _sink_width(maps), limit)
        image.set_data(_with_sink(maps, each.weights_TS, each.sink_T))
        axes.set_title(each.title, fontsize=10)
        _label_grid_cell(axes, maps, left=number % columns == 0)
    draw_board(axes_in_order[len(drawn)], maps.boards_BT[place], scale=0.85)
    for axes in axes_in_order[len(drawn) + 1 :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid[:, -1]), label="attention weight", shrink=0.8)
    return figure


def _columns_with_least_left_over(n_cells: int) -> int:
    return min(n_cells, min((5, 4, 6), key=lambda columns: -n_cells % columns))


def _label_grid_cell(axes: Axes, maps: AttentionMaps, *, left: bool) -> None:
    names = cell_names(maps.side)
    places, labels = list(range(len(names))), list(names)
    if maps.has_sinks:
        places.append(len(names) + _sink_width(maps) - 1)
        labels.append("sink")
    axes.set_xticks(places, labels, rotation=90, fontsize=5.5)
    axes.set_yticks(range(len(names)), names if left else [], fontsize=5.5)
    axes.tick_params(length=2, pad=1)


def _model_grid(maps: AttentionMaps, place: int, heads: list[int], limit: float) -> Figure:
    """Layers (down) × heads (across) of one board as one image, and the board beside it."""
    n_layers, tokens, n_heads = len(maps.layers), maps.boards_BT.shape[1], len(heads)
    drawn = tokens + _sink_width(maps)
    width, height = drawn + _sink_width(maps) + 1, tokens + 1
    canvas = np.full((n_layers * height - 1, n_heads * width), np.nan, dtype=np.float32)
    for layer in range(n_layers):
        for column, each in enumerate(_drawn_heads(maps, place, layer, heads, average=False)):
            top, left = layer * height, column * width
            cell = _with_sink(maps, each.weights_TS, each.sink_T)
            canvas[top : top + tokens, left : left + drawn] = cell
    figure = Figure(
        figsize=(1.05 * n_heads + 4.6, 1.0 * n_layers + 1.8), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    map_axes, side_axes = figure.subplots(1, 2, width_ratios=(1.05 * n_heads + 0.6, 2.6))
    image = _empty_map(map_axes, canvas.shape[0], canvas.shape[1], limit)
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


def _empty_map(axes: Axes, height: int, width: int, limit: float) -> AxesImage:
    import matplotlib as mpl

    colours = mpl.colormaps[_COLOURS].with_extremes(bad=_GAP_COLOUR)
    return axes.imshow(
        np.zeros((height, width), dtype=np.float32),
        cmap=colours,
        vmin=0,
        vmax=limit,
        interpolation="nearest",
    )


def _sink_width(maps: AttentionMaps) -> int:
    """Columns that a sink takes beside a map: a gap and its own."""
    return 2 if maps.has_sinks else 0


def _with_sink(
    maps: AttentionMaps, weights_TS: NDArray[np.float32], sink_T: NDArray[np.float32]
) -> NDArray[np.float32]:
    if not maps.has_sinks:
        return weights_TS
    gap_T = np.full_like(sink_T, np.nan)
    return np.column_stack([weights_TS, gap_T, sink_T])


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, pil_kwargs={"compress_level": _FAST_COMPRESSION})
