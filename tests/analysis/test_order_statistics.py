"""Order statistics, in every way that they are found, against sorting."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcli.analysis import order_statistics
from actcli.analysis.float_codes import FORMATS
from actcli.analysis.order_statistics import (
    Bracket,
    BracketCounts,
    brackets_from_samples,
    interpolate,
    quantile_ranks,
    radix_select,
    whole_range,
)

QUARTERS = (0.25, 0.5, 0.75)


@st.composite
def formats_and_codes(draw):
    fmt = draw(st.sampled_from(list(FORMATS.values())))
    some = draw(st.lists(st.integers(0, 2 * fmt.sign - 1), min_size=1, max_size=6))
    code = st.integers(0, 2 * fmt.sign - 1) | st.sampled_from(some)  # the latter for ties
    return fmt, np.array(draw(st.lists(code, min_size=1, max_size=80)), fmt.codes)


def bracket_lists(fmt):
    bounds = st.lists(st.integers(0, 2 * fmt.sign), min_size=2, max_size=6, unique=True).map(sorted)
    return bounds.map(
        lambda each: tuple(Bracket(*pair) for pair in zip(each[::2], each[1::2], strict=False))
    )


@given(data=st.data(), given_codes=formats_and_codes())
def test_what_brackets_find_is_right(data, given_codes):
    fmt, codes = given_codes
    keys = np.sort(fmt.keys(codes)).tolist()
    brackets = data.draw(bracket_lists(fmt) | st.just(whole_range(fmt)))
    single = Bracket(keys[len(keys) // 2], keys[len(keys) // 2] + 1)
    if data.draw(st.booleans()) and all(
        each.end <= single.first or single.end <= each.first for each in brackets
    ):
        brackets = tuple(sorted([*brackets, single], key=lambda each: each.first))
    cuts = sorted(data.draw(st.lists(st.integers(0, codes.size), max_size=3)))
    parts = [BracketCounts(fmt, brackets) for _ in range(2)]
    for index, chunk in enumerate(np.split(codes, cuts)):
        parts[index % 2].update(chunk)
    parts[0].merge(parts[1])
    for rank, key in enumerate(keys):
        inside = any(each.first <= key < each.end for each in brackets)
        assert parts[0].select([rank]) == ({rank: key} if inside else None)
    if brackets == whole_range(fmt):
        assert parts[0].select(range(len(keys))) == dict(enumerate(keys))


@given(given_codes=formats_and_codes())
def test_radix_select(given_codes):
    fmt, codes = given_codes
    keys = np.sort(fmt.keys(codes)).tolist()
    found = radix_select(fmt, lambda: np.array_split(codes, 3), range(len(keys)))
    assert found == dict(enumerate(keys))


def test_more_than_may_be_kept_is_noticed(monkeypatch):
    monkeypatch.setattr(order_statistics, "MOST_KEPT_BYTES", 399)
    fmt = FORMATS["F32"]
    codes = np.arange(100, dtype=np.uint32)
    counts = [BracketCounts(fmt, whole_range(fmt)) for _ in range(2)]
    counts[0].update(codes[:99])
    assert counts[0].select([5]) is not None
    counts[1].update(codes[99:])
    counts[0].merge(counts[1])
    assert counts[0].overflowed
    assert counts[0].select([5]) is None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", ["normal", "ties", "constant", "wide"])
def test_brackets_from_samples_hold_the_quartiles(name, shape):
    fmt, rng = FORMATS[name], np.random.default_rng(5)
    values = {
        "normal": rng.standard_normal((400, 1000)),
        "ties": np.maximum(rng.standard_normal((400, 1000)), 0),
        "constant": np.full((400, 1000), 3.0),
        "wide": rng.standard_normal((400, 1000)) * rng.lognormal(size=(400, 1)),
    }[shape]
    codes = codes_of(values, fmt)
    brackets = brackets_from_samples(fmt, list(codes[::7]), QUARTERS)
    counts = BracketCounts(fmt, brackets)
    for row in codes:
        counts.update(row)
    ranks = [rank for each in QUARTERS for rank in quantile_ranks(codes.size, each)]
    keys = np.sort(fmt.keys(codes.reshape(-1)))
    assert counts.select(ranks) == {rank: int(keys[rank]) for rank in ranks}
    if shape == "normal" and name in ("F32", "F64"):
        assert sum(each.size for each in counts.kept) < codes.size / 10
    if shape == "constant":
        assert counts.kept == []


def test_brackets_from_samples_leave_nans_out():
    fmt = FORMATS["F32"]
    values = np.random.default_rng(0).standard_normal((50, 1000))
    values[:, :600] = np.nan
    codes = codes_of(values, fmt)
    (bracket,) = brackets_from_samples(fmt, list(codes), (0.5,))
    low, high = fmt.value_of_key(bracket.first), fmt.value_of_key(bracket.end)
    assert low < np.nanmedian(values) < high
    assert high - low < 0.2


def test_no_samples_give_the_whole_range():
    fmt = FORMATS["F32"]
    nan = np.full(3, np.nan, np.float32).view(np.uint32)
    for samples in ([], [np.empty(0, np.uint32)], [nan]):
        assert brackets_from_samples(fmt, samples, QUARTERS) == whole_range(fmt)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30).map(sorted), st.floats(0, 1))
def test_interpolation_is_that_of_numpy(values, fraction):
    n = len(values)
    ordered = {rank: values[rank] for rank in quantile_ranks(n, fraction)}
    expected = np.quantile(values, fraction)
    tolerance = 1e-9 * (abs(values[0]) + abs(values[-1]))
    assert math.isclose(interpolate(n, fraction, ordered), expected, abs_tol=tolerance)


@pytest.mark.parametrize("infinity", [-math.inf, math.inf])
@pytest.mark.parametrize("fraction", QUARTERS)
def test_interpolation_beside_an_infinity(infinity, fraction):
    for n_finite, n_infinite in itertools.product(range(7), range(1, 7)):
        values = sorted([*range(n_finite), *[infinity] * n_infinite])
        place = (len(values) - 1) * fraction
        between = values[int(place)], values[math.ceil(place)]
        ordered = {rank: values[rank] for rank in quantile_ranks(len(values), fraction)}
        found = interpolate(len(values), fraction, ordered)
        if infinity in between and (place % 1 or between[0] == infinity):
            assert found == infinity
        else:
            assert found == np.interp(place % 1, [0, 1], between)


def test_between_both_infinities_there_is_no_number():
    assert math.isnan(interpolate(2, 0.5, {0: -math.inf, 1: math.inf}))


def codes_of(values, fmt):
    if fmt.name == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.ascontiguousarray(values.astype(f"f{fmt.width // 8}")).view(fmt.codes)
