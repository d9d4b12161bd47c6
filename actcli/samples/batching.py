"""Which samples go through a model together: alike in length, under a budget of tokens.

Padding costs as much as real tokens do, so samples of different lengths are sorted before they are
cut into batches; each knows its number, so that rows still land in the user's order.

Axis letters: N samples, B samples of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.samples.source import Rows, SampleSource, as_index


class BatchSize(NamedTuple):
    """How large a batch is for the model."""

    n_samples: int

    n_tokens: int
    """Tokens of the longest of them; the others are padded to it."""


def plan_batches(
    samples: SampleSource, *, batch_size: int | None, batch_tokens: int, in_order: bool = False
) -> list[Rows]:
    """Cut the samples into batches, each sample in one of them.

    Samples of one length stay in their order. Others are sorted by length, longest first, so that a
    lack of memory shows at once; within a batch they stand in their order again.

    Args:
        samples: what the model reads.
        batch_size: samples in a batch, whatever their length; None for a budget of tokens.
        batch_tokens: the most tokens in a batch, padding included; one sample at least.
        in_order: whether batches are of consecutive samples whatever their lengths, for those who
            write results as they come.
    """
    lengths_N, n = samples.lengths, len(samples)
    if lengths_N is None:
        size = batch_size or max(1, batch_tokens // max(1, samples.n_tokens))
        return [range(start, min(start + size, n)) for start in range(0, n, size)]
    if in_order:
        return [*_consecutive(lengths_N, batch_size, batch_tokens)]
    order_N = np.argsort(-lengths_N, kind="stable")
    return [
        _as_rows(np.sort(order_N[start:stop]))
        for start, stop in _cuts(lengths_N[order_N], batch_size, batch_tokens)
    ]


def batch_lengths(samples: SampleSource, rows: Rows) -> NDArray[np.int64] | None:
    """Return the tokens of each sample of a batch, (B,); None where all samples have as many."""
    return None if samples.lengths is None else samples.lengths[as_index(rows)]


def every_length(samples: SampleSource, rows: Rows) -> NDArray[np.int64]:
    """Return the tokens of each sample of a batch, (B,), also where all have as many."""
    lengths_B = batch_lengths(samples, rows)
    if lengths_B is None:
        return np.full(len(rows), samples.n_tokens, dtype=np.int64)
    return lengths_B


def measure_batches(samples: SampleSource, batches: Sequence[Rows]) -> list[BatchSize]:
    """Return how large each batch is."""
    lengths_N = samples.lengths
    if lengths_N is None:
        return [BatchSize(len(rows), samples.n_tokens) for rows in batches]
    return [BatchSize(len(rows), int(lengths_N[as_index(rows)].max())) for rows in batches]


def count_tokens(samples: SampleSource) -> int:
    """Return the number of real tokens of all samples."""
    if samples.lengths is None:
        return len(samples) * samples.n_tokens
    return int(samples.lengths.sum())


def runs(rows: Rows) -> Iterator[tuple[int, slice]]:
    """Go through runs of consecutive numbers: the first one, and where they stand in `rows`."""
    if not len(rows):
        return
    if isinstance(rows, range):
        assert rows.step == 1, rows
        yield rows.start, slice(0, len(rows))
        return
    starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield int(rows[start]), slice(start, stop)


def _cuts(
    sorted_lengths: NDArray[np.int64], batch_size: int | None, batch_tokens: int
) -> Iterator[tuple[int, int]]:
    start, n = 0, len(sorted_lengths)
    while start < n:
        longest = max(1, int(sorted_lengths[start]))
        stop = min(n, start + (batch_size or max(1, batch_tokens // longest)))
        yield start, stop
        start = stop


def _consecutive(
    lengths_N: NDArray[np.int64], batch_size: int | None, batch_tokens: int
) -> Iterator[range]:
    start, longest = 0, 0
    for row, length in enumerate(lengths_N.tolist()):
        count, longest = row - start, max(longest, length)
        is_full = count == batch_size if batch_size else (count + 1) * longest > batch_tokens
        if count and is_full:
            yield range(start, row)
            start, longest = row, length
    yield range(start, len(lengths_N))


def _as_rows(rows_B: NDArray[np.int64]) -> Rows:
    first, last = int(rows_B[0]), int(rows_B[-1])
    return range(first, last + 1) if last - first + 1 == len(rows_B) else rows_B
