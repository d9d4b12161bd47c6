"""The table over queries against plain loops over what was read."""

from collections import Counter

import numpy as np
import pytest

from actcli.analysis.qk_pairs import QkAsk, QkReader
from actcli.analysis.qk_table import QkTable
from tests.analysis import slow_qk

TOKENS = [5, 6, 5, 6, 6, 9, 5]


@pytest.fixture(scope="module")
def readings():
    found = []
    for seed in (0, 1):
        text = slow_qk.make_text(seed=seed)
        q, k = slow_qk.make_factors(text.layer.q, 4), slow_qk.make_factors(text.layer.k, 3, seed=2)
        reader = QkReader(text, q, k, QkAsk(top_n=5), sample=seed)
        found += [reader.read(query) for query in range(7)]
    return found


def _table(readings):
    table = QkTable()
    for pairs in readings:
        table.add(pairs, TOKENS)
    return table


def test_rows_are_means_over_the_queries_of_a_pair(readings):
    rows = _table(readings).rows()
    assert sum(row.count for row in rows) == 5 * 14
    for row in rows:
        seen = [
            (pairs, place)
            for pairs in readings
            for place in range(5)
            if pairs.names(place) == (row.q, row.k)
        ]
        peaks = [float(pairs.peak[place]) for pairs, place in seen]
        series = [pairs.top_contrib[:, place] for pairs, place in seen]
        tokens = Counter(TOKENS[pairs.peak_key[place]] for pairs, place in seen)
        heads = [[head_P[np.abs(head_P).argmax()] for head_P in each] for each in series]
        assert row.count == len(seen)
        assert row.share == pytest.approx(len(seen) / 14)
        assert row.mean_peak == pytest.approx(np.mean(peaks))
        assert row.mean_contribution == pytest.approx(np.mean([each.mean() for each in series]))
        assert abs(row.largest_peak) == np.abs(peaks).max()
        assert row.sign_consistency == pytest.approx(abs(np.mean(np.sign(peaks))))
        assert row.head_means == pytest.approx(np.mean(heads, axis=0).tolist(), rel=1e-5)
        assert tokens[row.peak_token_id] == max(tokens.values())
        assert row.peak_token_share == pytest.approx(max(tokens.values()) / len(seen))
    order = [(-row.count, -abs(row.mean_peak)) for row in rows]
    assert order == sorted(order)


def test_merging_parts_is_the_whole(readings):
    first, second = _table(readings[:4]), _table(readings[4:])
    first.merge(second)
    whole = _table(readings)
    assert [
        row.model_dump(exclude={"mean_peak", "mean_contribution", "head_means"})
        for row in first.rows()
    ] == [
        row.model_dump(exclude={"mean_peak", "mean_contribution", "head_means"})
        for row in whole.rows()
    ]
    for one, two in zip(first.rows(), whole.rows(), strict=True):
        assert one.mean_peak == pytest.approx(two.mean_peak)
        assert one.head_means == pytest.approx(two.head_means)
    assert whole.rows(most=2) == whole.rows()[:2]


def test_without_tokens_none_is_named(readings):
    table = QkTable()
    table.add(readings[3])
    assert {row.peak_token_id for row in table.rows()} == {None}
    assert {row.share for row in table.rows()} == {1.0}
