"""Activation samples as records: statistics, texts and contexts."""

import json

import numpy as np
import pytest
import torch

from actcli.analysis.feature_contexts import ContextActs, choose_samples
from actcli.analysis.feature_records import feature_records, summary_of
from actcli.analysis.feature_samples import TopSamples
from actcli.saes.dictionary import SparseActs
from tests.analysis.slow_features import heaps, in_batches, made_tokens

SEED_STATISTICS = {
    "feature_idx",
    "num_samples",
    "max_activation",
    "mean_activation",
    "std_activation",
    "min_activation",
    "activation_count",
    "all_time_max",
}
SEED_SAMPLE = {
    "feature_idx",
    "activation_value",
    "tokens",
    "text",
    "position",
    "context_tokens",
    "context_text",
}
SEED_SUMMARY = {
    "total_samples_seen",
    "total_samples_stored",
    "num_features_tracked",
    "avg_samples_per_feature",
    "features_with_samples",
    "top_features_by_activation",
}


def ids_of(sample):
    return 1000 * sample + np.arange(17)


def texts_of(ids):
    """The first says that nothing stood before it."""
    return tuple(f"{'_' if place else '^'}{each}" for place, each in enumerate(ids))


def collected(tokens, *, most=9, size=50):
    top = TopSamples(tokens.acts_ND.shape[1], most=most)
    for batch in in_batches(tokens, size):
        top.add(batch.sparse, batch.samples_N, batch.positions_N)
    return top


def records_of(top, chosen, **options):
    options = {"ids_of": ids_of, "texts_of": texts_of} | options
    return feature_records(top, chosen, **options)


def test_statistics_are_of_what_is_kept_and_of_all():
    tokens = made_tokens()
    top = collected(tokens)
    chosen = choose_samples(top, features=range(23), n_samples=4)
    kept = heaps(tokens, most=9, threshold=0.1)
    for feature, record in enumerate(records_of(top, chosen)):
        numbers, values = record.statistics, [each[0] for each in kept[feature]]
        column = tokens.acts_ND[:, feature].astype(float)
        assert record.feature == feature
        assert numbers.num_samples == len(values)
        assert len(record.top_samples) == min(4, len(values))
        assert [each.activation_value for each in record.top_samples] == values[:4]
        assert numbers.activation_count == (tokens.acts_ND[:, feature] > np.float32(0.1)).sum()
        assert numbers.density == (column != 0).sum() / len(column)
        if not values:
            assert (numbers.max_activation, numbers.mean_activation) == (0, 0)
            assert numbers.std_activation is numbers.min_activation is None
            continue
        assert numbers.max_activation == numbers.all_time_max == column.max()
        assert numbers.min_activation == values[-1]
        assert numbers.mean_activation == pytest.approx(np.mean(values), rel=1e-12)
        assert numbers.std_activation == pytest.approx(np.std(values), rel=1e-9)
        assert numbers.mean_when_active == pytest.approx(column[column != 0].mean(), rel=1e-12)


def test_a_feature_below_the_threshold_has_a_maximum_all_the_same():
    top = collected(made_tokens())
    (record,) = records_of(top, choose_samples(top, features=[5]))
    assert record.top_samples == ()
    assert record.statistics.all_time_max == pytest.approx(0.05)
    assert record.statistics.active_count > 0
    assert record.statistics.activation_count == 0


@pytest.mark.parametrize("context", [1, 6, 7, 40])
def test_contexts_reach_equally_far_and_not_beyond_the_sample(context):
    tokens = made_tokens()
    top = collected(tokens)
    chosen = choose_samples(top, features=range(23), context=context)
    side, places = context // 2, set()
    for record in records_of(top, chosen):
        for each in record.top_samples:
            first, stop = max(0, each.position - side), min(17, each.position + side + 1)
            ids = list(range(1000 * each.sample + first, 1000 * each.sample + stop))
            before = "^" if first == 0 else "_"
            texts = [f"{before if place == 0 else '_'}{token}" for place, token in enumerate(ids)]
            assert list(each.context_tokens) == ids
            assert each.context_start == first
            assert list(each.context_texts) == texts
            assert each.context_text == "".join(texts)
            here = each.position - first
            assert list(each.tokens) == ids[max(0, here - 1) : here + 1]
            assert each.text == "".join(texts[max(0, here - 1) : here + 1])
            places.add(each.position)
    assert {0, 16} <= places


def test_activations_of_a_context_are_those_of_the_second_pass_but_at_the_token():
    tokens = made_tokens()
    top = collected(tokens)
    chosen = choose_samples(top, n_features=5, n_samples=3, context=6)
    contexts = ContextActs(chosen)
    rounded = SparseActs.of(torch.from_numpy(tokens.acts_ND) * 1.001)
    contexts.add(rounded, tokens.samples_N, tokens.positions_N)
    for record in records_of(top, chosen, contexts=contexts):
        for each in record.top_samples:
            here = each.position - each.context_start
            for place, value in enumerate(each.context_activations):
                row = 17 * each.sample + each.context_start + place
                exact = tokens.acts_ND[row, record.feature]
                assert value == (exact if place == here else np.float32(exact * np.float32(1.001)))


def test_without_a_second_pass_only_the_token_has_an_activation():
    top = collected(made_tokens())
    for record in records_of(top, choose_samples(top, n_features=5)):
        for each in record.top_samples:
            expected = [None] * len(each.context_tokens)
            expected[each.position - each.context_start] = each.activation_value
            assert list(each.context_activations) == expected


def test_without_ids_there_are_places_alone():
    top = collected(made_tokens())
    (record,) = records_of(top, choose_samples(top, n_features=1), ids_of=lambda sample: None)
    for each in record.top_samples:
        assert each.tokens == each.context_tokens == ()
        assert each.text == each.context_text == ""
        assert each.context_texts is each.context_activations is None


def test_similar_features_stand_beside_theirs():
    top = collected(made_tokens())
    chosen = choose_samples(top, features=(8, 2))
    similar = [[(4, 0.5), (2, -0.25)], [(8, -0.25)]]
    first, second = records_of(top, chosen, similar=similar)
    assert [(each.feature_idx, each.cosine) for each in first.similar] == similar[0]
    assert [(each.feature_idx, each.cosine) for each in second.similar] == similar[1]


def test_summary_counts_every_feature():
    tokens = made_tokens(n_features=70)
    top = collected(tokens)
    kept = heaps(tokens, most=9, threshold=0.1)
    summary = summary_of(top, choose_samples(top, n_features=3), source="a dump")
    there = [feature for feature in range(70) if kept[feature]]
    assert summary.total_samples_seen == (tokens.acts_ND > np.float32(0.1)).sum()
    assert summary.total_samples_stored == sum(map(len, kept))
    assert summary.num_features_tracked == len(there)
    assert summary.avg_samples_per_feature == sum(map(len, kept)) / len(there)
    assert list(summary.features_with_samples) == there
    ranked = sorted(there, key=lambda each: (-kept[each][0][0], each))[:50]
    found = summary.top_features_by_activation
    assert [each.feature_idx for each in found] == ranked
    assert [each.max_activation for each in found] == [kept[each][0][0] for each in ranked]
    assert [each.num_samples for each in found] == [len(kept[each]) for each in ranked]
    assert list(summary.features_written) == ranked[:3]


def test_summary_of_nothing():
    top = TopSamples(4)
    summary = summary_of(top, choose_samples(top))
    assert summary.avg_samples_per_feature == 0
    assert summary.features_written == ()


def test_the_files_have_all_keys_of_the_matryoshka_program():
    top = collected(made_tokens())
    chosen = choose_samples(top, n_features=1)
    (record,) = records_of(top, chosen)
    written = json.loads(record.model_dump_json())
    assert {"statistics", "top_samples"} <= written.keys()
    assert written["statistics"].keys() >= SEED_STATISTICS
    assert all(each.keys() >= SEED_SAMPLE for each in written["top_samples"])
    summary = json.loads(summary_of(top, chosen).model_dump_json())
    assert summary.keys() >= SEED_SUMMARY
    expected = {"feature_idx", "max_activation", "num_samples"}
    assert summary["top_features_by_activation"][0].keys() == expected
