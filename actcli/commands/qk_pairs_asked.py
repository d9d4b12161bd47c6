"""The pairs of `--pairs`: from numbers in a run to parts of the two sides."""

from typing import TYPE_CHECKING

from actcli.errors import UsageError, nearest

if TYPE_CHECKING:
    from actcli.commands.qk_setup import Sides
    from actcli.decompositions.factors import Factors

_PSEUDO = ("delta", "bias")
_EXACT = "exact"
_MOST_NUMBERS = 8


def part_numbers(pair: str, sides: "Sides", *, layer: int) -> tuple[int, int]:
    """Return the part numbers of a pair such as `308:218`, `delta:3`, `exact:bias`.

    Raises:
        UsageError: the layer has no such component.
    """
    q, _colon, k = pair.partition(":")
    return _part(q, sides.q, f"--pairs {pair}: the queries of layer {layer}"), _part(
        k, sides.k, f"--pairs {pair}: the keys of layer {layer}"
    )


def component_numbers(pair: str, *, layer: int) -> tuple[int, int]:
    """Return a pair of components as their numbers in the run, as static mode takes them.

    Raises:
        UsageError: delta or bias, which only a text has.
    """
    q, _colon, k = pair.partition(":")
    if not (q.isdigit() and k.isdigit()):
        raise UsageError(
            f"--pairs {pair}: static mode of layer {layer} is about components: give two numbers"
        )
    return int(q), int(k)


def _part(word: str, factors: "Factors | None", where: str) -> int:
    names = [_EXACT] if factors is None else list(map(str, factors.ids_C))
    if word in _PSEUDO:
        return len(names) + _PSEUDO.index(word)
    if word not in names:
        known = (
            f"they are not decomposed: give {_EXACT}, delta or bias"
            if factors is None
            else _known(word, names)
        )
        raise UsageError(f"{where} have no component {word}; {known}")
    return names.index(word)


def _known(word: str, names: list[str]) -> str:
    if len(names) > _MOST_NUMBERS and all(map(str.isdigit, names)):
        numbers = sorted(map(int, names))
        return f"there are {len(names)}, from {numbers[0]} to {numbers[-1]}; or delta, bias"
    return nearest(word, [*names, *_PSEUDO])
