"""Pictures of attention on texts: pixels are read back and compared with the weights.

Tensor legend: as in `actcli.analysis.attention_text`.
"""

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from actcli.render.attention_figures import colour_limit
from actcli.render.attention_text import (
    _HeadPicture,
    _Labels,
    write_text_grids,
    write_text_heads,
    write_token_lists,
)
from actcli.reports.attention import TextMaps
from tests.analysis.test_attention_text import random_texts
from tests.render.test_attention_pictures import colours_shown, names

TOKENS = ("$a$", " b_{", "日本", "\n", "</script>" * 3)


def worded(maps):
    """Words that are hard to draw in the place of ids."""
    tokens = tuple(TOKENS[: len(each)] for each in maps.tokens)
    return TextMaps(maps.weights, maps.token_ids, tokens, maps.samples, maps.layers, maps.has_sinks)


def test_a_picture_shows_its_weights_and_none_of_the_one_before(tmp_path):
    maps = random_texts(0)
    limit = colour_limit(maps)
    picture = _HeadPicture(maps, 0, limit)
    for head in range(3):
        weights_TS = maps.weights[0][1, head]
        picture.write(tmp_path / "a.png", weights_TS, "a title")
        expected = (colormaps["magma"](weights_TS / limit)[..., :3] * 255).round()
        assert np.abs(colours_shown(picture, tmp_path / "a.png", 5) - expected).max() <= 3


def test_the_colour_scale_ends_at_the_largest_weight_or_sink_of_all():
    maps = random_texts(0, has_sinks=True)
    largest = max(float(each.max()) for each in maps.weights)
    sinks = max(float((1 - each.sum(-1)).max()) for each in maps.weights)
    assert colour_limit(maps) == pytest.approx(max(largest, sinks), abs=1e-6)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_files(has_sinks, tmp_path):
    maps = worded(random_texts(0, has_sinks=has_sinks))
    written = [
        *write_token_lists(maps, tmp_path),
        *write_text_heads(maps, tmp_path, heads=[0, 2], average=True, limit=1.0),
        *write_text_grids(maps, tmp_path, heads=[0, 2], average=True, limit=1.0),
    ]
    stems = ["head_00", "head_02", "head_avg"]
    expected = [f"layer_{layer}/{stem}.png" for layer in ("01", "05") for stem in stems]
    for sample in range(3):
        folder = tmp_path / f"sample_{sample}"
        assert names(folder) == [*expected, "layers_heads.png", "tokens.txt"]
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    colours = np.asarray(Image.open(tmp_path / "sample_0" / "layers_heads.png").convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 50


def labels_of(maps, *, side, font=6.5):
    axes = Figure().subplots()
    _Labels(maps, 0, side=side, font=font).put(axes, left=True, bottom=True)
    return [each.get_text() for each in axes.get_xticklabels()], axes


def test_labels_are_words_and_ids_where_a_letter_cannot_be_drawn():
    maps = worded(random_texts(0, has_sinks=True))
    shown, axes = labels_of(maps, side=5)
    assert shown == ["$a$", "b_{", f"#{maps.token_ids[0][2]}", r"\n", "</script></sc…", "sink"]
    assert not any(each.get_parse_math() for each in axes.get_xticklabels())
    assert axes.get_xticks().tolist() == [0, 1, 2, 3, 4, 6]


def test_every_label_is_drawn_up_to_64_tokens_and_some_of_more():
    for length, expected in ((64, 64), (200, 67)):
        weights = (np.eye(length, dtype=np.float32)[None, None],)
        ids = (np.arange(length, dtype=np.int32),)
        maps = TextMaps(weights, ids, (tuple(map(str, range(length))),), (0,), (0,), False)
        shown, axes = labels_of(maps, side=min(0.13 * length, 8.4))
        assert len(shown) == expected
        assert shown == [str(round(each)) for each in axes.get_xticks()]
