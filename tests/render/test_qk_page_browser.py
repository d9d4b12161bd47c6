"""The page in a real browser: pairs taken away, attention computed anew."""

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from actcli.render.qk_page import qk_page
from tests.render.in_browser import MARKS, ActionChains, choose, find, find_all
from tests.render.qk_made import EVIL, made_report, made_view, softmax

pytestmark = MARKS
SINKS = np.array([0.5, -1.0, 2.0], dtype=np.float32)
TOKENS = (" plain", EVIL, "x", "<i>", " y ", "&amp;", " z")
FIRST = made_view(tokens=TOKENS)
BENT = made_view(seed=4, layer=3, sample=2, softcap=1.5, sinks_A=SINKS, first_key=5)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "pairs.html"
    page = qk_page([FIRST, BENT], made_report(), title="Pairs of <svd:8>")
    path.write_text(page.html, encoding="utf-8")
    return path.as_uri()


def values(page, name):
    return [float(bar.get_attribute("data-value")) for bar in find_all(page, f"#attention .{name}")]


def without(view, away):
    """Attention of all heads, with the sink where there is one, after taking pairs away."""
    pairs = view.pairs
    logits = pairs.ground_truth.astype(np.float64) - pairs.top_contrib[:, away].sum(1)
    attention = softmax(logits, softcap=pairs.softcap, sinks_A=pairs.sinks_A)
    if pairs.sinks_A is None:
        return attention
    return np.column_stack([attention, 1 - attention.sum(axis=1)])


@pytest.mark.parametrize("head", [0, 1, 2, "mean"])
def test_attention_is_that_of_the_logits_without_the_pairs(page, head):
    for view in (FIRST, BENT):
        choose(page, "layer", view.pairs.layer)
        choose(page, "head", 3 if head == "mean" else head)
        heads = slice(None) if head == "mean" else slice(head, head + 1)
        expected = without(view, [])[heads].mean(axis=0)
        np.testing.assert_allclose(values(page, "model"), expected, atol=1e-6)
        assert values(page, "changed") == []
        for pair in (1, 3):
            find(page, f'#pairs [data-pair="{pair}"]').click()
        expected = without(view, [1, 3])[heads].mean(axis=0)
        np.testing.assert_allclose(values(page, "changed"), expected, atol=1e-6)
        find(page, "#all").click()
        assert values(page, "changed") == []


def test_a_pairs_row_says_how_much_attention_it_moves(page):
    choose(page, "layer", 3)
    choose(page, "head", 1)
    before, after = without(BENT, [])[1], without(BENT, [4])[1]
    row = find_all(page, "#pairs tbody tr")[4].text
    moved = 100 * np.abs(before - after).sum() / 2
    shown = float(row.rpartition(" ")[2].rstrip("%"))
    assert shown == pytest.approx(moved, abs=0.05)


def test_only_visible_pairs_are_drawn_until_all_are_asked_for(page):
    head = int(FIRST.pairs.visible.sum(axis=1).argmin())
    choose(page, "head", head)
    paths = find_all(page, "#lines path[data-pair]")
    drawn = [int(path.get_attribute("data-pair")) for path in paths]
    assert drawn == np.flatnonzero(FIRST.pairs.visible[head]).tolist()
    assert 0 < len(drawn) < 5
    find(page, "#faint").click()
    assert len(find_all(page, "#lines path[data-pair]")) == 5
    assert len(find_all(page, "#lines path.sum, #lines path.truth")) == 2


def test_the_ledger_adds_up_at_the_chosen_key(page):
    choose(page, "head", 0)
    find(page, "#lines").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    numbers = [float(dd.text.replace("−", "-")) for dd in find_all(page, "#ledger dd")]
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.003)
    assert numbers[-1] == pytest.approx(FIRST.pairs.ground_truth[0, 1], abs=0.001)
    assert "key 1" in find(page, "#readout").text


def test_hostile_tokens_are_shown_as_text(page):
    assert find(page, "h1").text == "Pairs of <svd:8>"
    shown = [span.text for span in find_all(page, "#text .token")]
    assert shown[:4] == ["␣plain", "</script><b>\\u202e$x_1$&\\n", "x", "<i>"]
    assert find_all(page, "#text b, #text i") == []


def test_the_keyboard_reaches_pairs_and_keeps_its_place(page):
    box = find(page, '#pairs [data-pair="2"]')
    ActionChains(page).move_to_element(box).perform()
    box.send_keys(Keys.SPACE)
    focused = page.switch_to.active_element
    assert focused.get_attribute("data-pair") == "2"
    assert not focused.is_selected()
    focused.send_keys(Keys.SPACE)
    assert page.switch_to.active_element.is_selected()


def test_dark_and_light(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    first = page.execute_script(colour)
    find(page, "#theme").click()
    assert page.execute_script(colour) != first


def test_a_narrow_window_needs_no_sideways_scrolling(page):
    page.set_window_size(520, 900)
    width = page.execute_script("return document.documentElement.scrollWidth - innerWidth")
    page.set_window_size(1400, 1200)
    assert width <= 0
