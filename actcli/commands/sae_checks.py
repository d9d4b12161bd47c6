"""What `sae-eval --check` demands of the figures: `fvu<0.3`."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from actcli.errors import UsageError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from actcli.reports.sae_eval import DictionaryReport

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CHECK = re.compile(r"\s*([A-Za-z][\w.]*)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Check:
    """A bound on a metric."""

    metric: str
    """A field of the report by itself, `fvu`, or with what holds it, `reconstruction.fvu`."""

    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `METRIC<VALUE`.

        Raises:
            ValueError: it is not of that form.
        """
        found = _CHECK.fullmatch(text)
        bound = _number(found[3]) if found else None
        if found is None or bound is None:
            raise ValueError(
                f"found {text!r}; expected a metric, one of < <= > >=, and a number: 'fvu<0.3'"
            )
        return cls(found[1], found[2], bound)

    def __str__(self) -> str:
        """Return it as it would be typed."""
        return f"{self.metric}{self.sign}{self.bound:g}"


def find_metrics(checks: Iterable[Check]) -> list[tuple[Check, str]]:
    """Return each check with the path of its number in a report.

    Raises:
        UsageError: there is no number of that name, or several.
    """
    from actcli.reports.sae_eval import DictionaryReport

    known = [*_paths(DictionaryReport)]
    return [(check, _find(check.metric, known)) for check in checks]


def failures(
    checks: Iterable[tuple[Check, str]], reports: Iterable["DictionaryReport"]
) -> Iterator[str]:
    """Say of each check that does not hold for a dictionary what was found."""
    from actcli.reports.sae_glossary import value_at

    reports = list(reports)
    for check, path in checks:
        for report in reports:
            value = value_at(report, path)
            if value is None:
                yield f"{report.sae.name}: {path} is not defined, expected {check}"
            elif not _HOLDS[check.sign](value, check.bound):
                yield f"{report.sae.name}: {path} is {value:.6g}, expected {check}"


def _find(metric: str, known: list[str]) -> str:
    found = [each for each in known if each == metric or each.endswith(f".{metric}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"--check: {metric!r} could be {' or '.join(found)}: write one of them")
    names = [each.rpartition(".")[2] for each in known]
    raise UsageError(f"--check: there is no number {metric!r}; {nearest(metric, names)}")


def _paths(model: type["BaseModel"], prefix: str = "") -> Iterator[str]:
    """Name every number of a report and of the reports within it."""
    for name, field in model.model_fields.items():
        for kind in _kinds(field.annotation):
            if hasattr(kind, "model_fields"):
                yield from _paths(kind, f"{prefix}{name}.")
            elif kind in (int, float) and prefix:
                yield prefix + name


def _kinds(annotation: Any) -> list[Any]:
    from types import NoneType, UnionType
    from typing import Union, get_args, get_origin

    if get_origin(annotation) in (Union, UnionType):
        return [each for each in get_args(annotation) if each is not NoneType]
    return [annotation]


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
