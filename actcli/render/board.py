"""A 2048 board drawn as coloured tiles."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

EMPTY_COLOUR = "#cdc1b4"
BOARD_COLOUR = "#bbada0"
TILE_COLOURS = (
    EMPTY_COLOUR,
    *("#eee4da", "#ede0c8", "#f2b179", "#f59563", "#f67c5f", "#f65e3b"),
    *("#edcf72", "#edcc61", "#edc850", "#edc53f", "#edc22e"),
    *("#b784ab", "#aa60a6", "#8e44ad", "#5b3f8c", "#34495e"),
)
"""By exponent: empty, 2, 4, ... 65536."""

_DARK_TEXT, _LIGHT_TEXT = "#776e65", "#f9f6f2"
_LAST_DARK_TEXT = 2
_FONT_SIZES = {1: 15, 2: 14, 3: 12, 4: 10, 5: 8.5}


def draw_board(axes: Axes, board_T: NDArray[np.uint8], *, scale: float = 1.0) -> None:
    """Draw a board of side × side cells, row 1 on top, with row and column numbers.

    Args:
        axes: an empty square to draw in.
        board_T: tile exponents, row-major.
        scale: factor of the font sizes.
    """
    side = round(len(board_T) ** 0.5)
    axes.set(xlim=(-0.04, side + 0.04), ylim=(side + 0.04, -0.04), aspect="equal")
    axes.set_facecolor(BOARD_COLOUR)
    for cell, exponent in enumerate(board_T.tolist()):
        _draw_tile(axes, cell % side, cell // side, exponent, scale)
    centres = np.arange(side) + 0.5
    axes.set_xticks(centres, [f"c{i + 1}" for i in range(side)], fontsize=7 * scale)
    axes.set_yticks(centres, [f"r{i + 1}" for i in range(side)], fontsize=7 * scale)
    axes.tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)


def _draw_tile(axes: Axes, x: int, y: int, exponent: int, scale: float) -> None:
    colour = TILE_COLOURS[min(exponent, len(TILE_COLOURS) - 1)]
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch((x + 0.05, y + 0.05), 0.9, 0.9, boxstyle=shape, fc=colour, ec="none")
    )
    if exponent:
        text = str(1 << exponent)
        axes.text(
            x + 0.5,
            y + 0.52,
            text,
            ha="center",
            va="center",
            fontsize=_FONT_SIZES.get(len(text), 6) * scale,
            fontweight="bold",
            color=_DARK_TEXT if exponent <= _LAST_DARK_TEXT else _LIGHT_TEXT,
        )
