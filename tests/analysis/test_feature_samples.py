"""The largest activations of every feature: what a heap for each would hold."""

import math

import numpy as np
import pytest
import torch

from actcli.analysis.feature_samples import HISTOGRAM_EDGES, TopSamples
from actcli.saes.dictionary import SparseActs
from tests.analysis.slow_features import Tokens, heaps, in_batches, made_tokens


def collected(tokens, *, size, order=None, **options):
    top = TopSamples(tokens.acts_ND.shape[1], **options)
    batches = list(in_batches(tokens, size))
    for batch in batches if order is None else [batches[each] for each in order]:
        top.add(batch.sparse, batch.samples_N, batch.positions_N)
    return top


def by_feature(top):
    kept = top.kept()
    found = [[] for _ in range(top.n_features)]
    columns = (kept.feature_M, kept.value_M, kept.sample_M, kept.position_M)
    for feature, *rest in zip(*(column.tolist() for column in columns), strict=True):
        found[feature].append(tuple(rest))
    return found


@pytest.mark.parametrize("most", [1, 4, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("size", "pending"), [(1, 1), (7, 20), (64, 1 << 20), (1000, 50)])
def test_keeps_what_heaps_keep(most, threshold, size, pending):
    tokens = made_tokens()
    top = collected(tokens, size=size, most=most, threshold=threshold, pending=pending)
    assert by_feature(top) == heaps(tokens, most=most, threshold=threshold)


@pytest.mark.parametrize("seed", range(5))
def test_does_not_depend_on_the_order_of_batches(seed):
    tokens = made_tokens(seed=seed)
    order = np.random.default_rng(seed).permutation(-(-len(tokens.acts_ND) // 8))
    top = collected(tokens, size=8, order=order, most=3, pending=10)
    assert by_feature(top) == heaps(tokens, most=3, threshold=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_when_the_largest_stay(seed):
    order = np.random.default_rng(seed).permutation(30)
    values_ND = (1 + order).astype(np.float32)[:, None]
    tokens = Tokens(values_ND, np.zeros(30, np.int64), np.arange(30))
    top = collected(tokens, size=1, most=4, pending=1)
    assert by_feature(top)[0] == [(30 - n, 0, int(np.argmax(order == 29 - n))) for n in range(4)]


def test_large_values_are_in_order():
    values = torch.tensor([3.4e38, 1e-30, 1.0, 65504.0, 0.2])
    top = TopSamples(1, threshold=0)
    zeros = torch.zeros(5, dtype=torch.int64)
    top.add(SparseActs(torch.arange(5), zeros, values, 5), np.zeros(5, int), np.arange(5))
    assert top.kept().position_M.tolist() == [0, 3, 2, 4, 1]


def test_memory_does_not_grow_with_tokens():
    top = TopSamples(4, most=5, threshold=0, pending=64)
    rng = np.random.default_rng(0)
    for number in range(200):
        acts = SparseActs.of(torch.from_numpy(rng.random((16, 4), dtype=np.float32)))
        top.add(acts, np.full(16, number), np.arange(16))
        assert top._n_waiting <= 64
        assert len(top._kept) <= 20


def test_sums_are_of_all_tokens():
    tokens = made_tokens(n_samples=30)
    sums = collected(tokens, size=13).sums
    assert sums.n_tokens == len(tokens.acts_ND)
    for feature in range(tokens.acts_ND.shape[1]):
        column = [float(each) for each in tokens.acts_ND[:, feature]]
        active = [each for each in column if each != 0]
        assert sums.active_D[feature] == len(active)
        assert sums.above_D[feature] == sum(each > float(np.float32(0.1)) for each in column)
        assert sums.sum_D[feature] == pytest.approx(math.fsum(active), rel=1e-12)
        if not active:
            assert sums.mean(feature) is None
            assert sums.std(feature) is None
            assert sums.max_D[feature] == -np.inf
            continue
        mean = math.fsum(active) / len(active)
        spread = math.sqrt(math.fsum((each - mean) ** 2 for each in active) / len(active))
        assert sums.mean(feature) == pytest.approx(mean, rel=1e-12)
        assert sums.std(feature) == pytest.approx(spread, rel=1e-9)
        assert sums.max_D[feature] == max(active)


def test_histogram_counts_half_octaves():
    tokens = made_tokens(n_samples=30)
    sums = collected(tokens, size=13).sums
    for feature in range(tokens.acts_ND.shape[1]):
        column = tokens.acts_ND[:, feature]
        found = sums.histogram(feature)
        if not (column > 0).any():
            assert found is None
            continue
        edges, counts = found
        assert len(edges) == len(counts) + 1
        assert counts[0] > 0
        assert counts[-1] > 0
        assert sum(counts) == (column != 0).sum()
        assert edges[-1] >= column.max()
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            least = -np.inf if low == 0 else low
            assert count == ((column != 0) & (column >= least) & (column < high)).sum()


def test_histogram_takes_what_is_beyond_its_bins():
    values = torch.tensor([1e-9, 0.5, 1e9])
    top = TopSamples(1)
    zeros = torch.zeros(3, dtype=torch.int64)
    top.add(SparseActs(torch.arange(3), zeros, values, 3), np.zeros(3, int), np.arange(3))
    edges, counts = top.sums.histogram(0)
    assert (edges[0], edges[-1]) == (0, 1e9)
    assert counts[0] == counts[-1] == 1
    assert sum(counts) == 3
    assert len(edges) == len(HISTOGRAM_EDGES)


def test_nothing_at_all():
    top = TopSamples(3)
    assert len(top.kept()) == 0
    empty = SparseActs.of(torch.zeros(4, 3))
    top.add(empty, np.zeros(4, int), np.arange(4))
    assert len(top.kept()) == 0
    assert top.sums.n_tokens == 4


def test_refuses_what_it_cannot_order():
    with pytest.raises(AssertionError):
        TopSamples(3, threshold=-1)
    with pytest.raises(AssertionError):
        TopSamples(3, most=0)
