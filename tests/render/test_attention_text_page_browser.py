"""The page of texts in a real browser: words that would break out, and texts of unequal length."""

import numpy as np
import pytest

from actcli.analysis.attention_text import measure_text_heads
from actcli.render.attention_page import attention_page
from actcli.reports.attention import TextMaps
from tests.analysis.test_attention_text import random_texts
from tests.render.in_browser import MARKS, find, find_all
from tests.render.test_attention_page_browser import (
    clear_of_pointer,
    pixels,
    point_at,
    reading,
    thumbnail,
)

pytestmark = MARKS
HOSTILE = "</script><script>document.title='broken'</script>"
WORDS = (HOSTILE, " capital", "  ", "\n", "<b>of</b>", "日本", "$5$", " é")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sinks"])
def maps(request):
    found = random_texts(4, has_sinks=request.param, lengths=(8, 1, 5))
    tokens = tuple(WORDS[: len(each)] for each in found.tokens)
    weights, ids, samples = found.weights, found.token_ids, (3, 17, 4)
    return TextMaps(weights, ids, tokens, samples, found.layers, found.has_sinks)


@pytest.fixture
def page(browser, maps, tmp_path):
    path = tmp_path / "attention.html"
    report = measure_text_heads(maps, source=HOSTILE)
    path.write_text(attention_page(maps, report, title=HOSTILE), encoding="utf-8")
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.title == HOSTILE


def choose(page, *, sample=0, layer=0, head=0):
    find_all(page, "#samples button")[sample].click()
    thumbnail(page, layer, head).click()


def test_tokens_stand_as_words_with_their_places(page, maps):
    shown = [each.text for each in find_all(page, "#board .word")]
    assert shown == [HOSTILE, "capital", "␣␣", r"\n", "<b>of</b>", "日本", "$5$", "é"]
    assert [each.text for each in find_all(page, "#board .under-word")] == [*map(str, range(8))]
    labels = [each.get_attribute("aria-label") for each in find_all(page, "#board button")]
    assert labels[1] == "1 “ capital”"
    assert "3 texts" in find(page, "#about").text


def test_a_chosen_token_shades_the_others_by_its_weights(page, maps):
    choose(page, sample=2, layer=1, head=2)
    find_all(page, "#board button")[3].click()
    row = maps.weights[2][1, 2, 3]
    cells = find_all(page, "#board button")
    assert [np.float32(each.get_attribute("data-weight")) for each in cells] == [*row]
    assert [each.text for each in find_all(page, "#board .under-word")] == [
        f"{weight:.3f}" for weight in row
    ]
    if maps.has_sinks:
        found = np.float32(find(page, "#sink").get_attribute("data-weight"))
        assert found == maps.sinks[2][1, 2, 3]


@pytest.mark.parametrize("sample", [0, 1, 2])
def test_the_value_under_the_pointer_is_the_number_in_the_data(page, maps, sample):
    choose(page, sample=sample, layer=1, head=1)
    clear_of_pointer(page)
    size, seen = find(page, "#map").size, set()
    for step in range(24):
        x = 108 + (size["width"] - 114) * (step % 6) // 5
        y = 96 + (size["height"] - 102) * (step % 8) // 7
        point_at(page, x, y)
        query, key, weight = reading(page)
        if query is None:
            continue
        place = 1, 1, int(query)
        sinks = maps.sinks[sample]
        expected = sinks[place] if key == "sink" else maps.weights[sample][place][int(key)]
        assert np.float32(weight) == expected
        seen.add((query, key))
    assert len(seen) >= min(8, len(maps.tokens[sample]))


def test_thumbnails_have_the_size_of_the_text(page, maps):
    for sample in (0, 1, 2):
        choose(page, sample=sample)
        n_tokens = len(maps.tokens[sample])
        selector = '#heads button[data-layer="1"][data-head="2"] canvas'
        found = pixels(page, selector)
        assert found.shape[:2] == (n_tokens, n_tokens + 2 * maps.has_sinks)


def test_a_query_beyond_the_end_of_a_shorter_text_is_left(page):
    find_all(page, "#board button")[7].click()
    choose(page, sample=1)
    assert len(find_all(page, "#board button")) == 1
    assert find_all(page, '#board button[aria-pressed="true"]') == []


def test_numbers_that_no_text_has_are_shown_as_a_dash(browser, tmp_path):
    maps = random_texts(4, lengths=(1,))
    path = tmp_path / "one.html"
    report = measure_text_heads(maps, source="x")
    path.write_text(attention_page(maps, report, title="x"), encoding="utf-8")
    browser.get(path.as_uri())
    assert find(browser, '#numbers dd[data-name="first_mass"]').text == "–"
    assert find(browser, '#numbers dd[data-name="self_mass"]').text == "1.000"
    assert browser.get_log("browser") == []


def test_nothing_is_wider_than_the_window(page):
    try:
        for width in (1280, 800):
            page.set_window_size(width, 1000)
            box = find(page, "html")
            assert int(box.get_property("scrollWidth")) <= int(box.get_property("clientWidth"))
    finally:
        page.set_window_size(1280, 1000)
