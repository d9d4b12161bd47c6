"""Codes and keys against comparisons of the numbers themselves, over all 16-bit codes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.analysis.float_codes import FORMATS

SIXTEEN = ("F16", "BF16")
EVERY_CODE = np.arange(1 << 16, dtype=np.uint16)


def codes_of(fmt, data, size=50):
    bits = data.draw(st.lists(st.integers(0, 2 * fmt.sign - 1), min_size=1, max_size=size))
    return np.array(bits, fmt.codes)


@pytest.mark.parametrize("name", FORMATS)
def test_the_layout(name):
    fmt = FORMATS[name]
    assert fmt.values(np.array([fmt.infinity, fmt.infinity | fmt.sign], fmt.codes)).tolist() == [
        math.inf,
        -math.inf,
    ]
    assert np.isnan(fmt.values(np.array([fmt.infinity + 1], fmt.codes))).all()


@pytest.mark.parametrize("name", SIXTEEN)
def test_values_of_all_codes(name):
    values = FORMATS[name].values(EVERY_CODE)
    if name == "F16":
        expected = EVERY_CODE.view(np.float16).astype(np.float64)
    else:
        import torch

        expected = torch.from_numpy(EVERY_CODE.view(np.int16)).view(torch.bfloat16).double().numpy()
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("name", SIXTEEN)
def test_keys_rise_with_the_numbers(name):
    fmt = FORMATS[name]
    keys = fmt.keys(EVERY_CODE)
    assert len(set(keys.tolist())) == len(keys)
    ordered = fmt.values(EVERY_CODE[np.argsort(keys)])
    numbers = ordered[~np.isnan(ordered)]
    assert (np.diff(numbers[1:-1]) >= 0).all()
    assert (numbers[0], numbers[-1]) == (-math.inf, math.inf)
    n_nan = np.isnan(ordered).sum() // 2
    assert np.isnan(ordered[:n_nan]).all()
    assert np.isnan(ordered[-n_nan:]).all()


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_single_keys_and_back(name, data):
    fmt = FORMATS[name]
    codes = codes_of(fmt, data)
    keys = fmt.keys(codes)
    assert [fmt.key(int(code)) for code in codes] == keys.tolist()
    np.testing.assert_array_equal([fmt.value_of_key(int(key)) for key in keys], fmt.values(codes))


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_below(name, data):
    fmt = FORMATS[name]
    codes = codes_of(fmt, data)
    keys = fmt.keys(codes).tolist()
    some = data.draw(st.integers(0, 2 * fmt.sign))
    for bound in (0, 1, fmt.sign, 2 * fmt.sign - 1, 2 * fmt.sign, some, *keys):
        found = fmt.below(codes, bound, out=np.empty(codes.size, bool))
        assert found.tolist() == [key < bound for key in keys]


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_the_threshold_is_compared_exactly(name, data):
    fmt = FORMATS[name]
    codes = codes_of(fmt, data) & fmt.codes.type(fmt.sign - 1)
    codes = codes[codes <= fmt.codes.type(fmt.infinity)]
    values = fmt.values(codes).tolist()
    near = [value for value in values if math.isfinite(value)]
    threshold = data.draw(st.floats(allow_nan=False) | st.sampled_from([*near, 0.0, 1e300]))
    threshold = math.nextafter(
        threshold, data.draw(st.sampled_from([-math.inf, math.inf, threshold]))
    )
    first = fmt.first_code_above(threshold)
    for code, value in zip(codes.tolist(), values, strict=True):
        exceeds = (
            value > threshold
            if math.inf in (value, abs(threshold))
            else (Fraction(value) > Fraction(threshold))
        )
        assert (code >= first) == exceeds


def test_a_threshold_between_two_numbers_of_the_format():
    bf16 = FORMATS["BF16"]
    first = bf16.first_code_above(6.03)  # between 6.0 and 6.03125
    assert bf16.values(np.array([first - 1, first], np.uint16)).tolist() == [6.0, 6.03125]
