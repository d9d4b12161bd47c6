"""What all HTML pages share: a style that is whole, data that cannot break out."""

import json
from pathlib import Path

import numpy as np
import pytest

import actcli.render
from actcli.render.pages import fill_page, json_in_html, numbers_in_json, part_of_page

FOLDER = Path(actcli.render.__file__).parent
STYLES = sorted(path.name for path in (*FOLDER.glob("*.css"), *FOLDER.glob("*_page.html")))


@pytest.mark.parametrize("name", STYLES)
def test_every_rule_of_a_style_is_closed(name):
    """A browser drops what comes after an open rule without a word."""
    text = part_of_page(name).replace("{{head}}", part_of_page("page_head.html"))
    if name.endswith(".html"):
        text = text[text.index("<style>") : text.index("</style>")]
    depth = 0
    for character in text.replace("{{", "").replace("}}", ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert 0 <= depth <= 2, text  # rules within @media are the deepest
    assert depth == 0


def test_a_page_has_the_shared_style_and_its_parts():
    parts = {"title": "T", "data": "{}", "views": "[]"}
    page = fill_page("qk_page.html", **parts)
    assert part_of_page("page_base.css") in page
    assert "<title>T</title>" in page
    assert "{{" not in page


def test_data_cannot_end_its_script():
    data = {"</script><b>": "&<!--"}
    text = json_in_html(data)
    assert not set("<>&") & set(text)
    assert json.loads(text) == data


def test_numbers_stand_as_their_bytes():
    assert numbers_in_json(np.array([1, 256], dtype="<u2")) == "AQAAAQ=="
