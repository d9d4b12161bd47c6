"""What pictures of the logit lens share: the figure, its title, and the file by suffix."""

import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.errors import UsageError
from actcli.render.lens_grid import LensGrid
from actcli.render.lens_letters import drawable, plain
from actcli.render.lens_words import STREAM_TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TextOf = Callable[[int], str]
"""A token's text."""

PICTURE_SUFFIXES = (".png", ".svg")
_DPI = 160


def make_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of some inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_title(figure: "Figure", grid: LensGrid, *parts: str) -> None:
    """Say above the picture which text and stream it shows, and what else."""
    said = (f"sample {grid.sample}", STREAM_TITLES[grid.stream], *filter(None, parts))
    lines = textwrap.fill(drawable(" · ".join(said)), int(figure.get_figwidth() * 13.5))
    figure.suptitle(lines, **plain(size=9))


def encode(figure: "Figure", path: Path) -> bytes:
    """Return the picture as a file of this name has it.

    Raises:
        UsageError: another suffix than `PICTURE_SUFFIXES`.
    """
    from matplotlib import rc_context

    form = path.suffix.lower()
    if form not in PICTURE_SUFFIXES:
        raise UsageError(f"{path}: a picture is a .png or a .svg file")
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "actcli"}):  # the same picture is the same file
        metadata = {"Date": None} if form == ".svg" else None
        figure.savefig(content, format=form[1:], metadata=metadata)
    return content.getvalue()
