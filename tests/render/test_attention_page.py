"""The page as text: what is embedded, and that nothing in it can break out."""

import base64
import html
import json
import re

import matplotlib as mpl
import numpy as np
import pytest

from actcli.analysis.attention import measure_heads
from actcli.render.attention_page import attention_page
from actcli.reports.attention import AttentionMaps

HOSTILE = '</script><script>alert(1)</script><!-- & " {{data}} \u2028'


def some_maps(*, sinks=True, heads=3):
    draw = np.random.default_rng(5)
    weights = draw.random((2, 2, heads, 16, 17), dtype=np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    weights = (
        weights[..., :16] if sinks else weights[..., :16] / weights[..., :16].sum(-1)[..., None]
    )
    boards = draw.integers(0, 18, (2, 16), dtype=np.uint8)
    return AttentionMaps(weights, boards, (3, 17), (0, 4), sinks)


def page_of(maps, *, source="dump.safetensors", title="Attention"):
    return attention_page(maps, measure_heads(maps, source=source), title=title)


def data_in(page):
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(text)


def weights_in(data):
    flat = np.frombuffer(base64.b64decode(data["weights"]), "<f4")
    n_cells = data["side"] ** 2
    shape = [len(data[name]) for name in ("samples", "layers", "heads")]
    return flat.reshape(*shape, n_cells, n_cells + data["hasSinks"])


@pytest.mark.parametrize("sinks", [True, False])
def test_weights_stand_in_the_page_bit_by_bit(sinks):
    maps = some_maps(sinks=sinks)
    data = data_in(page_of(maps))
    found = weights_in(data)
    assert data["heads"] == ["0", "1", "2", "avg"]
    assert data["layers"] == [1, 5]
    assert data["samples"] == [3, 17]
    assert data["boards"] == maps.boards_BT.tolist()
    assert found[:, :, :3, :, :16].tobytes() == maps.weights_BLATS.tobytes()
    if sinks:
        assert found[:, :, :3, :, 16].tobytes() == maps.sinks_BLAT.tobytes()


def test_the_last_head_is_the_mean_of_the_others():
    found = weights_in(data_in(page_of(some_maps())))
    for place in np.ndindex(2, 2, 16, 17):
        b, layer, q, k = place
        mean = sum(float(found[b, layer, head, q, k]) for head in range(3)) / 3
        assert found[b, layer, 3, q, k] == np.float32(mean)


def test_only_the_heads_of_the_report_are_shown_beside_the_mean_of_all():
    maps = some_maps()
    every = weights_in(data_in(page_of(maps)))
    report = measure_heads(maps, heads=[2], source="x")
    data = data_in(attention_page(maps, report, title="x"))
    assert data["heads"] == ["2", "avg"]
    assert weights_in(data).tobytes() == every[:, :, [2, 3]].tobytes()


def test_a_single_head_has_no_mean_beside_it():
    assert data_in(page_of(some_maps(heads=1)))["heads"] == ["0"]


def test_numbers_are_those_of_the_report():
    maps = some_maps()
    report = measure_heads(maps, source="x")
    data = data_in(attention_page(maps, report, title="x"))
    assert data["numbers"] == [each.model_dump() for each in report.heads]
    assert {each["name"] for each in data["columns"]} == set(data["numbers"][0])
    assert all(each["help"] for each in data["columns"])


def test_without_sinks_there_is_no_number_of_the_sink():
    columns = data_in(page_of(some_maps(sinks=False)))["columns"]
    assert "sink_mass" not in {each["name"] for each in columns}


def test_colours_are_those_of_matplotlib():
    colours = base64.b64decode(data_in(page_of(some_maps()))["colours"])
    expected = [round(255 * x) for i in range(256) for x in mpl.colormaps["magma"](i)[:3]]
    assert np.abs(np.array([*colours]) - expected).max() <= 1


def test_names_cannot_break_out_of_the_page():
    maps = some_maps()
    plain = page_of(maps)
    page = page_of(maps, source=HOSTILE, title=HOSTILE)
    assert data_in(page)["input"] == HOSTILE
    assert re.findall(r"<title>(.*)</title>", page) == [html.escape(HOSTILE)]
    for tag in ("<script", "</script", "<!--"):
        assert page.count(tag) == plain.count(tag)


def test_the_page_names_nothing_outside_itself():
    page = page_of(some_maps())
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", page)
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert "default-src 'none'" in page
