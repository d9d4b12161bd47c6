"""Quartiles of all activations and of the outliers' magnitudes, from the counts of one pass.

Where the pass could not hold what it needed, the activations are read again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.activation_chunks import ActivationChunks, Chunk, Places
from actcli.analysis.float_codes import Codes, FloatFormat
from actcli.analysis.order_statistics import (
    BracketCounts,
    Replay,
    interpolate,
    quantile_ranks,
    radix_select,
)
from actcli.analysis.outlier_counts import OutlierCounts
from actcli.analysis.outlier_rule import Rule, Scratch, find_outliers
from actcli.analysis.torch_draws import draw_like_torch
from actcli.reports.outliers import MagnitudeStats, Quartiles

QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Sampling:
    """Estimates in place of exact quartiles, from samples drawn with replacement."""

    elements: int | None = None
    """Elements to draw for the quartiles of all; None takes all, 0 leaves the quartiles out."""

    outliers: int | None = None
    """Outliers to draw for the magnitude statistics; None or 0 takes all."""

    seed: int = 0
    """Seed of both draws."""


EXACT = Sampling()
"""No estimates."""


def quartile_fields(
    acts: ActivationChunks, counts: OutlierCounts, sampling: Sampling
) -> dict[str, Any]:
    """Return the report's fields on the quartiles of all elements: exact, or of a sample."""
    if counts.signed is not None:
        values = _exact_quartiles(
            counts.signed,
            n=acts.size - counts.nan_count,
            n_before=counts.negative_nan_count,
            replay=lambda: (codes.reshape(-1) for codes, _places in acts.walk(acts.plan())),
        )
        n_used = acts.size - counts.nan_count
    else:
        drawn = _drawn_elements(acts, sampling)
        values, n_used = _quartiles_of(drawn), drawn.size
    stats = None
    if values is not None:
        q1, median, q3 = values
        stats = Quartiles(q1=q1, median=median, q3=q3, iqr=q3 - q1)
    is_exact = counts.signed is not None or n_used == acts.size
    return {"iqr_stats": stats, "iqr_used": n_used, "iqr_exact": is_exact and n_used > 0}


def _drawn_elements(acts: ActivationChunks, sampling: Sampling) -> NDArray[np.float64]:
    """Return the sampled elements that are no NaN; all of them if as many are asked for."""
    n = min(sampling.elements or 0, acts.size)
    if n == acts.size:
        places = np.arange(n)
    else:
        places = draw_like_torch(acts.size, count=n, seed=sampling.seed)
    values = acts.format.values(acts.gather(places))
    return values[~np.isnan(values)]


def magnitude_fields(
    acts: ActivationChunks, counts: OutlierCounts, sampling: Sampling
) -> dict[str, Any]:
    """Return the report's fields on the outliers' magnitudes: of all, or of a sample."""
    n_kept, n_drawn = counts.n_kept, sampling.outliers or 0
    if 0 < n_drawn < n_kept:
        drawn = _drawn_magnitudes(acts, counts, sampling)
        stats = _five_numbers(drawn.min(), _quartiles_of(drawn), drawn.max())
        return {"outlier_mag_stats": stats, "outlier_mag_used": n_drawn, "outlier_mag_exact": False}
    quartiles = _exact_quartiles(
        counts.kept, n=n_kept, n_before=0, replay=lambda: _outlier_magnitudes(acts, counts.rule)
    )
    ends = _values(counts.fmt, [counts.smallest or 0, counts.largest or 0])
    stats = _five_numbers(ends[0], quartiles, ends[1])
    return {"outlier_mag_stats": stats, "outlier_mag_used": n_kept, "outlier_mag_exact": True}


def _five_numbers(
    smallest: float, quartiles: Sequence[float] | None, largest: float
) -> MagnitudeStats:
    q1, median, q3 = quartiles or (0.0, 0.0, 0.0)
    return MagnitudeStats(min=smallest, q1=q1, median=median, q3=q3, max=largest)


def _drawn_magnitudes(
    acts: ActivationChunks, counts: OutlierCounts, sampling: Sampling
) -> NDArray[np.float64]:
    """Return magnitudes drawn with replacement from the outliers in row-major order."""
    places = np.sort(
        draw_like_torch(counts.n_kept, count=sampling.outliers or 0, seed=sampling.seed)
    )
    found, n_before = [], 0
    for magnitudes in _outlier_magnitudes(acts, counts.rule):
        start, stop = np.searchsorted(places, [n_before, n_before + magnitudes.size])
        found.append(magnitudes[places[start:stop] - n_before])
        n_before += magnitudes.size
    return acts.format.values(np.concatenate(found))


def _outlier_magnitudes(acts: ActivationChunks, rule: Rule) -> Iterator[Codes]:
    """Go through the outliers once more: magnitude codes in row-major order, samples at a time."""
    scratch, chunks = Scratch(), acts.plan()
    n_tokens = acts.shape[2]
    parts: list[tuple[Codes, NDArray[np.int64]]] = []
    for chunk, piece in zip(chunks, acts.walk(chunks), strict=True):
        found = find_outliers(piece.codes_NLTH, acts.format, rule, scratch)
        places = _places_in_rows(found.kept_NLTH, chunk, piece.places, n_tokens)
        parts.append((found.magnitudes(), places))
        if chunk.tokens.stop == n_tokens:
            codes, places = (np.concatenate(each) for each in zip(*parts, strict=True))
            in_order = len(parts) == 1 and piece.places is None
            yield codes if in_order else codes[np.argsort(places)]
            parts.clear()


def _places_in_rows(
    kept_NLTH: NDArray[np.bool_], chunk: Chunk, real: Places | None, n_tokens: int
) -> NDArray[np.int64]:
    """Return the row-major places of a chunk's outliers among all tokens of its samples."""
    _n, n_layers, _n_tokens, n_dims = kept_NLTH.shape
    if real is not None:  # rows of one token each
        row, layer, _token, dim = kept_NLTH.nonzero()
        planes = (real[0][row] - chunk.rows.start) * n_layers + layer
        of_real: NDArray[np.int64] = (planes * n_tokens + real[1][row]) * n_dims + dim
        return of_real
    rows, inside = np.divmod(kept_NLTH.reshape(-1).nonzero()[0], len(chunk.tokens) * n_dims)
    places: NDArray[np.int64] = rows * (n_tokens * n_dims) + chunk.tokens.start * n_dims + inside
    return places


def _exact_quartiles(
    counts: BracketCounts, *, n: int, n_before: int, replay: Replay
) -> list[float] | None:
    """Return the quartiles of the n numbers after the first `n_before` keys; None if n is 0."""
    if not n:
        return None
    ranks = {rank for each in QUARTERS for rank in quantile_ranks(n, each)}
    moved = [rank + n_before for rank in ranks]
    keys = counts.select(moved) or radix_select(counts.fmt, replay, moved)
    ordered = {rank: counts.fmt.value_of_key(keys[rank + n_before]) for rank in ranks}
    return [interpolate(n, each, ordered) for each in QUARTERS]


def _quartiles_of(values: NDArray[np.float64]) -> list[float] | None:
    if not values.size:
        return None
    ordered = np.sort(values)
    ranks = {rank for each in QUARTERS for rank in quantile_ranks(values.size, each)}
    at = {rank: float(ordered[rank]) for rank in ranks}
    return [interpolate(values.size, each, at) for each in QUARTERS]


def _values(fmt: FloatFormat, codes: Sequence[int]) -> list[float]:
    return [float(each) for each in fmt.values(np.array(codes, fmt.codes))]
