"""Attention on texts as PNG files: a matrix of queries (rows) × keys (columns), tokens as labels.

A picture of one head differs from the next in its map and title alone, so the rest is drawn once
per text and kept as a background. Sinks are a column of their own at the right of a map.

All pictures of a run share one colour scale, so that they can be compared.

Tensor legend: L layers, A heads, T queries, S keys.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from actcli.render.attention_figures import (
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
from actcli.render.lens_tokens import brief, escaped
from actcli.reports.attention import TextMaps

_LABEL_COLUMNS = 14
_CAPTION_COLUMNS = 110
_LINE_INCHES = 1.35 / 72
"""Height of a line of labels, for each point of the font."""


def write_text_heads(
    maps: TextMaps, folder: Path, *, heads: list[int], average: bool, limit: float
) -> Iterator[Path]:
    """Write a picture of each text, layer and head, giving each path when it is done.

    Files are `sample_<row>/head_00.png`, and for the mean of all heads `head_avg.png`; a folder
    `layer_01` comes between where there are several layers.

    Args:
        maps: the attention of all heads.
        folder: where to write.
        heads: heads to draw.
        average: whether to draw the mean of all heads, too.
        limit: where the colour scale ends.
    """
    for place, sample in enumerate(maps.samples):
        picture = _HeadPicture(maps, place, limit)
        for layer, layer_number in enumerate(maps.layers):
            target = sample_folder(folder / f"sample_{sample}", maps, layer_number)
            for drawn in drawn_heads(maps, place, layer, heads, average=average):
                path = target / f"{drawn.stem}.png"
                title = f"Layer {layer_number + 1} {drawn.title} (sample {sample})"
                picture.write(path, with_sink(maps, drawn.weights_TS, drawn.sink_T), title)
                yield path


def write_text_grids(
    maps: TextMaps, folder: Path, *, heads: list[int], average: bool, limit: float
) -> Iterator[Path]:
    """Write one picture a text: heads of a layer, or layers × heads.

    The mean of all heads is drawn with the heads of a single layer.
    """
    for place, sample in enumerate(maps.samples):
        target = folder / f"sample_{sample}"
        target.mkdir(parents=True, exist_ok=True)
        if len(maps.layers) == 1:
            path = target / f"layer_{maps.layers[0] + 1:02d}_heads.png"
            drawn = [*drawn_heads(maps, place, 0, heads, average=average)]
            save_figure(_layer_grid(maps, place, drawn, limit), path)
        else:
            path = target / "layers_heads.png"
            save_figure(_model_grid(maps, place, heads, limit), path)
        yield path


def write_token_lists(maps: TextMaps, folder: Path) -> Iterator[Path]:
    """Write `sample_<row>/tokens.txt`: position, id and text of each token, a line each."""
    for sample, ids_T, tokens in zip(maps.samples, maps.token_ids, maps.tokens, strict=True):
        path = folder / f"sample_{sample}" / "tokens.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            f"{position}\t{number}\t{escaped(text)}\n"
            for position, (number, text) in enumerate(zip(ids_T.tolist(), tokens, strict=True))
        )
        path.write_text("".join(lines), encoding="utf-8")
        yield path


class _HeadPicture:
    """The picture of one head on one text."""

    def __init__(self, maps: TextMaps, place: int, limit: float) -> None:
        n_tokens = len(maps.tokens[place])
        side = min(max(0.13 * n_tokens, 2.4), 8.4)
        figure = Figure(figsize=(side + 2.6, side + 1.7), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        self._image = empty_map(axes, n_tokens, n_tokens + sink_width(maps), limit)
        labels = _Labels(maps, place, side=side, font=6.5)
        labels.put(axes, left=True, bottom=True)
        axes.set(xlabel="Key token", ylabel="Query token")
        figure.colorbar(self._image, ax=axes, label="attention weight", pad=0.02)
        self._title = axes.set_title(" ", fontsize=11)
        frame = list(axes.spines.values())
        self._blitted = Blitted(figure, [self._image, self._title, *frame])

    def write(self, path: Path, weights_TK: NDArray[np.float32], title: str) -> None:
        self._image.set_data(weights_TK)
        self._title.set_text(title)
        self._blitted.save(path)


class _Labels:
    """The tokens of a text along the axes of maps: every one, or every second, ... if too many."""

    def __init__(self, maps: TextMaps, place: int, *, side: float, font: float) -> None:
        """Choose them.

        Args:
            maps: the attention.
            place: which text.
            side: length of a map in inches.
            font: size in points.
        """
        names = _names(maps, place)
        every = max(1, int(np.ceil(len(names) * font * _LINE_INCHES / side)))
        self._rows = list(range(0, len(names), every))
        self._names = [names[each] for each in self._rows]
        self._sink = [len(names) + sink_width(maps) - 1] if maps.has_sinks else []
        self._font = font

    def put(self, axes: Axes, *, left: bool, bottom: bool) -> None:
        """Label one map; ticks stay where there is no text."""
        style: dict[str, Any] = {"fontsize": self._font, "parse_math": False}
        keys = [*self._names, *(["sink"] if self._sink else [])]
        axes.set_xticks(
            [*self._rows, *self._sink], keys if bottom else [""] * len(keys), rotation=90, **style
        )
        axes.set_yticks(self._rows, self._names if left else [""] * len(self._names), **style)
        axes.tick_params(length=2, pad=1)


def _names(maps: TextMaps, place: int) -> list[str]:
    """Tokens as labels; where the font lacks a letter, the id of the token."""
    return [
        brief(token, width=_LABEL_COLUMNS) if _can_draw(escaped(token)) else f"#{number}"
        for token, number in zip(maps.tokens[place], maps.token_ids[place].tolist(), strict=True)
    ]


def _can_draw(text: str) -> bool:
    return all(ord(each) in _drawable() for each in text)


@functools.cache
def _drawable() -> frozenset[int]:
    """The characters of the font that labels are drawn with."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _layer_grid(maps: TextMaps, place: int, drawn: Sequence[Drawn], limit: float) -> Figure:
    """Heads of one layer, each with its sink column."""
    n_tokens = len(maps.tokens[place])
    columns = columns_with_least_left_over(len(drawn))
    rows = -(-len(drawn) // columns)
    side = min(max(0.095 * n_tokens, 1.7), 4.6)
    figure = Figure(
        figsize=((side + 0.3) * columns + 1.9, (side + 0.4) * rows + 1.4),
        dpi=DPI,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(f"Layer {maps.layers[0] + 1}, heads (sample {maps.samples[place]})")
    labels = _Labels(maps, place, side=side, font=5)
    axes_in_order = list(grid.flat)
    for number, (axes, each) in enumerate(zip(axes_in_order, drawn, strict=False)):
        image = empty_map(axes, n_tokens, n_tokens + sink_width(maps), limit)
        image.set_data(with_sink(maps, each.weights_TS, each.sink_T))
        axes.set_title(each.title, fontsize=10)
        labels.put(axes, left=number % columns == 0, bottom=number + columns >= len(drawn))
    for axes in axes_in_order[len(drawn) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid[:, -1]), label="attention weight", shrink=0.8)
    return figure


def _model_grid(maps: TextMaps, place: int, heads: list[int], limit: float) -> Figure:
    """Layers (down) × heads (across) of one text as one image."""
    n_tokens, n_layers, n_heads = len(maps.tokens[place]), len(maps.layers), len(heads)
    canvas, (height, width) = _canvas(maps, place, heads)
    side = min(max(n_tokens / DPI, 1.0), 2.4)
    figure = Figure(
        figsize=(max(side * n_heads + 1.8, 5.5), side * n_layers + 1.3),
        dpi=DPI,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = empty_map(axes, canvas.shape[0], canvas.shape[1], limit)
    image.set_data(canvas)
    middle = (n_tokens - 1) / 2
    axes.set_xticks(np.arange(n_heads) * width + middle, [str(head) for head in heads])
    axes.set_yticks(
        np.arange(n_layers) * height + middle, [str(layer + 1) for layer in maps.layers]
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    sink = "; last column of a map: its sink" if maps.has_sinks else ""
    axes.set(xlabel=f"head (in each map: keys across, queries down{sink})", ylabel="layer")
    axes.set_title(f"Layers and heads (sample {maps.samples[place]})", fontsize=11)
    columns = min(_CAPTION_COLUMNS, int(12 * figure.get_figwidth()))
    figure.supxlabel(_caption(maps, place, columns), fontsize=8, parse_math=False)
    figure.colorbar(image, ax=axes, label="attention weight", pad=0.01, shrink=0.7)
    return figure


def _canvas(
    maps: TextMaps, place: int, heads: list[int]
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """All maps of a text, each row of maps a layer; and the size of a map with its gap."""
    n_tokens = len(maps.tokens[place])
    gap = max(1, n_tokens // 24)
    drawn = n_tokens + sink_width(maps)
    width, height = drawn + (2 if maps.has_sinks else 0) + gap, n_tokens + gap
    shape = (len(maps.layers) * height - gap, len(heads) * width)
    canvas = np.full(shape, np.nan, dtype=np.float32)
    for layer in range(len(maps.layers)):
        for column, each in enumerate(drawn_heads(maps, place, layer, heads, average=False)):
            top, left = layer * height, column * width
            cell = with_sink(maps, each.weights_TS, each.sink_T)
            canvas[top : top + n_tokens, left : left + drawn] = cell
    return canvas, (height, width)


def _caption(maps: TextMaps, place: int, columns: int) -> str:
    """The text, as far as it fits; tokens that do not begin words by themselves are apart."""
    tokens = maps.tokens[place]
    is_text = any(" " in each for each in tokens) and all(_can_draw(escaped(t)) for t in tokens)
    whole = "".join(tokens) if is_text else " ".join(_names(maps, place))
    return brief(whole, width=columns)
