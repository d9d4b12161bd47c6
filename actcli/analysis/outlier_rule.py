"""What an outlier is, and finding those of a chunk.

Definitions, for the activations x of shape (N, L, T, H) and a threshold t:
    hit         x > t or x < -t, compared exactly, whatever the dtype; an infinity is a hit, a NaN
                never is
    location    a (sample, token, dimension) at which at least the asked-for fraction of the layers
                are hits; without that requirement every location counts
    outlier     a hit at a location

Axis letters: N samples, L layers, T tokens, H hidden dimensions, P all places of a chunk.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.float_codes import Codes, FloatFormat, Mask


@dataclass(frozen=True)
class Rule:
    """What makes an activation an outlier."""

    threshold: float
    """t in the definitions above; below zero every number is a hit."""

    min_layer_fraction: float | None
    """The fraction of layers that must be hits at a location; None asks for nothing."""

    def layers_needed(self, n_layers: int) -> int:
        """Return the smallest c with c / n_layers >= min_layer_fraction; 0 without the rule."""
        fraction = self.min_layer_fraction
        if fraction is None:
            return 0
        return next((c for c in range(n_layers + 1) if c / n_layers >= fraction), n_layers + 1)


class Scratch:
    """Arrays that every chunk uses anew, so that they stay in the processor's cache."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of that shape with undefined content."""
        size = int(np.prod(shape))
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, dtype)
        return self._arrays[name][:size].reshape(shape)


def find_outliers(codes_NLTH: Codes, fmt: FloatFormat, rule: Rule, scratch: Scratch) -> "Outliers":
    """Find the outliers of a chunk that holds all layers of each of its locations."""
    magnitudes = scratch.take("magnitudes", codes_NLTH.shape, codes_NLTH.dtype)
    np.bitwise_and(codes_NLTH, fmt.codes.type(fmt.sign - 1), out=magnitudes)
    hit_NLTH = scratch.take("hits", codes_NLTH.shape, np.dtype(bool))
    first = fmt.first_code_above(rule.threshold)
    np.greater_equal(magnitudes, fmt.codes.type(first), out=hit_NLTH)
    has_special = bool(magnitudes.size) and int(magnitudes.max()) >= fmt.infinity
    if has_special:
        hit_NLTH &= magnitudes <= fmt.codes.type(fmt.infinity)
    counts_NTH = _count_layers(hit_NLTH)
    needed = rule.layers_needed(codes_NLTH.shape[1])
    is_location_NTH = counts_NTH >= needed
    element_hits = int(counts_NTH.sum(dtype=np.int64))
    if needed > 1:
        hit_NLTH &= is_location_NTH[:, None]
    n_locations = int(np.count_nonzero(is_location_NTH))
    return Outliers(hit_NLTH, magnitudes, element_hits, n_locations, has_special=has_special)


@dataclass(frozen=True)
class Outliers:
    """The outliers of a chunk; its arrays are scratch, valid until the next chunk."""

    kept_NLTH: Mask
    """Where the outliers are."""

    magnitudes_NLTH: Codes
    """Magnitude codes of all elements of the chunk."""

    element_hits: int
    n_locations: int
    has_special: bool
    """Whether any element is infinite or NaN."""

    def magnitudes(self) -> Codes:
        """Return the magnitude codes of the outliers in row-major order."""
        return self.magnitudes_NLTH.reshape(-1)[self.kept_NLTH.reshape(-1).nonzero()[0]]


def _count_layers(hit_NLTH: Mask) -> NDArray[np.unsignedinteger[Any]]:
    """Count the hits at each location over the layers, (N, T, H)."""
    dtype = np.uint8 if hit_NLTH.shape[1] <= np.iinfo(np.uint8).max else np.uint32
    counts_NTH: NDArray[np.unsignedinteger[Any]] = np.add.reduce(
        hit_NLTH.view(np.uint8), axis=1, dtype=dtype
    )
    return counts_NTH
