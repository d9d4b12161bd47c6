"""How likely tokens are over the layers, as a line plot, PNG or SVG by suffix.

Tensor legend: G layers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.render.lens_figure import TextOf, encode, make_figure, set_title
from actcli.render.lens_grid import LensGrid, followed, grid_of
from actcli.render.lens_letters import drawable, plain
from actcli.render.lens_tokens import cut, marked
from actcli.render.records import write_file
from actcli.reports.lens_table import LensTable
from actcli.reports.logit_lens import AnswerReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 6
"""Tokens that are shown beside answer and contrast."""

_MOST_LAYER_TICKS = 34
_ANSWER, _CONTRAST = "#0072b2", "#d55e00"
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#8c6d1f")
_MARKERS = "osD^vP"


def write_trajectories(
    path: Path,
    table: LensTable,
    *,
    sample: int,
    text_of: TextOf,
    answer: AnswerReport | None = None,
    contrast: AnswerReport | None = None,
    stream: str = "resid",
    note: str = "",
) -> None:
    """Draw how likely tokens are over the layers, at the last recorded position of a text.

    The answer and the contrast are exact at every layer. With them come the tokens that are the
    likeliest at a layer, those with the largest probabilities first, at most `MOST_LINES`. These
    are known where they are among the listed top k; where not, a line has a gap.

    Args:
        path: a `.png` or `.svg` file.
        table: records of the text.
        sample: number of the text.
        text_of: a token's text.
        answer: what the target columns follow at that position, if anything.
        contrast: what the contrast columns follow, if anything.
        stream: one of `STREAMS`.
        note: what else the title should say.

    Raises:
        UsageError: another suffix.
        ActcliError: the file cannot be written.
    """
    grid = grid_of(table, sample=sample, stream=stream, most_positions=1)
    lines = trajectories(grid, text_of, answer=answer, contrast=contrast)
    figure = _draw(grid, lines)
    gaps = any(np.isnan(each.p_G).any() for each in lines)
    k = grid.table.top_ids.shape[1]
    about_gaps = f"gaps: not among the top {k}" if gaps else ""
    set_title(figure, grid, f"position {grid.positions[0]}", about_gaps, note)
    write_file(path, encode(figure, path))


class Trajectory(NamedTuple):
    """A token over the layers."""

    token: int
    name: str
    role: str
    """answer, contrast, or top-1."""

    p_G: NDArray[np.float32]
    """NaN where it is not known."""


def trajectories(
    grid: LensGrid,
    text_of: TextOf,
    *,
    answer: AnswerReport | None = None,
    contrast: AnswerReport | None = None,
    most: int = MOST_LINES,
) -> list[Trajectory]:
    """Return the tokens worth following at the one position of a grid; see `write_trajectories`."""
    given = [
        Trajectory(each.id, marked(text_of(each.id)), role, column)
        for each, role, column in (
            (answer, "answer", grid.table.p_target),
            (contrast, "contrast", grid.table.p_contrast),
        )
        if each is not None
    ]
    known = {each.token for each in given}
    tokens = [token for token in np.unique(grid.table.top1_id).tolist() if token not in known]
    others = [
        Trajectory(token, marked(text_of(token)), "top-1", followed(grid, token)[:, 0])
        for token in tokens
    ]
    others.sort(key=lambda each: -float(np.nanmax(each.p_G)))
    return [*given, *others[:most]]


def _draw(grid: LensGrid, lines: Sequence[Trajectory]) -> "Figure":
    n_layers = len(grid.layers)
    figure = make_figure(min(max(0.24 * n_layers + 4.0, 7.0), 14.0), 4.2)
    axes = figure.subplots()
    places = np.arange(n_layers)
    others = [each for each in lines if each.role == "top-1"]
    for each in reversed(lines):  # answer and contrast lie on top
        axes.plot(places, each.p_G, markersize=4, **_looks(each, others))
    _name_lines(axes, lines)
    every = -(-n_layers // _MOST_LAYER_TICKS)
    axes.set_xticks(places[::every], grid.places[::every], rotation=55, ha="right", fontsize=7)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.set_ylabel("probability")
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _looks(line: Trajectory, others: Sequence[Trajectory]) -> dict[str, Any]:
    if line.role == "answer":
        return {"color": _ANSWER, "linewidth": 2.4, "marker": "o"}
    if line.role == "contrast":
        return {"color": _CONTRAST, "linewidth": 2.0, "marker": "s", "linestyle": "--"}
    place = [each.token for each in others].index(line.token) % len(_OTHERS)
    return {"color": _OTHERS[place], "linewidth": 1.1, "marker": _MARKERS[place]}


def _name_lines(axes: "Axes", lines: Sequence[Trajectory]) -> None:
    handles = axes.get_lines()[::-1]
    names = [f"{each.role}: {cut(drawable(each.name), width=24)}" for each in lines]
    legend = axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set(**plain(size=8))
