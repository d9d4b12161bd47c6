"""Batches hold every sample once, keep to the budget, and waste little on padding."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.samples.batching import (
    BatchSize,
    count_tokens,
    measure_batches,
    plan_batches,
    runs,
)


class Lengths:
    """As much of a source as batching looks at."""

    def __init__(self, lengths, n_tokens=None):
        self.n = len(lengths) if n_tokens is None else lengths
        self.lengths = np.array(lengths, dtype=np.int64) if n_tokens is None else None
        self.n_tokens = max(lengths) if n_tokens is None else n_tokens

    def __len__(self):
        return self.n


MANY_LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=50)


@given(MANY_LENGTHS, st.integers(1, 200))
def test_every_sample_is_in_one_batch_within_the_budget(lengths, budget):
    batches = plan_batches(Lengths(lengths), batch_size=None, batch_tokens=budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, width in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * width <= budget
        assert list(batch) == sorted(batch)
    for batch, after in pairwise(batches):
        assert min(lengths[row] for row in batch) >= max(lengths[row] for row in after)
        width = max(lengths[row] for row in batch)
        assert (len(batch) + 1) * width > budget, "one more would have fitted"


@given(MANY_LENGTHS, st.integers(1, 9))
def test_a_given_size_is_kept_whatever_the_lengths(lengths, size):
    batches = plan_batches(Lengths(lengths), batch_size=size, batch_tokens=1)
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches) == -(-len(lengths) // size)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 100))
def test_samples_of_one_length_stay_in_their_order(n, n_tokens, budget):
    source = Lengths(n, n_tokens)
    batches = plan_batches(source, batch_size=None, batch_tokens=budget)
    assert all(isinstance(batch, range) for batch in batches)
    assert [row for batch in batches for row in batch] == list(range(n))
    assert {len(batch) for batch in batches[:-1]} <= {max(1, budget // n_tokens)}
    fixed = plan_batches(source, batch_size=7, batch_tokens=budget)
    assert [len(batch) for batch in fixed] == [7] * (n // 7) + [n % 7] * bool(n % 7)
    assert count_tokens(source) == n * n_tokens


def test_neighbours_are_a_range():
    batches = plan_batches(Lengths([3, 3, 3, 9, 9, 2]), batch_size=None, batch_tokens=18)
    assert batches[0] == range(3, 5)
    assert [list(each) for each in batches[1:]] == [[0, 1, 2, 5]]
    source = Lengths([3, 3, 3, 9, 9, 2])
    assert measure_batches(source, batches) == [BatchSize(2, 9), BatchSize(4, 3)]
    assert count_tokens(source) == 29


@given(st.lists(st.integers(0, 30), unique=True, max_size=20))
def test_runs_cover_the_rows(numbers):
    rows = np.array(numbers, dtype=np.int64)
    found = [
        (first + offset, int(rows[places][offset]))
        for first, places in runs(rows)
        for offset in range(places.stop - places.start)
    ]
    assert [a for a, _b in found] == [b for _a, b in found] == numbers


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (range(3, 6), [(3, slice(0, 3))]),
        (range(0), []),
        (np.array([4, 5, 9, 2]), [(4, slice(0, 2)), (9, slice(2, 3)), (2, slice(3, 4))]),
    ],
)
def test_runs(rows, expected):
    assert list(runs(rows)) == expected
