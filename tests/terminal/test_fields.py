import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from actcli.errors import UsageError
from actcli.terminal.fields import CommaSeparated, IntRange, IntRanges


class Model(BaseModel):
    layers: IntRanges | None = None
    names: CommaSeparated[str] = ()


int_ranges = st.lists(
    st.builds(IntRange, st.integers(-99, 99), st.integers(-99, 99)), min_size=1
).map(lambda each: IntRanges(tuple(each)))


def slow_resolve(text, count):
    """Another way to the same: list what each index means, cut the list, keep the first of each."""
    names = {**{str(i): i for i in range(count)}, **{str(i - count): i for i in range(count)}}
    found = []
    for word in text.split(","):
        cut = word.find("-", 1)
        first, last = (word, word) if cut < 0 else (word[:cut], word[cut + 1 :])
        first, last = names[first], names[last]
        if first > last:
            raise ValueError
        found += [i for i in range(count) if first <= i <= last and i not in found]
    return tuple(found)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("0,3-5,-1", 8, (0, 3, 4, 5, 7)),
        ("5,1,5,0-2", 6, (5, 1, 0, 2)),
        (" 2 , 0 ", 3, (2, 0)),
        ("1--1", 4, (1, 2, 3)),
        ("-3--2", 4, (1, 2)),
        ("0-0", 1, (0,)),
    ],
)
def test_resolves(text, count, expected):
    assert IntRanges.parse(text).resolve(count) == expected


@given(int_ranges)
def test_reads_what_it_prints(ranges):
    assert IntRanges.parse(str(ranges)) == IntRanges.parse(IntRanges.parse(str(ranges)))
    assert str(IntRanges.parse(str(ranges))) == str(ranges)
    assert Model.model_validate_json(Model(layers=ranges).model_dump_json()).layers == (
        IntRanges.parse(str(ranges))
    )


@given(int_ranges, st.integers(0, 120))
def test_resolves_as_the_slow_way_does(ranges, count):
    try:
        expected = slow_resolve(str(ranges), count)
    except (KeyError, ValueError):
        with pytest.raises(UsageError):
            ranges.resolve(count)
    else:
        assert ranges.resolve(count) == expected


@given(st.lists(st.integers(-9, 9), min_size=1))
def test_a_list_of_integers_means_the_same_as_the_text(indices):
    assert Model(layers=indices).layers == Model(layers=",".join(map(str, indices))).layers


@pytest.mark.parametrize(
    "value", ["", ",", "a", "1.5", "1-", "-", "1-2-3", "--1", "٣", "1 2", [], [True], [1.0], None]
)
def test_refuses_what_is_no_index(value):
    with pytest.raises(ValueError, match=r"expected indices and ranges such as 0,3-5,-1"):
        IntRanges.parse(value)


def test_says_what_was_asked_for_and_what_is_there():
    with pytest.raises(UsageError, match=r"layer 7 .* there are 6; expected 0 to 5, or -6 to -1"):
        IntRanges.parse("0-7").resolve(6)
    with pytest.raises(UsageError, match=r"^position -3 .* there are 2; expected 0 to 1"):
        IntRanges.parse("-3").resolve(2, name="position")
    with pytest.raises(UsageError, match=r"layer range 3--4 runs backwards \(from 3 to 1\)"):
        IntRanges.parse("3--4").resolve(5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("-1", (-1,)), ("0,-1,0", (0, -1)), ("2-4,-3--2,3", (2, 3, 4, -3, -2)), ("-7,6", (-7, 6))],
)
def test_indices_from_both_ends_stay_as_they_are(text, expected):
    assert IntRanges.parse(text).from_both_ends(7) == expected


@given(int_ranges, st.integers(1, 120))
def test_indices_from_both_ends_mean_the_same_where_all_are_as_long(ranges, longest):
    try:
        found = ranges.from_both_ends(longest)
    except UsageError:
        return
    assert tuple(dict.fromkeys(each % longest for each in found)) == ranges.resolve(longest)


def test_indices_from_both_ends_that_mean_nothing():
    with pytest.raises(UsageError, match=r"range 3--1 is not as wide in short samples as in long"):
        IntRanges.parse("3--1").from_both_ends(7)
    with pytest.raises(UsageError, match=r"^position 7 .* there are 7"):
        IntRanges.parse("7").from_both_ends(7)
    with pytest.raises(UsageError, match=r"^position -8 .* there are 7"):
        IntRanges.parse("-8").from_both_ends(7)
    with pytest.raises(UsageError, match="runs backwards"):
        IntRanges.parse("-1--2").from_both_ends(7)


def test_a_huge_range_is_refused_before_it_is_counted_out():
    with pytest.raises(UsageError, match=r"layer 999999999999 "):
        IntRanges.parse("0-999999999999").resolve(6)


def test_reads_commas_lists_and_blanks():
    assert Model(names="a, b,,c ").names == ("a", "b", "c")
    assert Model(names=["a", "b c"]).names == ("a", "b c")
    assert Model(names=" , ").names == ()
    with pytest.raises(ValidationError):
        Model(names=3)
