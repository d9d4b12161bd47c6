"""Pictures show the numbers: pixels are read back and compared with the weights.

Tensor legend: as in `actcli.analysis.attention`.
"""

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from actcli.render.attention_figures import colour_limit
from actcli.render.attention_pictures import (
    _HeadPicture,
    cell_names,
    write_board_texts,
    write_grid_pictures,
    write_head_pictures,
)
from tests.analysis.test_attention import random_maps


def colours_shown(picture, path, n_cells):
    """The colours at the centres of the cells, where the figure says that its map is."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    box = picture._image.get_window_extent()
    centres = (np.arange(n_cells) + 0.5) / n_cells
    ys = (pixels.shape[0] - box.y1 + centres * box.height).astype(int)
    xs = (box.x0 + centres * box.width).astype(int)
    return pixels[np.ix_(ys, xs)]


def test_a_picture_shows_its_weights_and_none_of_the_one_before(tmp_path):
    maps = random_maps(0, has_sinks=False)
    limit = colour_limit(maps)
    picture = _HeadPicture(4, maps.boards_BT[0], limit)
    for head in range(3):
        weights_TS = maps.weights_BLATS[0, 1, head]
        picture.write(tmp_path / "a.png", weights_TS, "a title")
        expected = (colormaps["magma"](weights_TS / limit)[..., :3] * 255).round()
        assert np.abs(colours_shown(picture, tmp_path / "a.png", 16) - expected).max() <= 3


def test_each_file_holds_its_own_head(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        _HeadPicture,
        "write",
        lambda self, path, weights, title: drawn.update({path: (weights, title)}),
    )
    maps = random_maps(0, has_sinks=False)
    list(write_head_pictures(maps, tmp_path, heads=[0, 2], average=True, limit=1.0))
    weights_TS, title = drawn[tmp_path / "board_1" / "layer_05" / "head_02.png"]
    assert title == "Layer 5 Head 2 (sample 1)"
    np.testing.assert_array_equal(weights_TS, maps.weights_BLATS[1, 1, 2])
    weights_TS, title = drawn[tmp_path / "board_0" / "layer_01" / "head_avg.png"]
    assert title == "Layer 1 Avg Heads (sample 0)"
    np.testing.assert_array_equal(weights_TS, maps.weights_BLATS[0, 0].mean(0))
    assert len(drawn) == 2 * 2 * 3


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def one_layer(maps):
    from dataclasses import replace

    return replace(maps, weights_BLATS=maps.weights_BLATS[:, :1], layers=maps.layers[:1])


def test_file_names_are_those_of_the_existing_program(tmp_path):
    maps = one_layer(random_maps(0, has_sinks=True, n_boards=1))
    written = [
        *write_board_texts(maps, tmp_path),
        *write_head_pictures(maps, tmp_path, heads=[0, 1], average=True, limit=1.0),
    ]
    assert names(tmp_path) == [
        "board_0/board.txt",
        "board_0/head_00.png",
        "board_0/head_00_sink.png",
        "board_0/head_01.png",
        "board_0/head_01_sink.png",
        "board_0/head_avg.png",
        "board_0/head_avg_sink.png",
    ]
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_no_average_no_sinks(tmp_path):
    maps = one_layer(random_maps(0, has_sinks=False, n_boards=1))
    list(write_head_pictures(maps, tmp_path, heads=[1], average=False, limit=1.0))
    assert names(tmp_path) == ["board_0/head_01.png"]


def test_the_board_as_text(tmp_path):
    maps = random_maps(0, has_sinks=False, n_boards=1)
    list(write_board_texts(maps, tmp_path))
    rows = (tmp_path / "board_0" / "board.txt").read_text().splitlines()
    assert [[int(each) for each in row.split()] for row in rows] == maps.boards_BT.reshape(
        4, 4
    ).tolist()


@pytest.mark.parametrize("has_sinks", [False, True])
def test_grids(has_sinks, tmp_path):
    maps = random_maps(0, has_sinks=has_sinks)
    choice = {"heads": [0, 2], "average": has_sinks, "limit": 1.0}
    list(write_grid_pictures(maps, tmp_path, **choice))
    list(write_grid_pictures(one_layer(maps), tmp_path, **choice))
    assert names(tmp_path / "board_1") == ["layer_01_heads.png", "layers_heads.png"]
    colours = np.asarray(Image.open(tmp_path / "board_1" / "layers_heads.png").convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 100


def test_cells_have_names():
    assert cell_names(2) == ["r1c1", "r1c2", "r2c1", "r2c2"]
