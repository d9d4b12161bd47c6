"""Floating-point numbers as their bit patterns, which integer instructions compare exactly.

A code is the pattern as an unsigned integer: sign, exponent, fraction. The codes of non-negative
numbers rise with the number, infinity ends them, and NaNs come after it. A key is a code turned so
that keys rise with the number from -infinity to +infinity over both signs:

    key = code + sign bit if the number is not negative, else all bits of the code flipped

Then -0 comes just before +0, NaNs with the sign bit before -infinity, other NaNs after +infinity.
"""

from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.unsignedinteger[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class FloatFormat:
    """How the floats of a stored dtype are laid out in their bits."""

    name: str
    """The dtype in the words of the safetensors format."""

    width: int
    """Bits of a number."""

    fraction_width: int
    """Bits of its fraction."""

    @property
    def codes(self) -> np.dtype[Any]:
        """The numpy dtype that holds codes and keys."""
        return np.dtype(f"u{self.width // 8}")

    @property
    def sign(self) -> int:
        """The bit that is set in the codes of negative numbers."""
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        """The code of +infinity; greater magnitudes are NaN."""
        return (self.sign - 1) >> self.fraction_width << self.fraction_width

    def values(self, codes: Codes) -> NDArray[np.float64]:
        """Return the numbers that the codes stand for; every format fits into float64."""
        if self.name == "BF16":
            codes = codes.astype(np.uint32) << np.uint32(16)
        with np.errstate(invalid="ignore"):  # some NaNs make the processor complain
            return codes.view(f"f{codes.itemsize}").astype(np.float64)

    def first_code_above(self, threshold: float) -> int:
        """Return the smallest magnitude code whose number is greater than a threshold, exactly.

        The threshold is rounded down to the format, so x > threshold if and only if the code of x
        is at least that of the next number. 0 if the threshold is negative: all are greater.
        """
        assert not isnan(threshold), "the threshold is not a number"
        if threshold < 0:
            return 0
        narrow = "F32" if self.name == "BF16" else self.name
        dtype = np.dtype(f"f{FORMATS[narrow].width // 8}")
        with np.errstate(over="ignore"):
            nearest = np.array(threshold + 0.0).astype(dtype)
        code = int(nearest.view(FORMATS[narrow].codes))
        if nearest.astype(np.float64) > threshold:
            code -= 1
        return (code >> (FORMATS[narrow].width - self.width)) + 1

    def key(self, code: int) -> int:
        """Return the key of a code."""
        return ~code & (2 * self.sign - 1) if code & self.sign else code | self.sign

    def keys(self, codes: Codes) -> Codes:
        """Return the keys of codes."""
        signed = codes.view(f"i{codes.itemsize}")
        flip = (signed >> (self.width - 1)).view(codes.dtype) | codes.dtype.type(self.sign)
        return codes ^ flip

    def value_of_key(self, key: int) -> float:
        """Return the number that a key stands for."""
        code = key ^ self.sign if key & self.sign else ~key & (2 * self.sign - 1)
        return float(self.values(np.array([code], self.codes))[0])

    def below(self, codes: Codes, key: int, *, out: Mask) -> Mask:
        """Tell which codes have a key below `key`: one comparison, whatever the signs."""
        if key >= 2 * self.sign:
            out[:] = True
        elif key & self.sign:  # a non-negative number: all codes with the sign bit are below it
            signed = codes.view(f"i{codes.itemsize}")
            np.less(signed, signed.dtype.type(key ^ self.sign), out=out)
        else:
            np.greater(codes, codes.dtype.type(2 * self.sign - 1 - key), out=out)
        return out


FORMATS = {
    each.name: each
    for each in (
        FloatFormat("F64", 64, 52),
        FloatFormat("F32", 32, 23),
        FloatFormat("BF16", 16, 7),
        FloatFormat("F16", 16, 10),
    )
}
