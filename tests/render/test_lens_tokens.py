"""Tokens in text: what is written can be undone, stands on one line, and fits."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from actcli.render.lens_letters import drawable
from actcli.render.lens_tokens import brief, columns, cut, escaped, marked

ANYTHING = st.text(st.characters(exclude_categories=()))  # surrogates, too


def undone(shown):
    """The rule that the module states."""
    return shown.encode("latin-1", "backslashreplace").decode("unicode_escape")


@given(ANYTHING)
def test_escapes_can_be_undone(text):
    assert undone(escaped(text)) == text


@given(ANYTHING)
def test_an_escaped_text_is_one_printable_line(text):
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(each)[0] == "C" for each in shown)
    assert shown.encode("utf-8").decode() == shown


def test_escapes_are_those_of_python():
    assert escaped("a\n\t\r\\n\x00\u200b\u00a0") == r"a\n\t\r\\n\x00\u200b\xa0"
    assert escaped(' "Berlin", NA é 中 🎉 \ufffd') == ' "Berlin", NA é 中 🎉 \ufffd'
    assert escaped("\U000e0001\udcff") == r"\U000e0001\udcff"


@given(ANYTHING, st.integers(1, 12))
def test_a_short_text_fits(text, width):
    short = brief(text, width=width)
    assert columns(short) <= width
    whole = brief(text, width=10_000)
    assert short == whole or (short.endswith("…") and whole.startswith(short[:-1]))


def test_columns_are_what_a_terminal_gives():
    assert [columns(each) for each in ("abc", "中国", "e\u0301", "")] == [3, 4, 1, 0]
    assert cut("中国人民", width=6) == "中国…"
    assert brief(" Berlin", width=6) == "Berlin"
    assert brief("  ", width=6) == "␣␣"


def test_spaces_at_the_ends_are_marked():
    assert [marked(each) for each in (" a b ", "  ", "a", "")] == ["␣a b␣", "␣␣", "a", ""]


def test_what_no_font_has_is_drawn_as_its_code():
    assert drawable("naïve ␣…≤") == "naïve ␣…≤"
    assert drawable("a\U0001f9ffb") == r"a\U0001f9ffb"
