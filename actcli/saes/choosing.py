"""Which file of a folder, or of a repository, holds the dictionary that is meant: told by names."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from actcli.errors import ModelError, UsageError
from actcli.saes.checkpoint import SUFFIXES, OpenOptions
from actcli.saes.refused import nothing_there, refuse_files

_LAYER = re.compile(r"(?:^|[/._-])(?:(?:layers?|blocks|h)[._]?|L(?=\d+[RAM]))(\d+)")
_L0 = re.compile(r"average_l0_(\d+)")
_MOST_LISTED = 12


@dataclass(frozen=True)
class Candidate:
    """A file that may hold a dictionary, by its path below what was given."""

    name: str

    @property
    def layer(self) -> int | None:
        """What its path says of the layer."""
        found = _LAYER.findall(self.name)
        return int(found[-1]) if found else None

    @property
    def l0(self) -> int | None:
        """What its path says of the mean L0."""
        found = _L0.search(self.name)
        return int(found[1]) if found else None

    @property
    def shown(self) -> str:
        """What to give to choose it."""
        path = PurePosixPath(self.name)
        return self.name if len(path.parts) == 1 else str(path.parent)


def choose(
    names: Sequence[str], patterns: Sequence[str], options: OpenOptions, *, where: str
) -> str:
    """Return the file to open.

    Args:
        names: all files, relative, with slashes.
        patterns: names of files that known formats give their weights, the preferred ones first.
        options: what the user says of layer and L0.
        where: the folder, for messages.

    Raises:
        ModelError: there is none.
        UsageError: several, and nothing chooses; or none of that layer.
    """
    refuse_files(names, where)
    found = _candidates(names, patterns)
    if not found:
        raise ModelError(nothing_there(names, where))
    if len(here := [each for each in found if "/" not in each.name]) == 1:
        return here[0].name
    found = _of_layer(found, options.layer, where)
    found = _nearest_l0(found, options.l0)
    if len(found) > 1:
        raise UsageError(_which(found, where))
    return found[0].name


def _candidates(names: Iterable[str], patterns: Sequence[str]) -> list[Candidate]:
    """The files that a known format names so, one per folder; else all that could be weights."""
    best: dict[str, tuple[int, str]] = {}
    for name in sorted(names, key=_natural):
        path = PurePosixPath(name)
        rank = next((i for i, each in enumerate(patterns) if fnmatchcase(path.name, each)), None)
        if rank is None:
            continue
        slot = name if "*" in patterns[rank] else str(path.parent)
        if slot not in best or rank < best[slot][0]:
            best[slot] = (rank, name)
    if best:
        return [Candidate(name) for _rank, name in best.values()]
    loose = [name for name in names if PurePosixPath(name).suffix in SUFFIXES]
    return [Candidate(name) for name in sorted(loose, key=_natural)]


def _of_layer(found: list[Candidate], layer: int | None, where: str) -> list[Candidate]:
    layers = sorted({each.layer for each in found if each.layer is not None})
    if layer is None or not layers:
        return found
    if layer not in layers:
        known = ", ".join(map(str, layers))
        raise UsageError(f"{where} has no dictionary of layer {layer}; it has: {known}")
    return [each for each in found if each.layer == layer]


def _nearest_l0(found: list[Candidate], l0: int | None) -> list[Candidate]:
    """The nearest, of each set that differs in the L0 alone."""
    if l0 is None:
        return found
    by_rest: dict[str, list[Candidate]] = {}
    for each in found:
        by_rest.setdefault(_L0.sub("", each.name), []).append(each)
    return [min(same, key=_distance(l0)) for same in by_rest.values()]


def _distance(l0: int) -> Callable[[Candidate], tuple[int, int]]:
    def of(candidate: Candidate) -> tuple[int, int]:
        own = candidate.l0
        return (10**9, 0) if own is None else (abs(own - l0), own)

    return of


def _which(found: Sequence[Candidate], where: str) -> str:
    options = [
        option
        for option, values in (
            ("--layer", {each.layer for each in found}),
            ("--l0", {each.l0 for each in found}),
        )
        if len(values - {None}) > 1
    ]
    names = list(dict.fromkeys(_option_or_path(each, found) for each in found))
    more = f", ... ({len(names)} in all)" if len(names) > _MOST_LISTED else ""
    choice = f"choose with {' and '.join(options)}, or give" if options else "give"
    return (
        f"{where} holds several dictionaries: {', '.join(names[:_MOST_LISTED])}{more}; "
        f"{choice} the path of one"
    )


def _option_or_path(each: Candidate, found: Sequence[Candidate]) -> str:
    """The folder, or the file where folders are shared."""
    is_shared = sum(other.shown == each.shown for other in found) > 1
    return each.name if is_shared else each.shown


def _natural(name: str) -> list[tuple[int, str]]:
    """Order numbers by value."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
