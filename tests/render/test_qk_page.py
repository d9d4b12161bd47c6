"""The page of pairs as text: whole, self-contained, hostile tokens escaped, bounded."""

import base64
import json
import re

import numpy as np

from actcli.render.qk_page import qk_page
from tests.render.qk_made import EVIL, made_report, made_view


def parts_of(page):
    """What the page holds as JSON."""
    found = re.findall(
        r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL
    )
    return {name: json.loads(text) for name, text in found}


def floats(text):
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def test_numbers_stand_in_the_page_bit_by_bit():
    view = made_view(softcap=5.0, sinks_A=np.array([0.5, -1.0, 0.0], dtype=np.float32))
    (packed,) = parts_of(qk_page([view], made_report(), title="t").html)["views"]
    pairs = view.pairs
    assert np.array_equal(floats(packed["contrib"]), pairs.top_contrib.ravel())
    assert np.array_equal(floats(packed["sum"]), pairs.sum.ravel())
    assert np.array_equal(floats(packed["truth"]), pairs.ground_truth.ravel())
    assert packed["cap"] == 5.0
    assert packed["sinks"] == [0.5, -1.0, 0.0]
    (part,) = packed["parts"]
    assert part["name"] == "q components → k delta"
    assert np.array_equal(floats(part["values"]), pairs.residual["component:delta"].ravel())


def test_hostile_tokens_and_titles_stay_text():
    view = made_view(n_keys=2, tokens=(EVIL, EVIL))
    page = qk_page([view], made_report(model=EVIL, warnings=(EVIL,)), title=EVIL).html
    assert "</script><b>" not in page
    assert page.count("</script>") == 3
    for text in re.findall(r'<script type="application/json" id="\w+">(.*?)</script>', page):
        assert not set(text) & set("<>&")
    assert parts_of(page)["views"][0]["tokens"][0] == "</script><b>\\u202e$x_1$&\\n"


def test_nothing_is_fetched():
    page = qk_page([made_view()], made_report(), title="t").html
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_what_has_no_room_is_left_out_and_counted_but_never_the_first():
    views = [made_view(sample=sample, n_keys=60) for sample in range(5)]
    page = qk_page(views, made_report(), title="t", n_more=7, max_bytes=20_000)
    parts = parts_of(page.html)
    assert page.n_shown == len(parts["views"]) < 5
    assert parts["data"]["leftOut"] == 7 + 5 - page.n_shown
    assert qk_page(views, made_report(), title="t", max_bytes=1).n_shown == 1


def test_pairs_with_delta_are_not_counted_into_the_sum_line():
    view = made_view(n_pairs=9)
    view.pairs.top_pairs[2] = (9, 3)
    view.pairs.top_pairs[5] = (1, 8)
    (packed,) = parts_of(qk_page([view], made_report(), title="t").html)["views"]
    assert packed["inSum"] == [1, 1, 0, 1, 1, 0, 1, 1, 1]
    assert (packed["names"][2], packed["names"][5]) == ("q.delta → k.3", "q.1 → k.bias")


def test_it_opens_at_the_head_whose_attention_a_pair_moves_most():
    view = made_view(n_heads=4, seed=3)
    (packed,) = parts_of(qk_page([view], made_report(), title="t").html)["views"]
    most_A = np.abs(view.pairs.d_attn).max(axis=(1, 2))
    assert most_A[packed["busiest"]] == most_A.max()
