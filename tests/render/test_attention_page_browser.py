"""The page in a real browser, with the attention of a golden model."""

import base64
import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from actcli.analysis.attention import measure_heads
from actcli.models import load_model
from actcli.render.attention_page import attention_page
from actcli.reports.attention import AttentionMaps
from tests.golden import DUMPS, MODELS
from tests.render.in_browser import MARKS, ActionChains, check_fits, find, find_all, prefers, press

pytestmark = MARKS
SAMPLES = (0, 2, 5)
TITLE = "Attention of <d_sink_gqa> & friends"


@pytest.fixture(scope="module")
def maps():
    dump = load_file(DUMPS / "d_sink_gqa_fp32.safetensors")
    adapter = load_model(str(MODELS / "d_sink_gqa"))
    acts_NLTH = torch.from_numpy(dump["attn_norm"][list(SAMPLES)])
    with torch.no_grad():
        layers = [adapter.attention(i, acts_NLTH[:, i]).numpy() for i in range(adapter.n_layers)]
    boards = dump["boards"][list(SAMPLES)]
    return AttentionMaps(
        np.stack(layers, axis=1), boards, SAMPLES, tuple(range(adapter.n_layers)), True
    )


@pytest.fixture(scope="module")
def report(maps):
    return measure_heads(maps, source="activations.safetensors")


@pytest.fixture(scope="module")
def address(maps, report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "attention.html"
    path.write_text(attention_page(maps, report, title=TITLE), encoding="utf-8")
    return path.as_uri()


def thumbnail(page, layer, head):
    return find(page, f'#heads button[data-layer="{layer}"][data-head="{head}"]')


def pixels(page, selector):
    """(height, width, 3) of a canvas, as the browser has drawn it."""
    address = page.execute_script(
        "return document.querySelector(arguments[0]).toDataURL()", selector
    )
    png = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def reading(page):
    """What the page says of the cell under the pointer or cursor: query, key, weight."""
    box = find(page, "#reading")
    return tuple(box.get_attribute(f"data-{name}") for name in ("query", "key", "weight"))


def cell_names():
    return [f"r{row}c{column}" for row in range(1, 5) for column in range(1, 5)]


def weight_of(maps, sample, layer, head, query, key):
    """The weight between two cells, by their names."""
    cells = cell_names()
    place = sample, layer, head, cells.index(query)
    weight = (
        maps.sinks_BLAT[place] if key == "sink" else maps.weights_BLATS[place][cells.index(key)]
    )
    return np.float32(weight)


def colour_of(weight, most=1.0, *, dark=False):
    index = round(255 * float(weight) / most)
    return mpl.colormaps["magma"](index if dark else 255 - index, bytes=True)[:3]


def point_at(page, x, y):
    """Move the pointer to a place on the map, in pixels from its upper left corner."""
    canvas = find(page, "#map")
    size = canvas.size
    x_off, y_off = x - size["width"] // 2, y - size["height"] // 2
    ActionChains(page, duration=0).move_to_element_with_offset(canvas, x_off, y_off).perform()


def clear_of_pointer(page):
    ActionChains(page, duration=0).move_to_element(find(page, "h1")).perform()


def test_opens_from_a_file_and_asks_the_network_for_nothing(page, maps):
    assert page.current_url.startswith("file://")
    assert page.title == find(page, "h1").text == TITLE
    thumbnail(page, 1, 1).click()
    requests = page.execute_script(
        "return performance.getEntriesByType('resource').map(each => each.name)"
    )
    assert [each for each in requests if not each.startswith("data:")] == []
    assert len(find_all(page, "#heads canvas")) == len(maps.layers) * (len(maps.heads) + 1)


def test_nothing_is_wider_than_the_window(page):
    check_fits(page, ("html", "#scroller", "#heads"), widths=(1280, 800))


def test_a_click_on_a_thumbnail_changes_the_picture(page):
    before = pixels(page, "#map")
    thumbnail(page, 2, 5).click()
    assert find(page, "#map-title").text == "Layer 3, head 5"
    assert thumbnail(page, 2, 5).get_attribute("aria-pressed") == "true"
    assert thumbnail(page, 0, 0).get_attribute("aria-pressed") == "false"
    assert (pixels(page, "#map") != before).any()


def test_every_thumbnail_shows_its_own_weights(page, maps):
    for layer in range(len(maps.layers)):
        for head in (0, 3, 7):
            selector = f'#heads button[data-layer="{layer}"][data-head="{head}"] canvas'
            found = pixels(page, selector)
            for q, k in [(0, 0), (5, 9), (15, 15)]:
                weight = maps.weights_BLATS[0, layer, head, q, k]
                assert found[q, k].tolist() == pytest.approx(colour_of(weight), abs=2)
            sink = maps.sinks_BLAT[0, layer, head, 7]
            assert found[7, -1].tolist() == pytest.approx(colour_of(sink), abs=2)


def test_the_value_under_the_pointer_is_the_number_in_the_data(page, maps):
    thumbnail(page, 3, 2).click()
    clear_of_pointer(page)
    drawn = pixels(page, "#map")
    size = find(page, "#map").size
    seen = []
    for step in range(40):
        x, y = 4 + (size["width"] - 8) * step // 39, 62 + (size["height"] - 70) * (step % 17) // 16
        point_at(page, x, y)
        query, key, weight = reading(page)
        if query is None:
            continue
        expected = weight_of(maps, 0, 3, 2, query, key)
        assert np.float32(weight) == expected
        assert float(weight) == float(np.format_float_positional(expected, unique=True))
        assert find(page, "#reading b").text == weight
        if (drawn[y - 3 : y + 4, x - 3 : x + 4] == drawn[y, x]).all():  # not at a cell's edge
            assert drawn[y, x].tolist() == pytest.approx(colour_of(expected), abs=2)
        seen.append((query, key))
    assert len({query for query, _key in seen}) > 8
    assert len({key for _query, key in seen}) > 12


def test_rows_are_queries_and_columns_are_keys_and_the_sink_is_last(page):
    size = find(page, "#map").size
    keys, queries = [], []
    for x in range(size["width"] - 8, 60, -9):
        point_at(page, x, size["height"] - 10)
        keys.append(reading(page)[1])
    for y in range(size["height"] - 8, 50, -9):
        point_at(page, 80, y)
        queries.append(reading(page)[0])
    assert [*dict.fromkeys(filter(None, keys))] == ["sink", *reversed(cell_names())]
    assert [*dict.fromkeys(filter(None, queries))] == [*reversed(cell_names())]


def test_a_chosen_query_shades_the_board_by_its_weights(page, maps):
    thumbnail(page, 1, 3).click()
    find(page, '#board button[data-cell="9"]').click()
    row = maps.weights_BLATS[0, 1, 3, 9]
    cells = find_all(page, "#board button")
    assert [np.float32(each.get_attribute("data-weight")) for each in cells] == [*row]
    assert [each.find_element(By.CLASS_NAME, "weight").text for each in cells] == [
        f"{weight:.3f}" for weight in row
    ]
    for each, weight in zip(cells, row, strict=True):
        shade = page.execute_script("return getComputedStyle(arguments[0]).backgroundColor", each)
        assert [*map(int, shade[4:-1].split(","))] == pytest.approx(colour_of(weight), abs=2)
    sink = maps.sinks_BLAT[0, 1, 3, 9]
    assert np.float32(find(page, "#sink").get_attribute("data-weight")) == sink
    assert f"{sink:.3f}" in find(page, "#looks").text
    press(page, Keys.ESCAPE)
    assert cells[0].get_attribute("data-weight") is None


def test_a_click_on_a_row_of_the_map_chooses_its_query(page, maps):
    point_at(page, 200, 200)
    query, _key, _weight = reading(page)
    ActionChains(page).click().perform()
    chosen = find_all(page, '#board button[aria-pressed="true"]')
    assert [each.get_attribute("data-cell") for each in chosen] == [str(cell_names().index(query))]


def test_the_board_shows_the_tiles(page, maps):
    for place in range(len(SAMPLES)):
        find_all(page, "#samples button")[place].click()
        shown = [each.text for each in find_all(page, "#board button")]
        assert shown == [str(2**e) if e else "" for e in maps.boards_BT[place].tolist()]
    assert [each.text for each in find_all(page, "#samples button")] == ["row 0", "row 2", "row 5"]


def test_another_sample_has_its_own_weights(page, maps):
    find_all(page, "#samples button")[2].click()
    thumbnail(page, 4, 6).click()
    point_at(page, 150, 150)
    query, key, weight = reading(page)
    assert np.float32(weight) == weight_of(maps, 2, 4, 6, query, key)


def test_the_mean_of_the_heads_can_be_looked_at(page, maps):
    thumbnail(page, 2, 8).click()
    assert find(page, "#map-title").text == "Layer 3, mean of all heads"
    point_at(page, 150, 150)
    query, key, weight = reading(page)
    heads = [float(weight_of(maps, 0, 2, head, query, key)) for head in range(8)]
    assert float(weight) == pytest.approx(np.mean(heads), rel=1e-6)


def test_the_colour_scale_is_shared_until_each_head_gets_its_own(page, maps):
    thumbnail(page, 2, 8).click()
    every = max(maps.weights_BLATS.max(), maps.sinks_BLAT.max())
    shown = maps.weights_BLATS[0, 2].mean(axis=0), maps.sinks_BLAT[0, 2].mean(axis=0)
    assert np.float32(find(page, "#most").get_attribute("data-value")) == every
    find(page, "#per-head").click()
    most = float(find(page, "#most").get_attribute("data-value"))
    assert most == pytest.approx(max(each.max() for each in shown), rel=1e-6)


def test_heads_are_sorted_by_a_click_on_a_header_and_chosen_by_a_row(page, report):
    def shown():
        rows = find_all(page, "#rows tr")
        return [tuple(int(r.get_attribute(f"data-{n}")) for n in ("layer", "head")) for r in rows]

    def expected(name, sign):
        key = lambda h: (sign * getattr(h, name), h.layer, h.head)  # noqa: E731
        return [(h.layer - 1, h.head) for h in sorted(report.heads, key=key)]

    header = find(page, 'th[data-name="entropy_bits"]')
    for sign, order in ((-1, "descending"), (1, "ascending")):
        header.find_element(By.TAG_NAME, "button").click()
        assert shown() == expected("entropy_bits", sign)
        assert header.get_attribute("aria-sort") == order
    layer, head = shown()[1]
    find_all(page, "#rows tr")[1].click()
    assert find(page, "#map-title").text == f"Layer {layer + 1}, head {head}"
    (numbers,) = [h for h in report.heads if (h.layer, h.head) == (layer + 1, head)]
    value = find(page, '#numbers dd[data-name="entropy_bits"]').get_attribute("data-value")
    assert float(value) == numbers.entropy_bits


def test_everything_can_be_done_with_the_keyboard(page, maps):
    thumbnail(page, 0, 0).click()
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert find(page, "#map-title").text == "Layer 1, head 0"
    press(page, Keys.ENTER)
    assert find(page, "#map-title").text == "Layer 2, head 2"
    press(page, Keys.TAB)
    assert page.switch_to.active_element == find(page, "#map")
    press(page, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    query, key, weight = reading(page)
    assert (query, key) == ("r1c2", "r1c3")
    assert np.float32(weight) == maps.weights_BLATS[0, 1, 2, 1, 2]
    press(page, Keys.END)
    assert np.float32(reading(page)[2]) == maps.sinks_BLAT[0, 1, 2, 1]
    press(page, Keys.SPACE)
    assert find(page, '#board button[data-cell="1"]').get_attribute("aria-pressed") == "true"
    press(page, Keys.TAB, Keys.TAB, Keys.ARROW_DOWN, Keys.ENTER)
    assert find(page, '#board button[data-cell="4"]').get_attribute("aria-pressed") == "true"


def test_what_has_the_focus_is_seen_and_each_group_is_one_tab_stop(page):
    stops = []
    page.execute_script("document.activeElement.blur()")
    for _ in range(30):
        press(page, Keys.TAB)
        focused = page.switch_to.active_element
        if focused.tag_name == "body":
            break
        outline = focused.value_of_css_property("outline-style")
        assert outline == "solid", focused.get_attribute("outerHTML")
        stops.append(focused.get_attribute("id") or focused.get_attribute("aria-label"))
    columns = len(find_all(page, "#columns th"))
    assert len(stops) <= 8 + columns


def test_dark_and_light(page):
    def page_and_picture():
        colour = find(page, "body").value_of_css_property("background-color")
        return colour, pixels(page, "#map")

    light, light_picture = page_and_picture()
    find(page, "#theme").click()
    dark, dark_picture = page_and_picture()
    assert (light, dark) == ("rgba(247, 246, 243, 1)", "rgba(19, 20, 24, 1)")
    assert (light_picture != dark_picture).any()
    find(page, "#theme").click()
    assert page_and_picture()[0] == light


def test_dark_where_the_system_is_dark(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [prefers("dark")]})
    page.refresh()
    assert find(page, "body").value_of_css_property("background-color") == "rgba(19, 20, 24, 1)"
    assert find(page, "#theme").text == "Light theme"
