"""What pictures of attention on boards and on texts have in common.

Tensor legend: A heads, T queries, S keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from actcli.reports.attention import AttentionMaps, TextMaps

DPI = 160
AVERAGE = "Avg Heads"

_COLOURS = "magma"
_GAP_COLOUR = "white"
_FAST_COMPRESSION = 1

Maps = AttentionMaps | TextMaps


def colour_limit(maps: Maps) -> float:
    """The largest weight or sink of all, where the shared colour scale ends."""
    largest = max(float(each.max(initial=0.0)) for each in (*maps.weights, *maps.sinks))
    return max(largest, 1e-6)


@dataclass(frozen=True)
class Drawn:
    """One map that gets a file of its own."""

    stem: str
    title: str
    weights_TS: NDArray[np.float32]
    sink_T: NDArray[np.float32]


def drawn_heads(
    maps: Maps, place: int, layer: int, heads: list[int], *, average: bool
) -> Iterator[Drawn]:
    """The heads of one layer (its place in the maps) on one sample, then their mean."""
    weights_ATS, sinks_AT = maps.weights[place][layer], maps.sinks[place][layer]
    for head in heads:
        yield Drawn(f"head_{head:02d}", f"Head {head}", weights_ATS[head], sinks_AT[head])
    if average:
        yield Drawn("head_avg", AVERAGE, weights_ATS.mean(axis=0), sinks_AT.mean(axis=0))


def sample_folder(folder: Path, maps: Maps, layer: int) -> Path:
    """Make and return where the pictures of a layer (a number of the model) of a sample go.

    Args:
        folder: that of the sample.
        maps: where there are several layers, each has a folder of its own.
        layer: counted from 0.
    """
    target = folder / f"layer_{layer + 1:02d}" if len(maps.layers) > 1 else folder
    target.mkdir(parents=True, exist_ok=True)
    return target


def columns_with_least_left_over(n_cells: int) -> int:
    """How wide a grid of so many pictures is: 4 to 6, with the fewest empty places."""
    return min(n_cells, min((5, 4, 6), key=lambda columns: -n_cells % columns))


class Blitted:
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
        picture.save(path, compress_level=_FAST_COMPRESSION, dpi=(DPI, DPI))


def empty_map(axes: Axes, height: int, width: int, limit: float) -> AxesImage:
    """A map of zeros, to be filled with `set_data`; NaN is drawn as the page."""
    colours = mpl.colormaps[_COLOURS].with_extremes(bad=_GAP_COLOUR)
    return axes.imshow(
        np.zeros((height, width), dtype=np.float32),
        cmap=colours,
        vmin=0,
        vmax=limit,
        interpolation="nearest",
    )


def sink_width(maps: Maps) -> int:
    """Columns that a sink takes beside a map: a gap and its own."""
    return 2 if maps.has_sinks else 0


def with_sink(
    maps: Maps, weights_TS: NDArray[np.float32], sink_T: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weights with the sink as their last column, behind a gap, where there are sinks."""
    if not maps.has_sinks:
        return weights_TS
    gap_T = np.full_like(sink_T, np.nan)
    return np.column_stack([weights_TS, gap_T, sink_T])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, fast."""
    figure.savefig(path, pil_kwargs={"compress_level": _FAST_COMPRESSION})
