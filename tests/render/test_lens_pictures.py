"""Pictures of the logit lens show the numbers, and every token can be drawn."""

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from actcli.errors import UsageError
from actcli.render.lens_grid import METRICS, grid_of
from actcli.render.lens_heatmap import _draw, write_heatmap
from actcli.render.lens_lines import trajectories, write_trajectories
from actcli.reports.lens_table import LensTable
from actcli.reports.logit_lens import AnswerReport
from tests.render.test_lens_grid import CONTRAST, golden, golden_table, two_streams

WORDS = (
    "$x^2$|_under|-->||\n|\t|\x00|\\|⟨|中国|🎉|שלום|مرحبا|ไทย|हिन्दी|한국|'''|</text>|&amp;|\ufffd|"
    "\u200b|naïve|{}|%s|antidisestablishmentarianism|\U000e0001|\ufffc|\udc80"
)
HOSTILE = WORDS.split("|")


def hostile(token):
    return f"{HOSTILE[token % len(HOSTILE)]}{token // len(HOSTILE) or ''}"


def wide_table(n_positions, n_layers=33):
    """The golden text, again and again, with layers that repeat."""
    table = golden_table().select(golden_table().sample == 3)
    parts = [
        LensTable(
            **table.columns
            | {
                "pos": (table.pos + 9 * copy).astype(np.int32),
                "layer": (table.layer + 5 * deep).astype(np.int16),
            }
        )
        for copy in range(-(-n_positions // 9))
        for deep in range(-(-n_layers // 5))
    ]
    whole = LensTable.concat(parts)
    return whole.select((whole.pos < n_positions) & (whole.layer < n_layers)).ordered()


def size(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize("metric", METRICS)
def test_a_heatmap_has_the_numbers_and_the_top_1_tokens(metric):
    grid = grid_of(golden_table(), sample=8)
    figure = _draw(grid, metric, lambda token: f"t{token}")
    axes, bar = figure.axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array().filled(np.nan), grid.metric(metric))
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the last layer on top
    assert [each.get_text() for each in axes.get_yticklabels()] == [*grid.places]
    ids = golden()["topk_ids"][:, 1, :, 0]
    cells = {each.get_position(): each.get_text() for each in axes.texts}
    assert cells == {(t, g): f"t{ids[g, t]}" for g in range(5) for t in range(9)}
    assert bar.get_ylabel() == METRICS[metric].title


def test_a_cell_has_the_colour_of_its_number(tmp_path):
    grid = grid_of(golden_table(), sample=3)
    figure = _draw(grid, "probability", lambda _token: " ")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    pixels = np.asarray(Image.open(content).convert("RGB")).astype(int)
    box = figure.axes[0].images[0].get_window_extent()
    for layer in range(5):
        for pos in range(9):
            x = int(box.x0 + (pos + 0.5) / 9 * box.width)
            y = int(pixels.shape[0] - (box.y0 + (layer + 0.8) / 5 * box.height))
            p = golden()["topk_p"][layer, 0, pos, 0]
            expected = np.array(colormaps["viridis"](p)[:3]) * 255
            assert np.abs(pixels[y, x] - expected).max() <= 3


def test_low_numbers_are_bright_where_they_mean_a_decision():
    figure = _draw(grid_of(golden_table(), sample=8), "rank", str)
    (image,) = figure.axes[0].images
    first, last = image.cmap(image.norm(1.0)), image.cmap(image.norm(image.get_array().max()))
    assert sum(first[:3]) > sum(last[:3])
    assert image.to_rgba(image.get_array())[0, -1, :3] == pytest.approx([0xD8 / 255] * 3, abs=0.01)


def test_text_is_black_on_bright_and_white_on_dark():
    figure = _draw(grid_of(golden_table(), sample=3), "kl", str)
    (image,) = figure.axes[0].images
    colours = image.to_rgba(image.get_array())
    for text in figure.axes[0].texts:
        t, g = text.get_position()
        linear = ((colours[g, t, :3] + 0.055) / 1.055) ** 2.4
        luminance = float(linear @ (0.2126, 0.7152, 0.0722))
        on_black, on_white = (luminance + 0.05) / 0.05, 1.05 / (luminance + 0.05)
        assert text.get_color() == ("black" if on_black > on_white else "white")
    assert {each.get_color() for each in figure.axes[0].texts} == {"black", "white"}


@pytest.mark.parametrize("n_positions", [1, 9, 40])
def test_any_number_of_positions_and_any_token(tmp_path, n_positions):
    table = wide_table(n_positions, n_layers=12)
    for suffix in ("png", "svg"):
        path = tmp_path / f"h.{suffix}"
        write_heatmap(path, table, sample=3, text_of=hostile, metric="kl", note="raw $ lens")
    ElementTree.parse(tmp_path / "h.svg")
    width, height = size(tmp_path / "h.png")
    assert width >= 5.5 * 160
    assert height >= 12 * 0.24 * 160
    assert sorted(each.name for each in tmp_path.iterdir()) == ["h.png", "h.svg"]


def test_a_dollar_begins_no_formula(tmp_path):
    options = {"sample": 3, "text_of": lambda _token: "$^$"}
    write_heatmap(tmp_path / "h.png", golden_table(), **options, note="$^$")
    write_trajectories(tmp_path / "l.png", golden_table(), **options, answer=word(1))


def test_a_long_text_is_cut_and_the_title_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "actcli.render.lens_heatmap.set_title", lambda _figure, _grid, *parts: said.extend(parts)
    )
    write_heatmap(
        tmp_path / "h.png",
        wide_table(20, n_layers=5),
        sample=3,
        text_of=str,
        note="raw lens",
        most_positions=6,
    )
    assert said[1:] == ["last 6 of 20 positions", "", "raw lens"]


def test_the_same_picture_is_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_heatmap(tmp_path / name, golden_table(), sample=3, text_of=str)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_another_suffix_is_refused(tmp_path):
    for write in (write_heatmap, write_trajectories):
        with pytest.raises(UsageError, match=r"a\.pdf: a picture is a \.png or a \.svg file"):
            write(tmp_path / "a.pdf", golden_table(), sample=3, text_of=str)
    assert [*tmp_path.iterdir()] == []


def word(token):
    return AnswerReport(text=f"w{token}", id=token)


def test_lines_are_the_answer_the_contrast_and_what_was_on_top():
    stored = golden()
    grid = grid_of(two_streams(), sample=3, most_positions=1)
    answer = int(stored["target"][0, -1])
    lines = trajectories(grid, str, answer=word(answer), contrast=word(CONTRAST))
    assert [each.role for each in lines[:2]] == ["answer", "contrast"]
    np.testing.assert_allclose(lines[0].p_G, stored["p_target"][:, 0, -1], rtol=1e-6)
    logits_GV = stored["lens_logits"][:, 0, -1]
    contrast_G = (np.exp(logits_GV) / np.exp(logits_GV).sum(-1, keepdims=True))[:, CONTRAST]
    np.testing.assert_allclose(lines[1].p_G, contrast_G, rtol=1e-5)
    ids_Gk, p_Gk = stored["topk_ids"][:, 0, -1], stored["topk_p"][:, 0, -1]
    largest = {}
    for token in set(ids_Gk[:, 0].tolist()) - {answer, CONTRAST}:
        largest[token] = p_Gk[ids_Gk == token].max()
    expected = sorted(largest, key=lambda token: -largest[token])
    assert [each.token for each in lines[2:]] == expected[:6]
    for each in lines[2:]:
        for layer, p in enumerate(each.p_G):
            listed = p_Gk[layer][ids_Gk[layer] == each.token]
            assert np.isnan(p) if not len(listed) else p == np.float32(listed[0])
    assert any(np.isnan(each.p_G).any() for each in lines[2:])


def test_at_most_some_lines():
    grid = grid_of(golden_table(), sample=8, most_positions=1)
    every = trajectories(grid, str, most=99)
    assert len(every) > 2
    assert [each.token for each in trajectories(grid, str, most=2)] == [
        each.token for each in every[:2]
    ]


@pytest.mark.parametrize("n_layers", [1, 5, 70])
def test_line_plots_can_be_drawn(tmp_path, n_layers):
    table = wide_table(9, n_layers=n_layers)
    answer = int(table.target_id[8])
    for suffix in ("png", "svg"):
        write_trajectories(
            tmp_path / f"l.{suffix}",
            table,
            sample=3,
            text_of=hostile,
            answer=word(answer),
            contrast=word(CONTRAST),
            note="raw",
        )
    ElementTree.parse(tmp_path / "l.svg")
    assert size(tmp_path / "l.png")[0] >= 7 * 160
