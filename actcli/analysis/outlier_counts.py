"""Count outliers chunk by chunk; counts of different chunks add up.

Axis letters: N samples, L layers, T tokens, H hidden dimensions, P the outliers of a chunk in
row-major order.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.float_codes import Codes, FloatFormat, Mask
from actcli.analysis.order_statistics import BracketCounts
from actcli.analysis.outlier_rule import Rule, Scratch, find_outliers

Counts = NDArray[np.int64]

BIN_BITS = 4
"""Bins of the magnitude histogram for each doubling: 2 to this power."""

_FEW = 32  # with fewer outliers than one in that many it pays to handle them one by one
_MOST_ROWS = 255  # that a sum of ones in eight bits can hold


@dataclass
class OutlierCounts:
    """Everything that is counted in one pass."""

    fmt: FloatFormat
    rule: Rule
    signed: BracketCounts | None
    """For the quartiles of all elements; None if they are not wanted."""

    kept: BracketCounts
    """For the quartiles of the outliers' magnitudes."""

    layer_dims_LH: Counts
    negative_dims_H: Counts
    positive_dims_H: Counts
    tokens_T: Counts
    first_layers_L: Counts
    magnitude_bins: Counts
    """Outliers by the first bits of their magnitude code."""

    element_hits: int = 0
    n_locations: int = 0
    nan_count: int = 0
    negative_nan_count: int = 0
    """Those of the NaNs whose sign bit is set: in the order of keys they come first."""

    positive_infinities: int = 0
    negative_infinities: int = 0
    smallest: int | None = None
    """Magnitude code of the smallest outlier."""

    largest: int | None = None

    @classmethod
    def start(
        cls,
        shape_LTH: tuple[int, int, int],
        fmt: FloatFormat,
        rule: Rule,
        *,
        signed: BracketCounts | None,
        kept: BracketCounts,
    ) -> Self:
        """Return counts of nothing yet, for chunks of a tensor with these axes."""
        n_layers, n_tokens, n_dims = shape_LTH
        bins = (fmt.infinity >> (fmt.fraction_width - BIN_BITS)) + 1
        return cls(
            fmt,
            rule,
            signed,
            kept,
            layer_dims_LH=np.zeros((n_layers, n_dims), np.int64),
            negative_dims_H=np.zeros(n_dims, np.int64),
            positive_dims_H=np.zeros(n_dims, np.int64),
            tokens_T=np.zeros(n_tokens, np.int64),
            first_layers_L=np.zeros(n_layers, np.int64),
            magnitude_bins=np.zeros(bins, np.int64),
        )

    @property
    def n_kept(self) -> int:
        """The number of outliers."""
        return int(self.magnitude_bins.sum())

    def update(self, codes_NLTH: Codes, scratch: Scratch, *, tokens: range | Counts) -> None:
        """Count a chunk of whole locations: all layers of each.

        Args:
            codes_NLTH: the chunk.
            scratch: arrays to work in.
            tokens: places on the token axis: those of every row, or, for rows of a single token,
                the one of each row.
        """
        found = find_outliers(codes_NLTH, self.fmt, self.rule, scratch)
        self.element_hits += found.element_hits
        self.n_locations += found.n_locations
        if found.has_special:
            self._count_special(codes_NLTH)
        places_P = found.kept_NLTH.reshape(-1).nonzero()[0]
        if 0 < places_P.size < found.kept_NLTH.size // _FEW or self.rule.threshold < 0:
            self._count_few(codes_NLTH, places_P, tokens, scratch)
        elif places_P.size:
            self._count_many(codes_NLTH, found.kept_NLTH, tokens, scratch)
        if places_P.size:
            self._count_magnitudes(found.magnitudes_NLTH.reshape(-1)[places_P])
        if self.signed is not None:
            self.signed.update(codes_NLTH.reshape(-1))

    def merge(self, other: "OutlierCounts") -> None:
        """Add what was counted in other chunks of the same tensor."""
        assert (self.rule, self.fmt) == (other.rule, other.fmt)
        for name in _ADDED_ARRAYS:
            getattr(self, name)[...] += getattr(other, name)
        for name in _ADDED_NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._widen(other.smallest, other.largest)
        self.kept.merge(other.kept)
        if self.signed is not None and other.signed is not None:
            self.signed.merge(other.signed)

    def _count_special(self, codes_NLTH: Codes) -> None:
        codes = codes_NLTH.reshape(-1)
        magnitudes = codes & self.fmt.codes.type(self.fmt.sign - 1)
        special = codes[magnitudes >= self.fmt.codes.type(self.fmt.infinity)]
        infinity = self.fmt.infinity
        n_negative = int(np.count_nonzero(special >= self.fmt.codes.type(self.fmt.sign)))
        negative = int(np.count_nonzero(special == infinity | self.fmt.sign))
        positive = int(np.count_nonzero(special == infinity))
        self.nan_count += special.size - negative - positive
        self.negative_nan_count += n_negative - negative
        self.negative_infinities += negative
        self.positive_infinities += positive

    def _count_few(
        self, codes_NLTH: Codes, places_P: Counts, tokens: range | Counts, scratch: Scratch
    ) -> None:
        """Count by dimension, layer and token, outlier by outlier."""
        n_rows, n_layers, n_tokens, n_dims = codes_NLTH.shape
        line_P = places_P // n_dims
        dim_P = places_P - line_P * n_dims
        plane_P = line_P // n_tokens
        row_P = plane_P // n_layers
        layer_P = plane_P - row_P * n_layers
        pairs = np.bincount(layer_P * n_dims + dim_P, minlength=n_layers * n_dims)
        self.layer_dims_LH += pairs.reshape(n_layers, n_dims)
        if isinstance(tokens, range):
            sums = np.bincount(line_P - plane_P * n_tokens, minlength=n_tokens)
            self.tokens_T[tokens.start : tokens.stop] += sums
        else:
            self.tokens_T += np.bincount(tokens[row_P], minlength=self.tokens_T.size)
        self._count_signs(codes_NLTH.reshape(-1)[places_P], dim_P)
        location_P = places_P + (row_P - plane_P) * (n_tokens * n_dims)
        first = scratch.take("first", (n_rows * n_tokens * n_dims,), np.dtype(np.intp))
        first[location_P[::-1]] = layer_P[::-1]  # of several at a location, the first comes last
        firsts = layer_P[first[location_P] == layer_P]
        self.first_layers_L += np.bincount(firsts, minlength=n_layers)

    def _count_signs(self, codes_P: Codes, dim_P: Counts) -> None:
        """Count x < -t and x > t by dimension; with t below zero both can be true."""
        if self.rule.threshold >= 0:
            is_negative_P = codes_P >= self.fmt.codes.type(self.fmt.sign)
            is_positive_P = ~is_negative_P
        else:
            values_P = self.fmt.values(codes_P)
            is_negative_P = values_P < -self.rule.threshold
            is_positive_P = values_P > self.rule.threshold
        n_dims = self.negative_dims_H.size
        self.negative_dims_H += np.bincount(dim_P[is_negative_P], minlength=n_dims)
        self.positive_dims_H += np.bincount(dim_P[is_positive_P], minlength=n_dims)

    def _count_many(
        self, codes_NLTH: Codes, kept_NLTH: Mask, tokens: range | Counts, scratch: Scratch
    ) -> None:
        """Count the same by adding up whole rows of the mask, for thresholds from 0 on."""
        n_rows, n_layers, n_tokens, n_dims = kept_NLTH.shape
        for layer in range(n_layers):
            self.layer_dims_LH[layer] += _add_rows(kept_NLTH[:, layer].reshape(-1, n_dims))
        sums = _add_rows(kept_NLTH.reshape(n_rows * n_layers, n_tokens * n_dims))
        sums_TH = sums.reshape(n_tokens, n_dims)
        if isinstance(tokens, range):
            self.tokens_T[tokens.start : tokens.stop] += sums_TH.sum(axis=1)
        else:
            sums_N = np.count_nonzero(kept_NLTH.reshape(n_rows, -1), axis=1)
            np.add.at(self.tokens_T, tokens, sums_N)
        negative_NLTH = scratch.take("negative", kept_NLTH.shape, np.dtype(bool))
        np.greater_equal(codes_NLTH, self.fmt.codes.type(self.fmt.sign), out=negative_NLTH)
        negative_NLTH &= kept_NLTH
        negative_H = _add_rows(negative_NLTH.reshape(-1, n_dims))
        self.negative_dims_H += negative_H
        self.positive_dims_H += sums_TH.sum(axis=0) - negative_H
        self._count_first_layers(kept_NLTH, scratch)

    def _count_first_layers(self, kept_NLTH: Mask, scratch: Scratch) -> None:
        n_rows, n_layers, n_tokens, n_dims = kept_NLTH.shape
        seen_NTH = scratch.take("seen", (n_rows, n_tokens, n_dims), np.dtype(bool))
        seen_NTH[:] = False
        n_before = 0
        for layer in range(n_layers):
            seen_NTH |= kept_NLTH[:, layer]
            n_seen = int(np.count_nonzero(seen_NTH))
            self.first_layers_L[layer] += n_seen - n_before
            n_before = n_seen

    def _count_magnitudes(self, magnitudes_P: Codes) -> None:
        shift = self.fmt.codes.type(self.fmt.fraction_width - BIN_BITS)
        bins_P = (magnitudes_P >> shift).astype(np.intp)
        self.magnitude_bins += np.bincount(bins_P, minlength=self.magnitude_bins.size)
        self._widen(int(magnitudes_P.min()), int(magnitudes_P.max()))
        self.kept.update(magnitudes_P)

    def _widen(self, smallest: int | None, largest: int | None) -> None:
        lows = [each for each in (self.smallest, smallest) if each is not None]
        highs = [each for each in (self.largest, largest) if each is not None]
        self.smallest, self.largest = min(lows, default=None), max(highs, default=None)


_ADDED_ARRAYS = (
    "layer_dims_LH",
    "negative_dims_H",
    "positive_dims_H",
    "tokens_T",
    "first_layers_L",
    "magnitude_bins",
)
_ADDED_NUMBERS = (
    "element_hits",
    "n_locations",
    "nan_count",
    "negative_nan_count",
    "positive_infinities",
    "negative_infinities",
)


def _add_rows(mask_RH: Mask) -> Counts:
    """Return how many rows are true in each column."""
    sums_H = np.zeros(mask_RH.shape[1], np.int64)
    for start in range(0, len(mask_RH), _MOST_ROWS):
        rows = mask_RH[start : start + _MOST_ROWS].view(np.uint8)
        sums_H += np.add.reduce(rows, axis=0, dtype=np.uint8)
    return sums_H
