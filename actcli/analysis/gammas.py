"""The gains of a model's norms: how far have they moved from the 1.0 that they start at?"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.activation_chunks import codes_of, float_format
from actcli.reports.base import Histogram
from actcli.reports.gammas import GammaReport, GammaStats
from actcli.store.reader import StoredTensor

N_BINS = 24


def summarise_gammas(
    gammas: Mapping[str, StoredTensor], *, tolerance: float = 0.0, source: str = ""
) -> GammaReport:
    """Describe the gains of norms.

    Args:
        gammas: one tensor of floats for each norm, by the norm's name.
        tolerance: |gamma - 1| up to which an element still counts as 1.
        source: the dump or model they are from, for the report.

    Raises:
        DumpError: a tensor is not of floats.
    """
    values = {name: _values(gammas[name]) for name in sorted(gammas, key=natural_order)}
    edges = _shared_edges(values.values())
    modules = tuple(
        _describe(name, gammas[name], each, tolerance, edges) for name, each in values.items()
    )
    total, ones = sum(each.total for each in modules), sum(each.ones for each in modules)
    return GammaReport(
        source=source,
        tolerance=tolerance,
        modules=modules,
        total=total,
        ones=ones,
        all_ones=0 < total == ones,
    )


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return what sorts numbers in names by their value: blocks.2 before blocks.10."""
    return [
        (int(digits), "") if digits else (-1, text)
        for text, digits in re.findall(r"(\D+)|(\d+)", name)
    ]


def _values(tensor: StoredTensor) -> NDArray[np.float64]:
    fmt = float_format(tensor)
    return fmt.values(codes_of(tensor.read().reshape(-1)))


def _describe(
    name: str,
    tensor: StoredTensor,
    values: NDArray[np.float64],
    tolerance: float,
    edges: NDArray[np.float64],
) -> GammaStats:
    numbers = values[~np.isnan(values)]
    ones = int(np.count_nonzero(np.abs(numbers - 1.0) <= tolerance))
    counts, _edges = np.histogram(numbers[np.isfinite(numbers)], edges)
    return GammaStats(
        module=name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        total=values.size,
        ones=ones,
        ones_share=ones / values.size if values.size else 0.0,
        nan_count=values.size - numbers.size,
        histogram=Histogram(edges=edges.tolist(), counts=counts.tolist()),
        **_moments(numbers),
    )


def _moments(numbers: NDArray[np.float64]) -> dict[str, Any]:
    if not numbers.size:
        return dict.fromkeys(("min", "max", "mean", "std"))
    with np.errstate(invalid="ignore"):  # infinities have no deviation
        return {
            "min": float(numbers.min()),
            "max": float(numbers.max()),
            "mean": float(numbers.mean()),
            "std": float(numbers.std()),
        }


def _shared_edges(values: Any) -> NDArray[np.float64]:
    """Return the edges of bins of equal width over all finite values, and 1 in any case."""
    finite = [each[np.isfinite(each)] for each in values]
    every = np.concatenate([*finite, np.ones(1)])
    low, high = float(every.min()), float(every.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, N_BINS + 1)
