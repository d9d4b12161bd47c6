"""Attention as one HTML page that needs nothing but a browser: no network, no build step.

The page itself is `attention_page.html`; this module writes the data into it. Weights stand there
as little-endian float32, so that the numbers under the pointer are those of the model, bit by bit.

Tensor legend: B samples, L layers, A heads (and their mean), T queries, S keys, K keys and sink.
"""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from actcli.render.board import TILE_COLOURS
from actcli.reports.attention import AttentionMaps, AttentionReport, HeadReport

_TEMPLATE = Path(__file__).with_name("attention_page.html")
_COLOURS = "magma"
_AVERAGE = "avg"
_UNITS = {"entropy_bits": "entropy (bits)", "mean_distance": "mean distance (steps)"}


def attention_page(maps: AttentionMaps, report: AttentionReport, *, title: str) -> str:
    """Write the page: all samples, layers and heads to look at, and the heads' numbers to sort.

    Args:
        maps: what to draw; where there are several heads, the mean of all is added to each layer.
        report: the numbers of the heads to show, all or some of them.
        title: heading of the page, plain text.

    Returns:
        a whole HTML document.
    """
    parts = {"title": html.escape(title), "data": _json_in_html(_page_data(maps, report))}
    template = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _page_data(maps: AttentionMaps, report: AttentionReport) -> dict[str, Any]:
    named = {each.head for each in report.heads}
    heads = [head for head in maps.heads if head in named]
    average = [_AVERAGE] if len(maps.heads) > 1 else []
    return {
        "input": report.input,
        "samples": maps.samples,
        "layers": [layer + 1 for layer in maps.layers],
        "heads": [*map(str, heads), *average],
        "side": maps.side,
        "hasSinks": maps.has_sinks,
        "boards": maps.boards_BT.tolist(),
        "weights": _base64(_weights_BLATK(maps, heads, average=bool(average)).astype("<f4")),
        "numbers": [each.model_dump() for each in report.heads],
        "columns": _columns(maps),
        "colours": _base64(mpl.colormaps[_COLOURS](range(256), bytes=True)[:, :3]),
        "tileColours": TILE_COLOURS,
    }


def _weights_BLATK(maps: AttentionMaps, heads: list[int], *, average: bool) -> NDArray[np.float32]:
    """Weights of some heads, with the sink as last key and the mean of all heads as last head."""
    weights = maps.weights_BLATS
    if maps.has_sinks:
        weights = np.concatenate([weights, maps.sinks_BLAT[..., None]], axis=-1)
    chosen = weights[:, :, [maps.heads.index(head) for head in heads]]
    if not average:
        return chosen
    mean = weights.mean(axis=2, dtype=np.float64, keepdims=True).astype(np.float32)
    return np.concatenate([chosen, mean], axis=2)


def _columns(maps: AttentionMaps) -> list[dict[str, str | None]]:
    """The numbers of a head: name in the report, words for it, what it means."""
    return [
        {
            "name": name,
            "label": _UNITS.get(name, name.removesuffix("_mass").replace("_", " ")),
            "help": field.description,
        }
        for name, field in HeadReport.model_fields.items()
        if name != "sink_mass" or maps.has_sinks
    ]


def _base64(numbers: NDArray[Any]) -> str:
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _json_in_html(data: dict[str, Any]) -> str:
    """JSON that cannot end the `<script>` around it, whatever names the data hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
