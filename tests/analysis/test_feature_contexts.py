"""Which activations are shown, and the feature at every token around each."""

import numpy as np
import pytest
import torch

from actcli.analysis.feature_contexts import ContextActs, choose_samples
from actcli.analysis.feature_samples import TopSamples
from actcli.errors import UsageError
from actcli.saes.dictionary import SparseActs
from tests.analysis.slow_features import heaps, in_batches, made_tokens


def top_of(tokens, **options):
    top = TopSamples(tokens.acts_ND.shape[1], **options)
    top.add(tokens.sparse, tokens.samples_N, tokens.positions_N)
    return top


def strongest(tokens, *, n):
    kept = heaps(tokens, most=1, threshold=0.1)
    there = [(-each[0][0], feature) for feature, each in enumerate(kept) if each]
    return [feature for _value, feature in sorted(there)][:n]


def test_chooses_the_strongest_features_and_the_first_samples_of_each():
    tokens = made_tokens()
    chosen = choose_samples(top_of(tokens), n_features=6, n_samples=4, context=5)
    assert list(chosen.features) == strongest(tokens, n=6)
    assert chosen.side == 2
    kept = heaps(tokens, most=4, threshold=0.1)
    for feature in range(23):
        samples = chosen.samples.select(np.array(chosen.rows_of(feature), int))
        columns = (samples.value_M, samples.sample_M, samples.position_M)
        found = list(zip(*(column.tolist() for column in columns), strict=True))
        assert found == (kept[feature] if feature in chosen.features else [])


def test_all_features_are_those_with_a_sample():
    tokens = made_tokens()
    chosen = choose_samples(top_of(tokens), n_features=None)
    assert sorted(chosen.features) == [each for each in range(23) if each not in (3, 5, 11)]


def test_named_features_keep_their_order_and_may_be_dead():
    tokens = made_tokens()
    chosen = choose_samples(top_of(tokens), features=(7, 3, 0, 7), n_samples=2)
    assert chosen.features == (7, 3, 0)
    assert [len(chosen.rows_of(each)) for each in chosen.features] == [2, 0, 2]


@pytest.mark.parametrize("wrong", [23, -1])
def test_a_feature_that_is_not_there(wrong):
    with pytest.raises(UsageError, match=f"no feature {wrong}: .* features 0 to 22"):
        choose_samples(top_of(made_tokens()), features=(1, wrong))


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_every_token_of_a_context_has_its_activation(size):
    tokens = made_tokens()
    counts = (tokens.positions_N != 0) & (np.arange(len(tokens.samples_N)) % 11 != 3)
    seen = tokens.rows(counts)
    chosen = choose_samples(top_of(seen), n_features=8, n_samples=5, context=8)
    contexts = ContextActs(chosen)
    n_wanted = 0
    for batch in in_batches(seen, size):
        wanted_N = contexts.wants(batch.samples_N, batch.positions_N)
        some = batch.rows(wanted_N.nonzero()[0])
        n_wanted += len(some.samples_N)
        contexts.add(some.sparse, some.samples_N, some.positions_N)
    dense = {
        (s, p): n for n, (s, p) in enumerate(zip(tokens.samples_N, tokens.positions_N, strict=True))
    }
    near = set()
    for row in range(len(chosen.samples)):
        feature, sample = int(chosen.samples.feature_M[row]), int(chosen.samples.sample_M[row])
        position = int(chosen.samples.position_M[row])
        positions = range(max(0, position - 4), min(17, position + 5))
        near |= {(sample, each) for each in positions if counts[dense[sample, each]]}
        expected = {
            each: float(tokens.acts_ND[dense[sample, each], feature])
            if counts[dense[sample, each]]
            else None
            for each in positions
        }
        assert contexts.of(row, positions) == expected
    assert n_wanted == len(near)


def test_tokens_of_no_context_are_passed_over():
    tokens = made_tokens()
    chosen = choose_samples(top_of(tokens), n_features=4, n_samples=2, context=4)
    one, other = ContextActs(chosen), ContextActs(chosen)
    one.add(tokens.sparse, tokens.samples_N, tokens.positions_N)
    wanted = tokens.rows(one.wants(tokens.samples_N, tokens.positions_N))
    other.add(wanted.sparse, wanted.samples_N, wanted.positions_N)
    for row in range(len(chosen.samples)):
        position = int(chosen.samples.position_M[row])
        positions = range(max(0, position - 2), min(17, position + 3))
        assert one.of(row, positions) == other.of(row, positions)


def test_no_context_wants_nothing():
    chosen = choose_samples(TopSamples(3))
    contexts = ContextActs(chosen)
    assert not contexts.wants(np.arange(3), np.arange(3)).any()
    contexts.add(SparseActs.of(torch.ones(3, 3)), np.arange(3), np.arange(3))
