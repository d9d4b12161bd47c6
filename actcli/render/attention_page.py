"""Attention as one HTML page that needs nothing but a browser: no network, no build step.

The page itself is `attention_page.html`, with styles and a script of their own for boards and for
texts; this module writes the data into it. Weights stand there as little-endian float32, so that
the numbers under the pointer are those of the model, bit by bit.

Tensor legend: L layers, A heads (and their mean), T queries, S keys, K keys and sink.
"""

import html
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from actcli.errors import UsageError
from actcli.render.board import TILE_COLOURS
from actcli.render.lens_tokens import escaped
from actcli.render.pages import fill_page, json_in_html, numbers_in_json, part_of_page
from actcli.reports.attention import (
    AttentionMaps,
    AttentionReport,
    HeadReport,
    TextHeadReport,
    TextMaps,
)

_MOST_WEIGHTS = 1 << 26  # float32: more than a browser takes in one page
_COLOURS = "magma"
_AVERAGE = "avg"
_BOARD_WORDS = {"entropy_bits": "entropy (bits)", "mean_distance": "mean distance (steps)"}
_TEXT_WORDS = {
    "entropy_bits": "entropy (bits)",
    "mean_distance": "mean distance (tokens)",
    "first_mass": "first token",
    "previous_mass": "previous token",
}


def attention_page(maps: AttentionMaps | TextMaps, report: AttentionReport, *, title: str) -> str:
    """Write the page: all samples, layers and heads to look at, and the heads' numbers to sort.

    Args:
        maps: what to draw; where there are several heads, the mean of all is added to each layer.
        report: the numbers of the heads to show, all or some of them.
        title: heading of the page, plain text.

    Returns:
        a whole HTML document.

    Raises:
        UsageError: there is more than a page can hold.
    """
    kind = "text" if isinstance(maps, TextMaps) else "boards"
    return fill_page(
        "attention_page.html",
        title=html.escape(title),
        data=json_in_html(_page_data(maps, report)),
        style=part_of_page(f"attention_page_{kind}.css"),
        script=part_of_page(f"attention_page_{kind}.js"),
    )


def _page_data(maps: AttentionMaps | TextMaps, report: AttentionReport) -> dict[str, Any]:
    named = {each.head for each in report.heads}
    heads = [head for head in maps.heads if head in named]
    average = [_AVERAGE] if len(maps.heads) > 1 else []
    lengths = [each.shape[-1] for each in maps.weights]
    _check_size(lengths, n_maps=len(maps.layers) * (len(heads) + len(average)))
    return {
        "input": report.input,
        "samples": maps.samples,
        "layers": [layer + 1 for layer in maps.layers],
        "heads": [*map(str, heads), *average],
        "hasSinks": maps.has_sinks,
        "lengths": lengths,
        "weights": numbers_in_json(_weights(maps, heads, average=bool(average)).astype("<f4")),
        "numbers": [each.model_dump() for each in report.heads],
        "columns": _columns(maps),
        "colours": numbers_in_json(mpl.colormaps[_COLOURS](range(256), bytes=True)[:, :3]),
        **_samples(maps),
    }


def _check_size(lengths: list[int], *, n_maps: int) -> None:
    n_weights = n_maps * sum(n_tokens**2 for n_tokens in lengths)
    if n_weights > _MOST_WEIGHTS:
        raise UsageError(
            f"--html: {n_weights:,} weights are more than a page can hold ({_MOST_WEIGHTS:,}): "
            f"choose fewer --samples, --layer or --heads"
        )


def _samples(maps: AttentionMaps | TextMaps) -> dict[str, Any]:
    if isinstance(maps, TextMaps):
        tokens = [[escaped(token) for token in each] for each in maps.tokens]
        return {"tokens": tokens, "ids": [each.tolist() for each in maps.token_ids]}
    boards = maps.boards_BT.tolist()
    return {"side": maps.side, "boards": boards, "tileColours": TILE_COLOURS}


def _weights(
    maps: AttentionMaps | TextMaps, heads: list[int], *, average: bool
) -> NDArray[np.float32]:
    """Weights of some heads (L, A, T, K) of one sample after the other, flat."""
    return np.concatenate(
        [
            _weights_LATK(weights_LATS, sinks_LAT if maps.has_sinks else None, heads, average)
            for weights_LATS, sinks_LAT in zip(maps.weights, maps.sinks, strict=True)
        ],
        axis=None,
    )


def _weights_LATK(
    weights_LATS: NDArray[np.float32],
    sinks_LAT: NDArray[np.float32] | None,
    heads: list[int],
    average: bool,
) -> NDArray[np.float32]:
    """The sink is the last key, the mean of all heads the last head."""
    weights = weights_LATS
    if sinks_LAT is not None:
        weights = np.concatenate([weights, sinks_LAT[..., None]], axis=-1)
    chosen = weights[:, heads]
    if not average:
        return chosen
    mean = weights.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    return np.concatenate([chosen, mean], axis=1)


def _columns(maps: AttentionMaps | TextMaps) -> list[dict[str, str | None]]:
    """The numbers of a head: name in the report, words for it, what it means."""
    is_text = isinstance(maps, TextMaps)
    head, words = (TextHeadReport, _TEXT_WORDS) if is_text else (HeadReport, _BOARD_WORDS)
    return [
        {
            "name": name,
            "label": words.get(name, name.removesuffix("_mass").replace("_", " ")),
            "help": field.description,
        }
        for name, field in head.model_fields.items()
        if name != "sink_mass" or maps.has_sinks
    ]
