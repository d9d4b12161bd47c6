"""The page of an evaluation in a real browser: tables, charts, what can be chosen."""

import pytest

from actcli.render.sae_page import sae_page
from tests.render.in_browser import MARKS, ActionChains, choose, find, find_all, wait_for
from tests.render.sae_made import (
    EVIL,
    made_description,
    made_dictionary,
    made_evaluation,
    made_reconstruction,
)

pytestmark = MARKS
SIZES = (32, 128, 256, 512)
OURS = made_dictionary(
    "ours",
    fvu=0.21,
    sae=made_description("ours", prefixes=SIZES, notes=("a note <i>",)),
    prefixes=SIZES,
    warnings=("a warning",),
)
GOOGLE = made_dictionary("google", seed=1, fvu=0.28, mean_l0=61)
SHOWN_EVIL = "</script><b>\\u202e$x_1$&\\n"
REPORT = made_evaluation(
    OURS,
    GOOGLE,
    made_dictionary(EVIL, seed=2, fvu=0.4, mean_l0=18, n_pairs=0),
    made_dictionary("topk", seed=3, fvu=0.16, mean_l0=80, prefixes=(64, 512)),
    made_dictionary("dense", seed=4, reconstruction=made_reconstruction(0.1, fvu=None)),
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "one.html").write_text(sae_page(made_evaluation(GOOGLE)), encoding="utf-8")
    path = folder / "many.html"
    path.write_text(sae_page(REPORT), encoding="utf-8")
    return path.as_uri()


def texts(page, selector):
    return [each.text for each in find_all(page, selector)]


def test_numbers_errors_and_the_best_stand_in_the_table(page):
    cells = texts(page, '#metrics [data-metric="reconstruction.fvu"] td')
    assert cells[:5] == ["0.2100 ± 0.01", "0.2800 ± 0.01", "0.4000 ± 0.01", "0.1600 ± 0.01", "–"]
    assert cells[5] == "↓ lower"
    assert "sum e²" in cells[6]
    best = [each.find_element("xpath", "..") for each in find_all(page, "#metrics td.best")]
    ranked = [each.metric for each in REPORT.metrics if each.winner is not None]
    assert [row.get_attribute("data-metric") for row in best] == ranked


def test_differences_of_the_chosen_pair(page):
    assert len(find_all(page, "#versus option")) == 10
    choose(page, "versus", '["google","topk"]')
    row = find(page, "#differences tbody tr").text.split()
    assert row == ["FVU", "(standard)", "+0.12", "±", "0.01", "topk"]
    clear = find(page, "#differences rect.clear")
    assert float(clear.get_attribute("width")) == pytest.approx(74)  # 12 errors: all of 8
    gone = texts(page, "#differences tbody tr")[3]
    assert gone.startswith("Dead features, %")
    assert gone.endswith("google")


def test_what_is_switched_off_is_not_drawn(page):
    def drawn(chart):
        return {int(each.get_attribute("data-of")) for each in find_all(page, chart)}

    assert drawn("#l0 path[data-of]") == drawn("#density path[data-of]") == {0, 1, 2, 3, 4}
    assert drawn("#trade [data-of]") == {0, 1, 2, 3}  # the last has no FVU
    assert drawn("#curves [data-of]") == {0, 3}
    find(page, '#toggles [data-of="3"]').click()
    assert drawn("#l0 path[data-of]") == {0, 1, 2, 4}
    assert drawn("#trade [data-of]") == {0, 1, 2}
    assert drawn("#curves [data-of]") == {0}
    assert find(page, '#toggles [data-of="3"]').get_attribute("aria-pressed") == "false"
    find(page, '#toggles [data-of="3"]').click()
    assert drawn("#curves [data-of]") == {0, 3}


def test_a_point_stands_where_its_numbers_are(page):
    """The two markers and the origin of the axes give the scale; a third point checks it."""
    circle = find(page, "#trade circle[r='5.5']")
    assert find(circle, "title").get_attribute("textContent") == "ours: L0 40.26, FVU 0.21"
    axis = float(find(page, "#trade .axis").get_attribute("y1"))
    heights = [axis - float(each.get_attribute("cy")) for each in find_all(page, "#trade circle")]
    fvu = [each.fvu for each in OURS.prefixes] + [OURS.reconstruction.fvu]
    scales = [height / value for height, value in zip(heights, fvu, strict=True)]
    assert scales == pytest.approx([scales[0]] * 5, rel=1e-6)
    left = float(find(page, "#trade .axis").get_attribute("x1"))
    rights = [float(each.get_attribute("cx")) - left for each in find_all(page, "#trade circle")]
    l0 = [each.mean_l0 for each in OURS.prefixes] + [OURS.sparsity.mean_l0]
    scales = [right / value for right, value in zip(rights, l0, strict=True)]
    assert scales == pytest.approx([scales[0]] * 5, rel=1e-6)


def boxes(page):
    """Left, top, right, bottom of every name beside a point."""
    found = [each.rect for each in find_all(page, "#trade text.label")]
    return [(r["x"], r["y"], r["x"] + r["width"], r["y"] + r["height"]) for r in found]


def test_names_stand_beside_points_and_not_on_one_another(page):
    """Four points on a chart, and the parts of two: no name on a name, no name on a marker."""
    named = boxes(page)
    assert len(named) == 4
    chart = find(page, "#trade").rect
    for i, (left, top, right, bottom) in enumerate(named):
        assert chart["x"] <= left < right <= chart["x"] + chart["width"]
        for other in named[:i]:
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
        for each in find_all(page, "#trade [data-of]"):
            x = each.rect["x"] + each.rect["width"] / 2
            y = each.rect["y"] + each.rect["height"] / 2
            assert each.tag_name == "path" or not (left < x < right and top < y < bottom)


def test_the_pointer_reads_the_histogram(page):
    chart = find(page, "#l0")
    ActionChains(page).move_to_element_with_offset(chart, -100, 0).perform()
    said = find(page, "#l0-readout").text
    assert said.startswith("L0 ")
    assert "ours 0.0" in said
    assert SHOWN_EVIL in said
    ActionChains(page).move_to_element(find(page, "h1")).perform()
    assert find(page, "#l0-readout").text == ""


def test_pairs_of_each_dictionary(page):
    assert len(find_all(page, "#pairs tbody tr")) == 5
    assert texts(page, "#pairs tbody tr")[1] == "1 103 −0.9850 1, 2"
    choose(page, "pairs-of", 1)
    assert texts(page, "#pairs tbody tr")[1] == "1 103 −0.9850"
    choose(page, "pairs-of", 2)
    assert texts(page, "#pairs tbody tr") == ["No pair is."]


def test_hostile_names_are_shown_as_text(page):
    assert texts(page, "#which tbody th")[2] == SHOWN_EVIL
    assert find_all(page, "td b, th b, li i, #toggles b") == []
    assert texts(page, "#notes li") == ["a warning", "a note <i>"]


def test_dark_and_light(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    stroke = "return document.querySelector('#l0 path[data-of]').getAttribute('stroke')"
    first, line = page.execute_script(colour), page.execute_script(stroke)
    find(page, "#theme").click()
    assert page.execute_script(colour) != first
    assert page.execute_script(stroke) != line


def test_a_narrow_window_needs_no_sideways_scrolling(page):
    page.set_window_size(520, 900)
    wait_for(page, "document.querySelector('#l0').viewBox.baseVal.width < 520")
    width = page.execute_script("return document.documentElement.scrollWidth - innerWidth")
    formulas = find(page, "#formulas").is_displayed()
    page.set_window_size(1400, 1200)
    assert width <= 0
    assert formulas
    assert not find(page, "#formulas").is_displayed()


def test_a_single_dictionary_is_compared_with_nothing(page, address):
    page.get(address.replace("many", "one"))
    assert find(page, "h1").text == "google: evaluation"
    for name in ("differences-section", "toggles", "prefixes-section", "notes-section"):
        assert not find(page, f"#{name}").is_displayed(), name
    assert len(find_all(page, "#l0 path[data-of]")) == 1
    assert "506 of 512" not in find(page, "#dead").text
    assert "505 of 512 features fired; 7 never did" in find(page, "#dead").text
