"""Standard errors: against leaving samples out, and against many draws of the samples."""

import numpy as np
import pytest
import torch

from actcli.analysis.sae_clusters import ClusterTable, SampleClusters, VarianceTable
from actcli.analysis.sae_formulas import ESTIMATES, error_of, estimate
from tests.analysis.slow_sae import slow_features, slow_measures
from tests.analysis.test_sae_pass import evaluate, random_dictionary

SAMPLES, TOKENS = 60, 7


def _draw(seed, *, samples=SAMPLES):
    """Samples that differ in their mean and in how hard they are, of 4 to 10 tokens each."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(4, 2 * TOKENS - 3, samples)
    samples_N = np.repeat(np.arange(samples), lengths)
    level_N = draws.normal(size=samples)[samples_N, None]
    x = draws.normal(size=(len(samples_N), 12)) + level_N
    y = draws.normal(size=(len(samples_N), 9)) * (1 + 0.3 * np.abs(level_N)) + 0.5 * level_N + 2
    return torch.from_numpy(x).float(), torch.from_numpy(y).float(), samples_N


def _pair():
    """Two dictionaries whose reconstructions point the way of the target."""
    changes = {"b_dec_O": torch.full((9,), 1.5)}
    made = [random_dictionary(seed=seed, **changes) for seed in (1, 2)]
    for each in made:
        each.W_dec_DO.div_(20)
    return made


def _jackknife(values_of, samples_N):
    """sqrt((C - 1) / C * sum (theta_i - mean theta)^2), theta_i without sample i."""
    found = [values_of(samples_N != each) for each in np.unique(samples_N)]
    names, count = found[0].keys(), len(found)
    table = {name: np.array([each[name] for each in found]) for name in names}
    return {
        name: np.sqrt((count - 1) / count * ((each - each.mean()) ** 2).sum())
        for name, each in table.items()
    }


def _slow(dictionary, x_NI, y_NO):
    acts_ND, r_NO = slow_features(dictionary, x_NI)
    return {
        **slow_measures(y_NO, r_NO),
        "mean_l0": (acts_ND != 0).sum(-1).mean(),
        "mean_l1": np.abs(acts_ND).sum(-1).mean(),
    }


def test_leaving_samples_out():
    """Every error, and every error of a paired difference, is near the jackknife's."""
    x_NI, y_NO, samples_N = _draw(0)
    pair = _pair()
    found = [evaluate(each, x_NI, y_NO, samples_N=samples_N, batch=100) for each in pair]
    keep = [
        _jackknife(lambda kept, own=own: _slow(own, x_NI[kept], y_NO[kept]), samples_N)
        for own in pair
    ]

    def difference(kept):
        one, other = (_slow(own, x_NI[kept], y_NO[kept]) for own in pair)
        return {name: one[name] - other[name] for name in one}

    paired = _jackknife(difference, samples_N)
    for name in ESTIMATES:
        error = found[0].reconstruction.standard_errors[name]
        assert error == pytest.approx(keep[0][name], rel=0.06), name
        one, other = (estimate(each.sums, name) for each in found)
        both = error_of(one.psi_C - other.psi_C)
        assert both == pytest.approx(paired[name], rel=0.06), name
    assert found[0].sums.n_C.tolist() == np.bincount(samples_N).tolist()


def test_formula_of_errors():
    """sqrt(C / (C - 1) * sum psi^2): of a mean of equal clusters, the usual error of a mean."""
    values = np.array([3.0, 5.0, 10.0])
    psi_C = (values - values.mean()) / 3
    assert error_of(psi_C) == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert error_of(psi_C[:1]) is None


def test_many_draws():
    """The mean error of 200 sets of samples is the spread of their values."""
    dictionary = _pair()[0]
    names = ("fvu", "mse", "cosine_flat", "cosine_similarity", "mean_l0")
    values, errors = {name: [] for name in names}, {name: [] for name in names}
    for seed in range(200):
        x_NI, y_NO, samples_N = _draw(seed, samples=40)
        sums = evaluate(dictionary, x_NI, y_NO, samples_N=samples_N).sums
        for name in names:
            found = estimate(sums, name)
            values[name].append(found.value)
            errors[name].append(found.standard_error())
    for name in names:
        spread = np.std(values[name], ddof=1)
        assert np.mean(errors[name]) == pytest.approx(spread, rel=0.15), name


def test_merged_clusters():
    """Beyond the limit neighbours merge by twos: values stay, whatever the batches."""
    x_NI, y_NO, samples_N = _draw(3)
    dictionary = _pair()[0]
    whole = evaluate(dictionary, x_NI, y_NO, samples_N=samples_N)
    options = {"samples_N": samples_N, "most_clusters": 16}
    merged = evaluate(dictionary, x_NI, y_NO, **options)
    parts = evaluate(dictionary, x_NI, y_NO, batch=13, **options)
    quarters = np.bincount(samples_N // 4)
    assert merged.sums.n_C.tolist() == parts.sums.n_C.tolist() == quarters.tolist()
    for name in ESTIMATES:
        one, other, apart = (estimate(each.sums, name) for each in (whole, merged, parts))
        assert other.value == pytest.approx(one.value, rel=1e-6), name
        assert apart.value == pytest.approx(one.value, rel=1e-6), name
        assert apart.psi_C == pytest.approx(other.psi_C, rel=1e-3, abs=1e-6), name
    by_hand = [float(y_NO[samples_N // 4 == each].double().square().sum()) for each in range(15)]
    assert merged.sums.of("squares_in") == pytest.approx(by_hand, rel=1e-6)


def test_samples_that_go_on():
    """A sample may span calls; numbers may leave some out."""
    clusters = SampleClusters(most=4)
    first = clusters.runs(np.array([3, 3, 7]))
    assert (first.clusters_S.tolist(), first.counts_S.tolist()) == ([0, 1], [2, 1])
    second = clusters.runs(np.array([7, 9, 10, 10]))
    assert (second.clusters_S.tolist(), second.starts_S.tolist()) == ([1, 2, 3], [0, 1, 2])
    third = clusters.runs(np.array([11]))
    assert (third.clusters_S.tolist(), third.width, clusters.count) == ([2], 2, 3)


def test_tables_fold():
    """Sums, means and squared distances of merged clusters are those of all their tokens."""
    values_NO = np.random.default_rng(0).normal(size=(40, 3)) + 1e3
    samples_N = np.repeat(np.arange(10), 4)
    clusters, plain = SampleClusters(most=4), ClusterTable(sums=3, most=4)
    spread = VarianceTable(width=3, most=4)
    for first in range(0, 40, 6):
        part = values_NO[first : first + 6]
        runs = clusters.runs(samples_N[first : first + 6])
        plain.add(runs, runs.sum(part.T))
        pieces = [
            part[start : start + n] for start, n in zip(runs.starts_S, runs.counts_S, strict=True)
        ]
        means_SO = np.array([each.mean(0) for each in pieces])
        spread.add(runs, means_SO, np.array([((e - e.mean(0)) ** 2).sum() for e in pieces]))
    for each in range(3):
        own = values_NO[samples_N // 4 == each]
        assert plain.first(3, 4)[each] == pytest.approx(own.sum(0))
        assert spread.means_CO[each] == pytest.approx(own.mean(0))
        assert spread.squares_C[each] == pytest.approx(((own - own.mean(0)) ** 2).sum())
        assert spread.counts_C[each] == len(own)
