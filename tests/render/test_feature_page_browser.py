"""The page of features in a real browser."""

import re

import pytest
from selenium.webdriver.common.keys import Keys

from actcli.render.feature_files import open_folder
from actcli.render.feature_page import feature_page
from actcli.reports.feature_samples import FeatureSample
from tests.render.feature_made import EVIL, GOLDEN, RECORDS, record, summary
from tests.render.in_browser import MARKS, check_fits, check_themes, choose, find, find_all, press

pytestmark = MARKS
TITLE = "Features of <ours> & theirs"
BARE = record(77, FeatureSample(feature_idx=77, activation_value=0.5, position=3), density=0.02)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "features.html"
    records = [*RECORDS, BARE]
    page = feature_page(records, summary(records), title=TITLE)
    path.write_text(page.html, encoding="utf-8")
    return path.as_uri()


def listed(page):
    return [int(each.get_attribute("data-feature")) for each in find_all(page, "#list button")]


def shown(page):
    return find(page, "#name").text


def search(page, words):
    box = find(page, "#search")
    box.clear()
    box.send_keys(words)


def shades(page, number):
    """Activation and shade in percent of each token of a context that has one."""
    spans = find_all(page, f"#samples li:nth-child({number}) [data-act]")
    shade = r"color-mix\(in srgb, var\(--hot\) ([\d.]+)%, transparent\)"
    styles = [(float(e.get_attribute("data-act")), e.get_attribute("style")) for e in spans]
    return [
        (act, float(found[1]) if (found := re.search(shade, style)) else None)
        for act, style in styles
    ]


def test_opens_from_a_file_and_asks_the_network_for_nothing(page):
    assert page.title == find(page, "h1").text == TITLE
    requests = page.execute_script(
        "return performance.getEntriesByType('resource').map(each => each.name)"
    )
    assert [each for each in requests if not each.startswith("data:")] == []
    assert "a <dump>" in find(page, "#about").text


def test_it_starts_with_the_strongest_feature(page):
    assert shown(page) == "Feature 42"
    assert listed(page) == [42, 7, 123456, 77]
    assert find(page, "#found").text == "4 of 4 features"
    assert find(page, "#list [aria-current=true]").get_attribute("data-feature") == "42"
    assert find(page, "#list .peak-text").text == "France is Paris"


def test_every_token_is_shaded_by_its_activation(page):
    assert shades(page, 1) == [
        (4.75, 8 + 72 * 0.5),
        (0.5, pytest.approx(8 + 72 * 0.5 / 9.5, abs=0.06)),
        (9.5, 80),
        (0, None),
        (0, None),
        (0, None),
    ]
    assert find(page, "#samples li .peak").text == "Paris"
    assert find(page, "#samples li .unknown").text == "of"
    assert [each.text for each in find_all(page, "#samples .where")] == [
        "sample 3, position 6",
        "sample 1,200, position 0",
    ]
    assert find(page, "#most").text == "9.5"
    assert find(page, "#unknown").is_displayed()
    second = find(page, "#samples li:nth-child(2) .context").get_property("textContent")
    assert second == "<bos> the capital of"


def test_texts_are_shown_as_they_are(page):
    text = find(page, "#samples li:nth-child(1) .context").get_property("textContent")
    assert text == f"… of France is Paris\\n `a|b`{EVIL}"


def test_statistics_and_histogram(page):
    words = [each.text for each in find_all(page, "#numbers dt")]
    values = [each.text for each in find_all(page, "#numbers dd")]
    said = dict(zip(words, values, strict=True))
    assert said["density"] == "1.0000%"
    assert said["active tokens"] == "2,000 of 200,000"
    assert said["mean ± sd when active"] == "0.75 ± 0.25"
    bars = find_all(page, "#histogram rect")
    assert [bar.get_attribute("data-count") for bar in bars] == ["1000", "0", "20"]
    heights = [float(bar.get_attribute("height")) for bar in bars]
    assert heights[0] > heights[2] > heights[1] == 0
    find(page, '#list [data-feature="123456"]').click()
    assert not find(page, "#histogram-figure").is_displayed()


def test_similar_features_are_links_where_they_are_here(page):
    assert find(page, "#similar").text.split() == ["7", "+0.875", "500", "−0.500"]
    (link,) = find_all(page, "#similar a")
    link.click()
    assert shown(page) == "Feature 7"
    assert not find(page, "#similar-box").is_displayed()
    page.back()
    assert shown(page) == "Feature 42"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("max", [42, 7, 123456, 77]),
        ("dense", [7, 77, 42, 123456]),
        ("rare", [123456, 42, 77, 7]),
        ("feature", [7, 42, 77, 123456]),
    ],
)
def test_sorting(page, order, expected):
    choose(page, "sort", order)
    assert listed(page) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("7", [7, 77]),
        ("#42", [42]),
        ("FRANCE", [42]),
        ("</script", [42, 7, 123456]),
        ("xyz", []),
    ],
)
def test_searching_by_number_and_text(page, words, expected):
    search(page, words)
    assert listed(page) == expected
    assert find(page, "#found").text == f"{len(expected)} of 4 features"


def test_turning_pages(page):
    assert not find(page, "#previous").is_enabled()
    find(page, "#next").click()
    assert shown(page) == "Feature 7"
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown(page) == "Feature 77"
    assert not find(page, "#next").is_enabled()
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert shown(page) == "Feature 123456"
    press(page, "/")
    assert page.switch_to.active_element == find(page, "#search")
    press(page, "42", Keys.ARROW_LEFT)
    assert listed(page) == [42]
    assert shown(page) == "Feature 123456"
    assert find(page, "#next").is_enabled()
    find(page, "#next").click()
    assert shown(page) == "Feature 42"


def test_an_address_names_a_feature(page):
    page.get(page.current_url.partition("#")[0] + "#7")
    assert shown(page) == "Feature 7"


def test_without_texts(page):
    find(page, '#list [data-feature="77"]').click()
    assert "the token ids are not known" in find(page, "#samples .context").text
    assert not find(page, "#legend").is_displayed()


def test_files_that_the_other_program_wrote(page, tmp_path):
    samples = open_folder(GOLDEN)
    path = tmp_path / "theirs.html"
    made = feature_page(samples.every(), samples.summary, title="theirs")
    path.write_text(made.html, encoding="utf-8")
    page.get(path.as_uri())
    assert shown(page) == "Feature 1"
    assert find(page, "#samples .peak").text == "t43 t0"
    assert not find(page, "#legend").is_displayed()
    assert not find_all(page, "#samples .unknown")
    assert listed(page) == [1, 9, 2, 11]


def test_no_features(page, tmp_path):
    path = tmp_path / "none.html"
    path.write_text(feature_page([], None, title="none").html, encoding="utf-8")
    page.get(path.as_uri())
    assert find(page, "#found").text == "0 of 0 features"
    assert not find(page, "article").is_displayed()


def test_everything_that_has_the_focus_is_seen(page):
    page.execute_script("document.activeElement.blur()")
    stops = []
    for _ in range(30):
        press(page, Keys.TAB)
        focused = page.switch_to.active_element
        if focused.tag_name == "body":
            break
        assert focused.value_of_css_property("outline-style") in {"solid", "auto"}
        stops.append(focused.tag_name)
    assert {"input", "select", "button", "a"} <= set(stops)


def test_nothing_is_wider_than_the_window(page):
    check_fits(page, ("html", "nav", "article"), widths=(1280, 700))


def test_dark_and_light(page):
    check_themes(page)
