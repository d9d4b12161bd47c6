"""What a config field can tell the command line beyond its type, default and help."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import core_schema

from actcli.errors import UsageError

Completer = Callable[[Mapping[str, Any], str], Iterable[str | tuple[str, str]]]
"""From the words typed so far (by field name, defaults filled in) and the unfinished one: what
could stand there, each with or without a few words of explanation. It may raise: then the shell
offers nothing."""

T = TypeVar("T")


@dataclass(frozen=True)
class Cli:
    """How a config field appears on the command line, where that is not plain from its type."""

    short: str | None = None
    """A short name beside the long one: `-k`."""

    flag: str | None = None
    """The long name, where it is not the field's own: `--json`."""

    aliases: tuple[str, ...] = ()
    """Further long names that mean the same."""

    positional: bool = False
    """Whether the value stands by itself, without a name before it."""

    envvar: str | None = None
    """An environment variable that gives the value: above a config file, below the options."""

    panel: str | None = None
    """The heading in `--help` under which the option stands."""

    complete: Completer | None = None
    """What the shell offers for the value; a closed set of choices completes by itself."""

    metavar: str | None = None
    """What stands for the value in `--help`, where the type's own word says too little."""


def _split_commas(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [item for item in map(str.strip, value.split(",")) if item]


CommaSeparated = Annotated[tuple[T, ...], BeforeValidator(_split_commas)]
"""Several values in one word: `attn_norm,mlp_input`. A config file may hold a list instead."""


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


REPEATED = "repeated"
"""What marks the type of an option that may be given several times."""

Repeated = Annotated[tuple[T, ...], BeforeValidator(_one_or_more), REPEATED]
"""Several values, each with the option's name before it: `--prompt "a, b" --prompt c`. A config
file holds a list, or one text."""


@dataclass(frozen=True)
class IntRange:
    """The indices from one to another, both included; negative ones count from the end."""

    first: int
    last: int

    def __str__(self) -> str:
        """Return what `IntRanges.parse` reads."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class IntRanges:
    """Indices in one word, in the order wanted: `0,3-5,-1`.

    A range may end at a negative index: `3--1` goes from 3 to the last. As the type of a config
    field it reads such a text, one integer, or a list of both (as TOML has); it prints as text.
    """

    ranges: tuple[IntRange, ...]

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a text, an integer, or a list of either.

        Raises:
            ValueError: it is none of these, or names no index.
        """
        if isinstance(value, cls):
            return value
        ranges = tuple(_parse_range(word) for word in _words(value))
        if not ranges:
            raise ValueError(f"found no index in {value!r}; {_EXPECTED}")
        return cls(ranges)

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return ",".join(map(str, self.ranges))

    def resolve(self, count: int, *, name: str = "layer") -> tuple[int, ...]:
        """Return the indices meant, of `count` things, in the order given and each once.

        Raises:
            UsageError: an index outside 0..count-1 and -count..-1, or a range that runs backwards.
        """
        return tuple(
            dict.fromkeys(
                index for each in self.ranges for index in _resolve_range(each, count, name=name)
            )
        )

    def from_both_ends(self, longest: int, *, name: str = "position") -> tuple[int, ...]:
        """Return the indices as they are, each once, for things of several lengths up to `longest`.

        Negative ones count from each thing's own end, so they stay negative.

        Raises:
            UsageError: an index beyond the longest, a range that runs backwards, or one from a
                place counted from the start to one counted from the end.
        """
        found: dict[int, None] = {}
        for each in self.ranges:
            if (each.first < 0) != (each.last < 0):
                raise UsageError(
                    f"the {name} range {each} is not as wide in short samples as in long ones: "
                    f"count both ends from the start, or both from the end"
                )
            offset = -longest if each.first < 0 else 0
            places = _resolve_range(each, longest, name=name)
            found |= dict.fromkeys(place + offset for place in places)
        return tuple(found)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: type[Any], _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Let pydantic read with `parse` and write with `str`."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )


_EXPECTED = "expected indices and ranges such as 0,3-5,-1"
_RANGE = re.compile(r"(-?[0-9]+)(?:-(-?[0-9]+))?", re.ASCII)


def _words(value: object) -> Iterator[str]:
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ValueError(f"found {item!r}; {_EXPECTED}")
        yield from (word for word in map(str.strip, str(item).split(",")) if word)


def _parse_range(word: str) -> IntRange:
    found = _RANGE.fullmatch(word)
    if found is None:
        raise ValueError(f"found {word!r}; {_EXPECTED}")
    first = int(found[1])
    return IntRange(first, first if found[2] is None else int(found[2]))


def _resolve_range(wanted: IntRange, count: int, *, name: str) -> range:
    first, last = (_resolve_index(index, count, name=name) for index in (wanted.first, wanted.last))
    if first > last:
        raise UsageError(
            f"the {name} range {wanted} runs backwards (from {first} to {last}); "
            "give the lower end first"
        )
    return range(first, last + 1)


def _resolve_index(index: int, count: int, *, name: str) -> int:
    if -count <= index < count:
        return index % count
    valid = (
        f"expected 0 to {count - 1}, or {-count} to -1 from the end" if count else "none is left"
    )
    raise UsageError(f"{name} {index} was asked for, but there are {count}; {valid}")
