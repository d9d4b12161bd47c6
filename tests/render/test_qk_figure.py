"""The picture of pairs: what is drawn in which panel, for any number of heads and keys."""

import dataclasses

import matplotlib.figure
import numpy as np
import pytest

from actcli.errors import UsageError
from actcli.render import qk_figure
from actcli.render.qk_figure import columns_of, pair_looks, write_qk_figure
from actcli.render.qk_view import thinned
from tests.render.qk_made import EVIL, made_view


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a view; gives the axes in order: mean, legend, heads."""
    kept = []

    def keep(figure, path):
        kept.append(figure)
        return original(figure, path)

    original = qk_figure.encode
    monkeypatch.setattr(qk_figure, "encode", keep)

    def draw(view):
        write_qk_figure(tmp_path / "pairs.png", view)
        return kept[-1], kept[-1].axes

    return draw


def lines_of(axes):
    """Drawn lines (colour, numbers) without the zero line."""
    return [(line.get_color(), line.get_ydata()) for line in axes.get_lines()[1:]]


def test_heads_show_visible_pairs_the_sum_and_the_truth(drawn):
    view = made_view(n_heads=6, n_pairs=5)
    _figure, (mean, legend, *heads) = drawn(view)
    assert [axes.get_title() for axes in heads] == [f"H{head}" for head in range(6)]
    pairs = view.pairs
    assert not pairs.visible.all()
    for head, axes in enumerate(heads):
        lines = lines_of(axes)
        visible = np.flatnonzero(pairs.visible[head])
        colours = [pair_looks(5)[n]["color"] for n in visible]
        assert [colour for colour, _ in lines] == [*colours, "black", "red"]
        expected = [*pairs.top_contrib[head, visible], pairs.sum[head], pairs.ground_truth[head]]
        for (_, numbers), wanted in zip(lines, expected, strict=True):
            np.testing.assert_array_equal(numbers, wanted)
    assert len(lines_of(mean)) == 5 + 2
    np.testing.assert_allclose(lines_of(mean)[0][1], pairs.top_contrib[:, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(lines_of(mean)[-1][1], pairs.ground_truth.mean(0), atol=1e-6)
    names = [text.get_text() for text in legend.get_legend().get_texts()]
    assert names == ["Sum (all components)", "Ground truth", *view.names]
    assert view.names[3] == "q.3 → k.3"


def test_all_panels_share_one_range_that_holds_every_line_and_zero(drawn):
    view = made_view(n_heads=4)
    shifted = dataclasses.replace(view.pairs, sum=view.pairs.sum + 50)
    _figure, (mean, _legend, *heads) = drawn(dataclasses.replace(view, pairs=shifted))
    ranges = {axes.get_ylim() for axes in (mean, *heads)}
    assert len(ranges) == 1
    ((least, most),) = ranges
    assert least < 0 < shifted.sum.max() < most


def test_two_columns_for_six_heads_and_no_empty_frames(drawn):
    assert [columns_of(n) for n in (1, 6, 8, 12, 32, 64)] == [2, 2, 2, 3, 4, 6]
    figure, (_mean, _legend, *heads) = drawn(made_view(n_heads=5))
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [axes.axison for axes in heads] == [True] * 5 + [False]


def test_more_pairs_than_colours_differ_by_their_dashes():
    looks = {(each["color"], str(each["linestyle"])) for each in pair_looks(130)}
    assert len(looks) == 130
    assert len({each["color"] for each in pair_looks(40)}) == 40


def test_weight_only_contributions_have_no_truth(drawn):
    view = made_view()
    binary = dataclasses.replace(view.pairs, mode="binary", ground_truth=None)
    _figure, (mean, legend, *_heads) = drawn(dataclasses.replace(view, pairs=binary))
    assert len(lines_of(mean)) == 5 + 1
    assert mean.get_ylabel() == "Weight-only contribution"
    assert len(legend.get_legend().get_texts()) == 6


def test_token_ticks_are_thinned_where_keys_are_many(drawn):
    _figure, (mean, _legend, *heads) = drawn(made_view(n_keys=512, first_key=100))
    labels = [label.get_text() for label in mean.get_xticklabels()]
    assert 20 <= len(labels) <= 40
    assert labels[0] == "100 t0"
    assert labels[-1] == "611 t511"
    boxes = [label.get_window_extent() for label in mean.get_xticklabels()]
    starts = [box.x1 for box in boxes]  # of labels that are turned: their upper right corner
    assert min(np.diff(starts)) > 8
    assert {label.get_text() for label in heads[0].get_xticklabels()} == {""}


@pytest.mark.parametrize("n_keys", [1, 2, 7, 40, 41, 512])
@pytest.mark.parametrize("most", [2, 9, 40])
def test_thinned_places_are_few_rising_and_end_at_the_last(n_keys, most):
    places = [*thinned(n_keys, most=most)]
    assert len(places) <= most
    assert places[-1] == n_keys - 1
    assert places == sorted(set(places))


def test_hostile_tokens_are_drawn_as_text(tmp_path):
    view = made_view(n_heads=1, n_keys=2, tokens=(EVIL, EVIL))
    write_qk_figure(tmp_path / "pairs.svg", view)
    text = (tmp_path / "pairs.svg").read_text()
    assert "</script><b>" not in text


def test_the_same_view_is_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_qk_figure(tmp_path / name, made_view(n_heads=1))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a \.png or a \.svg"):
        write_qk_figure(tmp_path / "pairs.gif", made_view(n_heads=1))
