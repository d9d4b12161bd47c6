"""HTML pages of one file each: a template, the style that all share, data that breaks nothing."""

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_FOLDER = Path(__file__).parent


def fill_page(template: str, **parts: str) -> str:
    """Return a page: the template of that name with `{{name}}` replaced by each part.

    Args:
        template: a file beside this module.
        parts: HTML as it stands; `base`, the shared style, and `helpers`, the shared script, are
            there already, and so is `head`, which takes the `title` and opens the style.
    """
    shared = {"base": part_of_page("page_base.css"), "helpers": part_of_page("page_helpers.js")}
    parts = {**shared, **parts}
    whole = part_of_page(template).replace("{{head}}", part_of_page("page_head.html"))
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], whole)


def part_of_page(name: str) -> str:
    """Return the text of a file beside this module."""
    return (_FOLDER / name).read_text(encoding="utf-8").rstrip()


def those_that_fit(texts: Iterable[str], *, most: int) -> list[str]:
    """Return the first texts that are not longer than `most` together, but never none of them."""
    taken: list[str] = []
    for text in texts:
        most -= len(text)
        if taken and most < 0:
            break
        taken.append(text)
    return taken


def numbers_in_json(numbers: NDArray[Any]) -> str:
    """Return the bytes of an array as base64, for JSON."""
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def json_in_html(data: Any) -> str:
    """Return JSON that cannot end the `<script>` around it, whatever names the data hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
