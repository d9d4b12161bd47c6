"""HTML pages of one file each: a template, the style that all share, data that breaks nothing."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_FOLDER = Path(__file__).parent


def fill_page(template: str, **parts: str) -> str:
    """Return a page: the template of that name with `{{name}}` replaced by each part.

    Args:
        template: a file beside this module.
        parts: HTML as it stands; `base`, the shared style, is there already.
    """
    parts = {"base": part_of_page("page_base.css"), **parts}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], part_of_page(template))


def part_of_page(name: str) -> str:
    """Return the text of a file beside this module."""
    return (_FOLDER / name).read_text(encoding="utf-8").rstrip()


def numbers_in_json(numbers: NDArray[Any]) -> str:
    """Return the bytes of an array as base64, for JSON."""
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def json_in_html(data: Any) -> str:
    """Return JSON that cannot end the `<script>` around it, whatever names the data hold."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
