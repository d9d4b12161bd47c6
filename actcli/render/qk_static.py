"""How components interact by their weights alone, over offsets: picture, records and table.

The picture has a heat map for the mean over heads and one for each head: pairs (rows, the
strongest on top) × offsets (columns), in standard deviations of the head, on one scale.

Tensor legend: O offsets, A query heads, N pairs.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actcli.render.lens_figure import encode, make_figure
from actcli.render.lens_letters import drawable, plain
from actcli.render.qk_figure import columns_of
from actcli.render.qk_view import thinned
from actcli.render.records import write_file
from actcli.reports.qk import QkReport, QkStatic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from rich.console import RenderableType
    from rich.table import Table

STATIC_COLUMNS = (
    *("run", "layer", "rank", "q_c", "k_c", "score"),
    *("mean_z_peak", "mean_z_offset", "z_peak", "z_peak_head", "z_peak_offset", "raw_at_z_peak"),
)
"""Of the CSV file of pairs in static mode."""

_COLOURS = "RdBu_r"
_WIDTH = 12.0
_MOST_TICKS = 17
_MOST_ROWS = 20


def write_static_figure(path: Path, static: QkStatic, *, run: str) -> None:
    """Draw the strongest pairs of a layer over offsets, one heat map a head.

    Args:
        path: a `.png` or `.svg` file.
        static: what to draw.
        run: the decomposition, in a word or two.

    Raises:
        UsageError: another suffix.
        ActcliError: the file cannot be written.
    """
    means_ON = static.z.mean(axis=1, dtype=np.float64).astype(np.float32)
    heads = [static.z[:, head] for head in range(static.z.shape[1])]
    panels = [("All Heads (mean)", means_ON)]
    panels += [(f"H{head}", each) for head, each in enumerate(heads)]
    columns = columns_of(len(heads))
    rows = -(-len(panels) // columns)
    figure = make_figure(_WIDTH, 0.9 + rows * max(1.3, 0.6 + 0.13 * static.z.shape[2]))
    title = f"{run} · layer {static.layer} · static interaction of weights over offsets"
    figure.suptitle(drawable(title), **plain(size=10))
    grid = figure.subplots(rows, columns, squeeze=False)
    limit = float(np.abs(static.z).max(initial=0.0)) or 1.0
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        image = _draw(axes, static, *panels[place], limit=limit)
        _name(axes, static, is_left=place % columns == 0, is_low=place + columns >= len(panels))
    bar = figure.colorbar(image, ax=grid, shrink=0.6, pad=0.01, aspect=40)
    bar.set_label("standard deviations from the mean of the head", size=8)
    bar.ax.tick_params(labelsize=7)
    write_file(path, encode(figure, path))


def _draw(
    axes: "Axes", static: QkStatic, title: str, z_ON: NDArray[np.float32], *, limit: float
) -> "AxesImage":
    image = axes.imshow(
        z_ON.T, cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    axes.set_title(title, size=8)
    places = thinned(len(static.offsets), most=_MOST_TICKS)
    axes.set_xticks(places, labels=[])
    axes.set_yticks(range(len(static.top_pairs)), labels=[])
    axes.tick_params(length=2, pad=1)
    return image


def _name(axes: "Axes", static: QkStatic, *, is_left: bool, is_low: bool) -> None:
    if is_left:
        names = [static_name(pair) for pair in static.top_pairs.tolist()]
        axes.set_yticks(range(len(names)), labels=names, fontsize=6)
    if is_low:
        places = thinned(len(static.offsets), most=_MOST_TICKS)
        shown = [str(static.offsets[place]) for place in places]
        axes.set_xticks(places, labels=shown, fontsize=7)
        axes.set_xlabel("query position - key position", size=7)


def static_name(pair: Sequence[int]) -> str:
    """Return a pair as `q.308 → k.218`."""
    return f"q.{pair[0]} → k.{pair[1]}"


def static_csv(static_readings: Iterable[QkStatic], *, run: str) -> str:
    """Return the strongest pairs of layers as CSV, a line each; see `STATIC_COLUMNS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(STATIC_COLUMNS)
    for static in static_readings:
        for n, (q, k) in enumerate(static.top_pairs.tolist()):
            peaks = _peaks(static, n)
            writer.writerow((run, static.layer, n + 1, q, k, static.score[n], *peaks))
    return text.getvalue()


def static_arrays(static: QkStatic) -> dict[str, NDArray[Any]]:
    """Name the arrays of a layer: `l1/static/z`, ..."""
    names = ("offsets", "q_alive", "k_alive", "top_pairs", "raw", "z", "mean_A", "std_A", "score")
    return {f"l{static.layer}/static/{name}": getattr(static, name) for name in names}


def static_tables(
    report: QkReport, *, static_readings: Iterable[QkStatic]
) -> "Iterable[RenderableType]":
    """Give a table for each layer, then the files."""
    for static in static_readings:
        yield static_table(static, run=report.decomposition, rank=report.rank)
    for path in report.files:
        yield f"Wrote {path}"


def static_table(static: QkStatic, *, run: str, rank: str) -> "Table":
    """Return the strongest pairs of a layer as a table."""
    from rich.table import Table

    alive = f"{len(static.q_alive)} × {len(static.k_alive)} components"
    table = Table("#", "Pair", title=f"{run} · layer {static.layer} · static · by {rank} · {alive}")
    for name in ("Mean over heads (sd)", "Offset", "Largest (sd)", "Head", "At offset"):
        table.add_column(name, justify="right")
    for n, pair in enumerate(static.top_pairs.tolist()[:_MOST_ROWS]):
        mean, mean_offset, peak, head, offset, _raw = _peaks(static, n)
        cells = (f"{mean:+.2f}", str(mean_offset), f"{peak:+.2f}", str(head), str(offset))
        table.add_row(str(n + 1), static_name(pair), *cells)
    return table


def _peaks(static: QkStatic, n: int) -> tuple[float, int, float, int, int, float]:
    """Where a pair is furthest from its head's mean: of the mean over heads, then of any head."""
    z_OA = static.z[:, :, n]
    mean_O = z_OA.mean(axis=1)
    of_mean = int(np.abs(mean_O).argmax())
    offset, head = np.unravel_index(int(np.abs(z_OA).argmax()), z_OA.shape)
    return (
        float(mean_O[of_mean]),
        int(static.offsets[of_mean]),
        float(z_OA[offset, head]),
        int(head),
        int(static.offsets[offset]),
        float(static.raw[offset, head, n]),
    )
