r"""How tokens are written: each to be told from the next, and none breaks what it stands in.

A backslash, and whatever cannot be printed (line ends, control characters, blanks other than the
space, lone surrogates), stand as in a Python string: `\\`, `\n`, `\x00`, `\u200b`. That can be
undone: `text.encode("latin-1", "backslashreplace").decode("unicode_escape")`.
"""

import unicodedata
from functools import lru_cache

_NAMED = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_SPACE = "␣"
_CUT = "…"


def escaped(text: str) -> str:
    """Return a token's text on one line, all its characters to be seen; see the module."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape, text))


def marked(text: str) -> str:
    """Return an escaped text for people: spaces at its ends are drawn, as are those of a blank."""
    shown = escaped(text)
    inner = shown.strip(" ")
    if not inner:
        return _SPACE * len(shown)
    before = len(shown) - len(shown.lstrip(" "))
    after = len(shown) - len(shown.rstrip(" "))
    return _SPACE * before + inner + _SPACE * after


def brief(text: str, *, width: int) -> str:
    """Return an escaped text of at most so many columns, without the spaces around a word."""
    return cut(escaped(text).strip(" ") or marked(text), width=width)


def cut(shown: str, *, width: int) -> str:
    """Return the beginning of a text, of at most so many columns and with `…` at the cut.

    Characters of East Asia take two columns, marks above others none.
    """
    if columns(shown) <= width:
        return shown
    kept = ""
    for each in shown:
        if columns(kept + each) > width - 1:
            break
        kept += each
    return kept + _CUT


def columns(text: str) -> int:
    """How many columns a text takes where all characters are of one width, or of twice that."""
    return sum(map(_columns, text))


@lru_cache(maxsize=1 << 14)
def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _escape(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    return character if character.isprintable() else _code(character)


def _code(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
