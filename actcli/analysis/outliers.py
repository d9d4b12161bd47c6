"""Outliers of a dump's activations, from one streamed pass over chunks of samples.

Start at `count_outliers`; what counts as an outlier is defined in `outlier_rule`. Memory is that
of a few chunks, of the counts, and of at most 64 MiB for each set of exact quartiles. The answer
does not depend on how the chunks are cut, nor on the number of threads.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from actcli.analysis.activation_chunks import CHUNK_ELEMENTS, ActivationChunks
from actcli.analysis.float_codes import Codes
from actcli.analysis.order_statistics import (
    MOST_KEPT_BYTES,
    BracketCounts,
    brackets_from_samples,
    whole_range,
)
from actcli.analysis.outlier_counts import BIN_BITS, OutlierCounts
from actcli.analysis.outlier_rule import Rule, Scratch, find_outliers
from actcli.analysis.outlier_statistics import (
    EXACT,
    QUARTERS,
    Sampling,
    magnitude_fields,
    quartile_fields,
)
from actcli.analysis.token_mask import TokenMask
from actcli.reports.base import Histogram
from actcli.reports.outliers import OutlierReport
from actcli.store.reader import StoredTensor

_MOST_THREADS = 4
_SAMPLE_ELEMENTS = 1 << 19
_FEWEST_PLACES = 16
_AHEAD = 8  # chunks that the disk is told of before they are read


@dataclass(frozen=True)
class Work:
    """How to go through the tensor; none of it changes the answer."""

    chunk_elements: int = CHUNK_ELEMENTS
    """Elements of a chunk, about."""

    n_threads: int | None = None
    """Threads; by default one per processor, up to 4."""

    advance: Callable[[int], None] = lambda _n_samples: None
    """Told, as the work goes on, how many more samples are done."""


def count_outliers(
    tensor: StoredTensor,
    *,
    threshold: float = 6.0,
    min_layer_fraction: float | None = 0.25,
    layers: Sequence[int] | None = None,
    mask: StoredTensor | None = None,
    layer_names: Sequence[int] | None = None,
    token_names: Sequence[int] | None = None,
    sampling: Sampling = EXACT,
    work: Work = Work(),
    source: str = "",
) -> OutlierReport:
    """Count the outliers of activations (N, L, T, H) or (N, T, H).

    Args:
        tensor: of any float dtype; `store.reader.in_memory` makes one of an array.
        threshold: t in the definitions of `outlier_rule`.
        min_layer_fraction: fraction of layers that must be hits at a location; None for no rule.
        layers: indices on the layer axis, rising; all by default.
        mask: (N, T), 0 at padding: then only the other places count, for every statistic.
        layer_names: the model's number of each layer on the axis, for the report.
        token_names: the model's position of each token on the axis, for the report.
        sampling: estimates in place of exact quartiles.
        work: how to go through the tensor.
        source: the dump's name, for the report.

    Raises:
        DumpError: the tensor is of another shape or not of floats, the mask does not fit it, or its
            file ends too early.
    """
    acts = ActivationChunks(tensor, layers, mask=None if mask is None else TokenMask(mask))
    counts = _count(acts, Rule(threshold, min_layer_fraction), sampling, work)
    return OutlierReport(
        input=source,
        key=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        size_mib=acts.size * tensor.info.itemsize / 2**20,
        threshold=threshold,
        min_layer_fraction=min_layer_fraction,
        layers=acts.layer_names(layer_names),
        tokens=tuple(range(acts.shape[2]) if token_names is None else token_names),
        masked_positions=acts.n_masked,
        sampling_seed=None if sampling == Sampling(seed=sampling.seed) else sampling.seed,
        **_counted(acts, counts),
        **magnitude_fields(acts, counts, sampling),
        **quartile_fields(acts, counts, sampling),
    )


def _count(acts: ActivationChunks, rule: Rule, sampling: Sampling, work: Work) -> OutlierCounts:
    """Run through all chunks, on several threads, and add up what they counted."""
    start = _planned_counts(acts, rule, wants_signed=sampling.elements is None)
    total = start()
    if not acts.size:
        return total
    chunks = acts.plan(work.chunk_elements)
    waiting = deque(range(len(chunks)))
    width = acts.width(chunks)
    n_threads = work.n_threads or min(os.cpu_count() or 1, _MOST_THREADS)

    def count_some() -> OutlierCounts:
        counts, scratch, buffer = start(), Scratch(), np.empty(width, acts.format.codes)
        for index in _taken_from(waiting):
            chunk = chunks[index]
            codes_NLTH, places = acts.read(chunk, buffer)
            tokens = chunk.tokens if places is None else places[1]
            counts.update(codes_NLTH, scratch, tokens=tokens)
            acts.forget(chunk)
            acts.expect(chunks[index + _AHEAD : index + _AHEAD + 1])
            work.advance(len(chunk.rows) if chunk.tokens.stop == acts.shape[2] else 0)
        return counts

    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for part in [pool.submit(count_some) for _ in range(n_threads)]:
                total.merge(part.result())
        finally:
            waiting.clear()  # so that an interrupt ends the other threads too
    return total


def _taken_from(waiting: deque[int]) -> Iterator[int]:
    while True:
        try:
            yield waiting.popleft()
        except IndexError:
            return


def _planned_counts(
    acts: ActivationChunks, rule: Rule, *, wants_signed: bool
) -> Callable[[], OutlierCounts]:
    """Return what makes empty counts, their brackets chosen from a look at a few places."""
    fmt, everything = acts.format, whole_range(acts.format)
    signed = kept = everything
    if acts.size > _SAMPLE_ELEMENTS * 8:
        all_codes, outliers = _sample(acts, rule)
        signed = brackets_from_samples(fmt, all_codes, QUARTERS) if wants_signed else everything
        share = sum(each.size for each in outliers) / sum(each.size for each in all_codes)
        if 1.5 * share * acts.size * fmt.codes.itemsize > MOST_KEPT_BYTES:
            kept = brackets_from_samples(fmt, outliers, QUARTERS)

    def start() -> OutlierCounts:
        return OutlierCounts.start(
            acts.shape[1:],
            fmt,
            rule,
            signed=BracketCounts(fmt, signed) if wants_signed else None,
            kept=BracketCounts(fmt, kept),
        )

    return start


def _sample(acts: ActivationChunks, rule: Rule) -> tuple[list[Codes], list[Codes]]:
    """Return all codes, and the outliers' magnitude codes, of some places."""
    places = max(_FEWEST_PLACES, _SAMPLE_ELEMENTS // (acts.shape[1] * acts.shape[3]))
    chunks, scratch = acts.sample_places(places), Scratch()
    acts.expect(chunks)
    all_codes, outliers = [], []
    for codes_NLTH, _places in acts.walk(chunks):
        all_codes.append(codes_NLTH.reshape(-1).copy())
        outliers.append(find_outliers(codes_NLTH, acts.format, rule, scratch).magnitudes())
    return all_codes, outliers


def _counted(acts: ActivationChunks, counts: OutlierCounts) -> dict[str, Any]:
    """The fields of the report that are plain counts, and their ratios."""
    _n, n_layers, _n_tokens, n_dims = acts.shape
    n_kept, n_locations = counts.n_kept, acts.n_places * n_dims
    has_rule = counts.rule.min_layer_fraction is not None
    kept_hits = counts.n_locations * n_layers if has_rule else 0
    return {
        "total_elements": acts.size,
        "nan_count": counts.nan_count,
        "positive_infinity_count": counts.positive_infinities,
        "negative_infinity_count": counts.negative_infinities,
        "element_hits": counts.element_hits,
        "outlier_occurrences": n_kept,
        "outlier_occurrence_rate": _ratio(n_kept, acts.size),
        "location_total": n_locations,
        "location_outliers": counts.n_locations if has_rule else None,
        "location_rate": _ratio(counts.n_locations, n_locations) if has_rule else None,
        "mean_layer_hit": _ratio(n_kept, kept_hits),
        "dim_counts": counts.layer_dims_LH.sum(axis=0).tolist(),
        "pos_counts": counts.positive_dims_H.tolist(),
        "neg_counts": counts.negative_dims_H.tolist(),
        "layer_counts": counts.layer_dims_LH.sum(axis=1).tolist(),
        "token_counts": counts.tokens_T.tolist(),
        "first_layer_counts": counts.first_layers_L.tolist(),
        "layer_dim_counts": counts.layer_dims_LH.tolist(),
        "magnitude_histogram": _magnitude_histogram(counts),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _magnitude_histogram(counts: OutlierCounts) -> Histogram:
    """Return the bins between the smallest and the largest finite outlier."""
    fmt, bins = counts.fmt, counts.magnitude_bins[:-1]  # the last bin is infinity
    used = np.flatnonzero(bins)
    if not used.size:
        return Histogram(edges=(), counts=())
    first, end = int(used[0]), int(used[-1]) + 1
    codes = np.arange(first, end + 1, dtype=np.uint64) << np.uint64(fmt.fraction_width - BIN_BITS)
    edges = fmt.values(codes.astype(fmt.codes))
    return Histogram(edges=edges.tolist(), counts=bins[first:end].tolist())
