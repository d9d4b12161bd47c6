"""The page in a real browser, with the exact numbers of a golden model."""

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from actcli.render.lens_grid import METRICS, followed, grid_of
from actcli.render.lens_page import lens_page
from tests.render.in_browser import (
    MARKS,
    ActionChains,
    check_fits,
    check_themes,
    choose,
    find,
    find_all,
    press,
)
from tests.render.test_lens_grid import CONTRAST, golden, two_streams
from tests.render.test_lens_page import EVIL, lens_report, raw, text_of

pytestmark = MARKS
TITLE = "Logit lens of <llama> & friends"
LAST = 4


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "lens.html"
    report = lens_report(lens=raw(), warnings=("a <warning>",))
    page = lens_page(two_streams(), report, text_of=text_of, title=TITLE)
    path.write_text(page.html, encoding="utf-8")
    return path.as_uri()


def cell(page, layer, place):
    """A cell by layer, the last of which is on top."""
    return find(page, f"#grid tbody tr:nth-child({LAST + 1 - layer}) td:nth-child({place + 2})")


def shown_cell(page):
    """What the page tells of a cell: its place, its likeliest tokens, its numbers."""
    box = find(page, "#cell")
    top = [
        (int(button.get_attribute("data-token")), np.float32(share.get_attribute("data-value")))
        for button, share in zip(
            find_all(page, "#top-k button"), find_all(page, "#top-k td.share"), strict=True
        )
    ]
    numbers = {
        each.get_attribute("data-name"): each.get_attribute("data-value")
        for each in find_all(page, "#metrics dd[data-name]")
    }
    return (box.get_attribute("data-place"), int(box.get_attribute("data-pos"))), top, numbers


def check_cell(page, grid, layer, place):
    where, top, numbers = shown_cell(page)
    assert where == (grid.places[layer], place)
    ids, ps = grid.shaped(grid.table.top_ids), grid.shaped(grid.table.top_p)
    assert top == list(zip(ids[layer, place].tolist(), ps[layer, place], strict=True))
    assert [*numbers] == [*METRICS]
    for name, text in numbers.items():
        expected = grid.metric(name)[layer, place]
        assert text == "" if np.isnan(expected) else np.float32(text) == expected


def numbers_of_lines(page):
    """The table under the lines: for each token, what is said of each layer."""
    page.execute_script("document.querySelector('details').open = true")
    heads = [each.text for each in find_all(page, "#numbers th")][1:]
    rows = [
        [each.text for each in row.find_elements(By.TAG_NAME, "td")]
        for row in find_all(page, "#numbers tbody tr")
    ]
    return heads, {row[0]: row[1:] for row in rows}


def as_shown(p):
    if np.isnan(p):
        return "–"
    if p < 0.0005:
        number, _, power = f"{p:.1e}".partition("e")
        return f"{number}e{int(power)}"
    return f"{p:.4f}"


def test_opens_from_a_file_and_asks_the_network_for_nothing(page):
    assert page.current_url.startswith("file://")
    assert page.title == find(page, "h1").text == TITLE
    requests = page.execute_script(
        "return performance.getEntriesByType('resource').map(each => each.name)"
    )
    assert [each for each in requests if not each.startswith("data:")] == []
    assert find(page, "#note").text == "raw lens (no final norm)"
    assert find(page, "#warnings").text == "a <warning>"


def test_the_grid_has_the_likeliest_tokens_with_the_last_layer_on_top(page):
    ids = golden()["topk_ids"][:, 0, :, 0]
    for layer in range(5):
        for place in range(9):
            text = text_of(int(ids[layer, place])).strip(" ")
            shown = text.encode("unicode_escape").decode() or "␣␣"
            assert cell(page, layer, place).get_property("textContent") == shown
    heads = [each.text for each in find_all(page, "#grid tbody th")]
    assert heads == ["post:3", "post:2", "post:1", "post:0", "embed"]


def test_it_starts_at_the_last_layer_and_position(page):
    check_cell(page, grid_of(two_streams(), sample=3), LAST, 8)


def test_a_cell_under_the_pointer_shows_its_records(page):
    grid = grid_of(two_streams(), sample=3)
    for layer, place in [(0, 0), (2, 5), (3, 1)]:
        ActionChains(page, duration=0).move_to_element(cell(page, layer, place)).perform()
        check_cell(page, grid, layer, place)
    ActionChains(page, duration=0).move_to_element(find(page, "h1")).perform()
    check_cell(page, grid, LAST, 8)


def test_other_samples_and_streams(page):
    choose(page, "sample", 1)
    check_cell(page, grid_of(two_streams(), sample=8), LAST, 8)
    choose(page, "stream", 1)
    check_cell(page, grid_of(two_streams(), sample=8, stream="attn"), LAST, 8)
    assert find(page, "#grid tbody th").text == "attn:4"
    choose(page, "sample", 0)
    check_cell(page, grid_of(two_streams(), sample=3, stream="attn"), LAST, 8)


@pytest.mark.parametrize("name", METRICS)
def test_cells_are_shaded_by_the_chosen_number(page, name):
    choose(page, "metric", [*METRICS].index(name))
    metric, values = METRICS[name], grid_of(two_streams(), sample=3).metric(name)
    there = values[~np.isnan(values)]
    least = 1 if metric.is_rank else min(0, there.min())
    most = metric.most or there.max()
    script = """
        return [...document.querySelectorAll('#grid tbody tr')].reverse().map(row =>
          [...row.querySelectorAll('td')].map(each => each.className === 'none' ? null
            : getComputedStyle(each).backgroundColor))"""
    import matplotlib as mpl

    for layer, row in enumerate(page.execute_script(script)):
        for place, colour in enumerate(row):
            value = values[layer, place]
            if np.isnan(value):
                assert colour is None
                continue
            part = (value - least) / (most - least)
            if metric.is_rank:
                part = np.log(value) / np.log(most)
            index = round(255 * float(1 - part if metric.bright_when_low else part))
            found = [*map(int, colour[4:-1].split(","))]
            expected = mpl.colormaps["viridis"](index, bytes=True)[:3]
            assert found == pytest.approx(expected, abs=3)


def test_a_click_on_a_cell_follows_its_token(page):
    grid = grid_of(two_streams(), sample=3)
    cell(page, 1, 4).click()
    check_cell(page, grid, 1, 4)
    token = int(golden()["topk_ids"][1, 0, 4, 0])
    (_target, head), rows = numbers_of_lines(page)
    assert head.strip(" ␣") == text_of(token).strip()
    p_G = followed(grid, token)[:, 4]
    assert [rows[place][1] for place in grid.places] == [as_shown(p) for p in p_G]
    curve = find(page, f'#lines path[data-token="{token}"]').get_attribute("d")
    assert curve.count("M") + curve.count("L") == np.isfinite(p_G).sum()
    assert len(find_all(page, "#lines circle.gap")) == np.isnan(p_G).sum()


def test_answer_and_contrast_are_known_at_every_layer(page):
    grid = grid_of(two_streams(), sample=3)
    heads, rows = numbers_of_lines(page)
    answer = text_of(int(golden()["target"][0, -1])).strip()
    assert [head.strip(" ␣") for head in heads[:2]] == [answer, text_of(CONTRAST).strip()]
    for role, name, column in (("answer", "target", 0), ("contrast", "contrast", 1)):
        expected = [as_shown(p) for p in grid.metric(name)[:, -1]]
        assert [rows[place][column] for place in grid.places] == expected
        assert any(each.text.startswith(role) for each in find_all(page, "#names .name"))
    assert "–" not in expected


def test_a_click_on_a_token_of_the_table_adds_and_takes_away_its_line(page):
    button = find(page, "#top-k tr:nth-child(4) button")
    token = int(button.get_attribute("data-token"))
    before = len(find_all(page, "#lines path"))
    was_there = button.get_attribute("aria-pressed") == "true"
    button.click()
    assert bool(find_all(page, f'#lines path[data-token="{token}"]')) is not was_there
    assert len(find_all(page, "#lines path")) == before + (-1 if was_there else 1)
    find(page, "#top-k tr:nth-child(4) button").click()
    assert len(find_all(page, "#lines path")) == before


def test_what_is_said_of_a_sample(page):
    said = find(page, "#said").text
    assert "p(contrast) - p(answer) is at most +0.125, at post:1; -0.500 at the end" in said
    assert find(page, '#said dd[data-name="L_semantic"]').text == "post:2 (75%)"
    assert find(page, '#said dd[data-name="L_copy"]').text == "never"
    assert find(page, "#prompt").text == f"give the city {EVIL}"


def test_everything_can_be_done_with_the_keyboard(page):
    grid = grid_of(two_streams(), sample=3)
    press(page, Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert page.switch_to.active_element == cell(page, LAST, 8)
    press(page, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    check_cell(page, grid, 3, 6)
    press(page, Keys.HOME, Keys.PAGE_DOWN)
    check_cell(page, grid, 0, 0)
    press(page, Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ENTER)
    check_cell(page, grid, 0, 1)
    token = int(golden()["topk_ids"][0, 0, 1, 0])
    assert find_all(page, f'#lines path[data-token="{token}"]')
    assert len(find_all(page, '#grid td[tabindex="0"]')) == 1
    assert len(find_all(page, '#grid td[aria-selected="true"]')) == 1


def test_what_has_the_focus_is_seen_and_the_grid_is_one_stop(page):
    stops = []
    page.execute_script("document.activeElement.blur()")
    for _ in range(40):
        press(page, Keys.TAB)
        focused = page.switch_to.active_element
        if focused.tag_name == "body":
            break
        style = focused.value_of_css_property("outline-style")
        assert style in {"solid", "auto"}, focused.get_attribute("outerHTML")
        stops.append(focused.tag_name)
    assert stops.count("td") == 1
    assert stops.count("select") == 3
    assert len(stops) < 25


def test_every_cell_says_what_it_is(page):
    choose(page, "metric", [*METRICS].index("rank"))
    token, rank = golden()["topk_ids"][2, 0, 3, 0], golden()["rank_target"][2, 0, 3]
    assert cell(page, 2, 3).get_attribute("aria-label") == (
        f"post:1, position 3: ␣{text_of(int(token)).strip()}, rank of the target {rank}"
    )


def test_nothing_is_wider_than_the_window(page):
    check_fits(page, ("html", "#top-k", "#cell"), widths=(1280, 800))


def test_dark_and_light(page):
    check_themes(page)
