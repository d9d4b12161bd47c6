"""Where the logits of a query come from, as a picture: PNG or SVG by suffix.

On top the mean over heads and the legend, below a panel for each head, all on one scale: the
strongest pairs as thin lines, their sum over all pairs black, the model's own logit red and
dashed. A head shows a pair only where it is visible (see `reports.qk.QkPairs.visible`), the mean
shows all.

Tensor legend: A query heads, N pairs, P keys.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.render.lens_figure import encode
from actcli.render.lens_letters import drawable, plain
from actcli.render.lens_tokens import brief
from actcli.render.qk_view import QkView, mean_over_heads, thinned
from actcli.render.records import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SUM_NAME, TRUTH_NAME = "Sum (all components)", "Ground truth"
_DPI = 150
_WIDTH = 12.0
_TOP_HEIGHT, _HEAD_HEIGHTS = 4.2, {2: 4.2, 3: 3.2, 4: 2.6, 6: 2.0}
_LABELS_PER_INCH = 6.5
_MOST_MARKED = 64
_LEGEND_ROWS = 24
_STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))


def write_qk_figure(path: Path, view: QkView) -> None:
    """Draw the pairs of one layer, sample and query.

    Args:
        path: a `.png` or `.svg` file.
        view: what to draw, of any number of heads and keys.

    Raises:
        UsageError: another suffix.
        ActcliError: the file cannot be written.
    """
    figure = _figure(view)
    write_file(path, encode(figure, path))


def pair_looks(n_pairs: int) -> list[dict[str, Any]]:
    """Return colour and line style of each pair: 40 colours, then the same dashed, and so on."""
    from matplotlib import colormaps

    colours = [*colormaps["tab20"].colors, *colormaps["tab20b"].colors]  # type: ignore[attr-defined]  # stubs: listed maps have it
    return [
        {
            "color": colours[n % len(colours)],
            "linestyle": _STYLES[n // len(colours) % len(_STYLES)],
        }
        for n in range(n_pairs)
    ]


class _Panel(NamedTuple):
    """The lines of one panel."""

    title: str
    pairs_NP: NDArray[np.float32]
    drawn_N: NDArray[np.bool_]
    sum_P: NDArray[np.float32]
    truth_P: NDArray[np.float32] | None

    def all_lines(self) -> NDArray[np.float32]:
        """Every number that is drawn."""
        truth = [] if self.truth_P is None else [self.truth_P]
        return np.concatenate([self.pairs_NP[self.drawn_N].ravel(), self.sum_P, *truth])


def _figure(view: QkView) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = columns_of(view.n_heads)
    rows = -(-view.n_heads // columns)
    heads_height = rows * _HEAD_HEIGHTS[columns]
    size = (_WIDTH, _TOP_HEIGHT + heads_height + 0.4)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(view), **plain(size=10))
    parts: Any = figure.subfigures(2, 1, height_ratios=(_TOP_HEIGHT, heads_height))
    top, bottom = parts
    panels = [*_panels(view)]
    limits = _limits(panels)
    mean_axes, legend_axes = top.subplots(1, 2)
    _draw(mean_axes, view, panels[0], limits, width=_WIDTH / 2)
    _name_keys(mean_axes, view, width=_WIDTH / 2)
    _legend(legend_axes, view)
    mean_axes.set_ylabel(_y_label(view), size=8)
    _draw_heads(bottom, view, panels[1:], limits, columns)
    return figure


def columns_of(n_heads: int) -> int:
    """How many panels stand side by side: two for the six heads of the first such pictures."""
    for most, columns in ((8, 2), (15, 3), (32, 4)):
        if n_heads <= most:
            return columns
    return 6


def _title(view: QkView) -> str:
    token = brief(view.query_token, width=24)
    at = view.pairs
    place = f"layer {at.layer} · sample {at.sample} · query {at.query} ({token})"
    return drawable(f"{view.run} · {place} · {at.mode}")


def _y_label(view: QkView) -> str:
    return (
        "Weight-only contribution"
        if view.pairs.mode == "binary"
        else "Contribution to pre-softmax logit"
    )


def _panels(view: QkView) -> Iterator[_Panel]:
    """The mean over heads, then each head."""
    pairs = view.pairs
    contrib_ANP, sum_AP, truth_AP = pairs.top_contrib, pairs.sum, pairs.ground_truth
    every_N = np.ones(contrib_ANP.shape[1], dtype=bool)
    yield _Panel(
        "All Heads (mean)",
        mean_over_heads(contrib_ANP),
        every_N,
        mean_over_heads(sum_AP),
        None if truth_AP is None else mean_over_heads(truth_AP),
    )
    for head in range(view.n_heads):
        truth_P = None if truth_AP is None else truth_AP[head]
        yield _Panel(f"H{head}", contrib_ANP[head], pairs.visible[head], sum_AP[head], truth_P)


def _limits(panels: list[_Panel]) -> tuple[float, float]:
    """The range of all panels, zero within, and a little room."""
    numbers = np.concatenate([each.all_lines() for each in panels])
    least, most = float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0))
    room = 0.04 * (most - least) or 1.0
    return least - room, most + room


def _draw_heads(
    bottom: "SubFigure",
    view: QkView,
    panels: list[_Panel],
    limits: tuple[float, float],
    columns: int,
) -> None:
    rows = -(-len(panels) // columns)
    grid = bottom.subplots(rows, columns, squeeze=False)
    width = _WIDTH / columns
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        _draw(axes, view, panels[place], limits, width=width)
        if place + columns >= len(panels):  # nothing below it
            _name_keys(axes, view, width=width)
        if place % columns == 0:
            axes.set_ylabel(_y_label(view), size=7)


def _draw(
    axes: "Axes", view: QkView, panel: _Panel, limits: tuple[float, float], *, width: float
) -> None:
    places = np.arange(view.n_keys)
    marker: dict[str, Any] = {"marker": "o", "markersize": 2} if view.n_keys <= _MOST_MARKED else {}
    thin = min(1.0, max(0.35, _MOST_MARKED / view.n_keys))
    axes.axhline(0.0, color="#9a9a9a", linewidth=0.6, zorder=1)
    for n, looks in enumerate(pair_looks(len(panel.drawn_N))):
        if panel.drawn_N[n]:
            axes.plot(places, panel.pairs_NP[n], linewidth=thin, zorder=2, **marker, **looks)
    axes.plot(places, panel.sum_P, color="black", linewidth=2 * thin, zorder=3, **marker)
    if panel.truth_P is not None:
        truth: dict[str, Any] = {"color": "red", "linestyle": "--", "linewidth": 2 * thin}
        axes.plot(places, panel.truth_P, zorder=4, **truth)
    axes.set_title(panel.title, size=9)
    axes.set_xlim(-0.5, view.n_keys - 0.5)
    axes.set_ylim(*limits)
    axes.set_xticks(thinned(view.n_keys, most=_most_labels(width)), labels=[])
    axes.tick_params(labelsize=7, length=2)


def _name_keys(axes: "Axes", view: QkView, *, width: float) -> None:
    """Token texts below the keys; with their places where not all keys get one."""
    places = thinned(view.n_keys, most=_most_labels(width))
    shown = [drawable(brief(view.tokens[place], width=12)) for place in places]
    if len(places) < view.n_keys:
        shown = [f"{view.pairs.keys_P[n]} {text}" for n, text in zip(places, shown, strict=True)]
    axes.set_xticks(places, labels=shown, **plain(size=6, rotation=45, ha="right"))
    axes.tick_params(axis="x", length=2, pad=1)


def _most_labels(width: float) -> int:
    return max(2, int((width - 0.6) * _LABELS_PER_INCH))


def _legend(axes: "Axes", view: QkView) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="black", linewidth=2, label=SUM_NAME)]
    if view.pairs.ground_truth is not None:
        truth: dict[str, Any] = {"color": "red", "linestyle": "--", "linewidth": 2}
        handles.append(Line2D([], [], label=TRUTH_NAME, **truth))
    for name, looks in zip(view.names, pair_looks(len(view.names)), strict=True):
        handles.append(Line2D([], [], linewidth=1.6, label=name, **looks))
    columns = 1 if len(handles) <= 12 else -(-len(handles) // _LEGEND_ROWS) + (len(handles) <= 24)
    size = 8 if columns <= 3 else 6
    axes.legend(handles=handles, loc="center", ncols=columns, frameon=False, fontsize=size)
    axes.set_axis_off()
