"""Texts that matplotlib's fonts can draw: what none of them knows is written as its code.

The font that comes with matplotlib knows most alphabets. For Chinese, Japanese, Korean, Indic and
others there are fonts that systems bring along, where they are installed. Emoji in colour cannot be
drawn by matplotlib.
"""

from functools import cache
from typing import Any

_BUNDLED = "DejaVu Sans"
_OFTEN_THERE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Noto Sans Symbols2",
    "Arial Unicode MS",
    "Segoe UI Symbol",
)


@cache
def families() -> tuple[str, ...]:
    """The fonts to draw with, in the order in which a character is looked for."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return (_BUNDLED, *(each for each in _OFTEN_THERE if each in installed))


def drawable(text: str) -> str:
    r"""Return a text with the code (`\u4e2d`) in place of each character that no font knows."""
    known = _known()
    return "".join(each if ord(each) in known else _code(each) for each in text)


def plain(**more: Any) -> dict[str, Any]:
    """Properties of a text that is drawn as it is: `$` begins no formula."""
    return {"parse_math": False, "fontfamily": list(families()), **more}


@cache
def _known() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = [findfont(FontProperties(family=each)) for each in families()]
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
