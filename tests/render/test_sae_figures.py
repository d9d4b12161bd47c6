"""Plots of an evaluation: what they draw as numbers, and that there are files."""

import numpy as np
import pytest
from matplotlib.image import imread

from actcli.errors import ActcliError
from actcli.render.sae_figures import write_figures
from actcli.render.sae_figures_data import (
    density_steps,
    l0_limit,
    l0_steps,
    prefix_curves,
    prefix_points,
    whole_point,
)
from actcli.reports.base import Histogram
from actcli.reports.sae_metrics import DensityReport
from tests.render.sae_made import (
    EVIL,
    N_TOKENS,
    made_dictionary,
    made_evaluation,
    made_pair,
    made_reconstruction,
)


def with_l0(counts, edges=None):
    histogram = Histogram(edges=edges or tuple(range(len(counts) + 1)), counts=tuple(counts))
    report = made_dictionary()
    sparsity = report.sparsity.model_copy(update={"l0_histogram": histogram})
    return report.model_copy(update={"sparsity": sparsity})


def with_density(counts):
    edges = tuple(float(-5 + n / 2) for n in range(len(counts) + 1))
    found = Histogram(edges=edges, counts=tuple(counts))
    return made_dictionary(density=DensityReport(log10_density=found, densest=()))


def area(steps):
    return float(np.sum(np.diff(steps.edges) * steps.heights))


def test_l0_is_a_share_per_unit_whatever_the_bins():
    steps = l0_steps(with_l0([1, 3, 4], edges=(0.0, 1.0, 5.0, 7.0)), limit=7)
    assert steps.edges == (0, 1, 5, 7)
    assert steps.heights == (1 / 8, 3 / 8 / 4, 4 / 8 / 2)


def test_many_bins_are_merged_and_lose_no_token():
    counts = np.random.default_rng(0).integers(0, 9, 501).tolist()
    steps = l0_steps(with_l0(counts), limit=501)
    assert len(steps.heights) == 72  # of 7 bins, the last of 4
    assert steps.edges[-2:] == (497, 501)
    assert area(steps) == pytest.approx(1, rel=1e-12)
    assert steps.heights[2] == pytest.approx(sum(counts[14:21]) / 7 / sum(counts))


def test_the_l0_axis_ends_right_of_nearly_all_tokens():
    long_tail = with_l0([500, 499] + [0] * 800 + [1])
    assert l0_limit([long_tail]) == 2
    assert l0_limit([long_tail, with_l0([0] * 40 + [9])]) == 41
    steps = l0_steps(long_tail, limit=2)
    assert (steps.edges, steps.heights) == ((0, 1, 2), (0.5, 0.499))


def test_density_is_a_share_of_all_features_per_decade():
    steps = density_steps(with_density([0, 0, 5, 0, 10, 0]))
    assert steps.edges == (-4, -3.5, -3, -2.5)
    assert steps.heights == (5 / 0.5 / 512, 0, 10 / 0.5 / 512)
    assert density_steps(with_density([0, 0, 0])) is None


def test_points_are_the_reports_numbers():
    ours = made_pair().dictionaries[0]
    point = whole_point(ours)
    assert point == (ours.sparsity.mean_l0, ours.reconstruction.fvu, 0.4, 0.01)
    parts = [(each.mean_l0, each.fvu) for each in ours.prefixes]
    assert [each[:2] for each in prefix_points(ours)] == parts
    fvu, l0, redundancy = prefix_curves(ours)
    assert fvu.sizes == l0.sizes == redundancy.sizes == (32, 128, 256, 512)
    assert fvu.values == tuple(each.fvu for each in ours.prefixes)
    assert redundancy.values == tuple(each.redundancy for each in ours.prefixes)


def test_what_is_not_defined_is_no_point():
    missing = made_dictionary(reconstruction=made_reconstruction(0.3, fvu=None))
    assert whole_point(missing) is None
    nested = made_pair().dictionaries[0].prefixes
    first = nested[0].model_copy(update={"fvu": None})
    assert len(prefix_points(made_dictionary(prefixes=()))) == 0
    report = made_dictionary().model_copy(update={"prefixes": (first, *nested[1:])})
    assert len(prefix_points(report)) == 3
    assert prefix_curves(report)[0].values[0] is None


def names(paths):
    return [path.name for path in paths]


def test_each_plot_is_a_picture(tmp_path):
    written = write_figures(made_pair(), tmp_path)
    assert names(written) == ["l0.png", "density.png", "fvu_l0.png", "prefixes.png"]
    for path in written:
        picture = imread(path)
        assert min(picture.shape[:2]) > 500, path
        assert picture[:, :, :3].std() > 0.02, path


def test_plots_without_content_are_left_out(tmp_path):
    one = made_evaluation(made_dictionary(EVIL))
    assert names(write_figures(one, tmp_path)) == ["l0.png", "density.png", "fvu_l0.png"]
    silent = with_density([0, 0]).model_copy(
        update={"reconstruction": made_reconstruction(0.3, fvu=None)}
    )
    assert names(write_figures(made_evaluation(silent), tmp_path)) == ["l0.png"]


def test_many_dictionaries_with_strange_names_fit(tmp_path):
    some = [made_dictionary(f"{n} 中 {EVIL}" * (1 + 3 * n), seed=n) for n in range(3)]
    more = [made_dictionary(f"n{n}", seed=n, prefixes=(8, 512)) for n in range(9)]
    assert len(write_figures(made_evaluation(*some, *more), tmp_path)) == 4


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ActcliError, match="cannot write"):
        write_figures(made_pair(), tmp_path / "missing")


def test_one_token_without_any_feature(tmp_path):
    lonely = with_l0([1])
    assert l0_limit([lonely]) == 1
    assert l0_steps(lonely, limit=1).heights == (1,)
    assert N_TOKENS > 1
    write_figures(made_evaluation(lonely), tmp_path)
