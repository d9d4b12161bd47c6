"""The answers of `sae-eval` as files: the names and keys of the Matryoshka program, as valid JSON.

A number that is not defined is null, where that program writes NaN, which is no JSON.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from actcli.render.sae_text import INTERPRETATION
from actcli.reports.sae_eval import DictionaryReport, EvaluationReport, MetricDifference
from actcli.reports.sae_glossary import FVU_DEFINITIONS

_FIRST_TWO = 2


def as_json(content: Mapping[str, Any] | BaseModel) -> str:
    """Return the text of a .json file; a number that is not finite becomes null."""
    if isinstance(content, BaseModel):
        return content.model_dump_json(indent=2) + "\n"
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def comparison(report: EvaluationReport) -> dict[str, Any]:
    """Return the content of `comparison.json`.

    `summary`, the dictionaries by name (`ours` and `google` where they are called so) and
    `comparison` are as in the Matryoshka program: the difference is that of the first two, the
    winner that of all. Every difference with its error stands in `differences`.

    Args:
        report: of two dictionaries or more.
    """
    definition = report.dictionaries[0].reconstruction.fvu_definition
    figures = {
        "fvu": FVU_DEFINITIONS[definition],
        "absorption": ("absorption.score", 1),
        "cosine_sim": ("reconstruction.cosine_similarity", 1),
    }
    found: dict[str, Any] = {}
    for name, (path, sign) in figures.items():
        found |= _compared(report, name, path, sign)
    return {
        "summary": {"interpretation": INTERPRETATION, "not_compared": report.not_compared},
        **{each.sae.name: each.model_dump(mode="json") for each in report.dictionaries},
        "comparison": found | {"fvu_definition": definition},
        "metrics": [each.model_dump(mode="json") for each in report.metrics],
        "differences": [each.model_dump(mode="json") for each in report.differences],
        "tokens": report.tokens.model_dump(mode="json"),
        "warnings": list(report.warnings),
    }


def sae_csv(report: EvaluationReport) -> str:
    """Return a line for each dictionary, with every number of its report by its path."""
    rows = [dict(_numbers(each)) for each in report.dictionaries]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _compared(report: EvaluationReport, name: str, path: str, sign: int) -> dict[str, Any]:
    first, second = (each.sae.name for each in report.dictionaries[:_FIRST_TWO])
    pair = _difference(report, path, first, second)
    ranked = next((each for each in report.metrics if each.metric == path), None)
    value = None if pair is None else pair.difference
    return {
        f"{name}_difference": None if value is None else sign * value,
        f"{name}_standard_error": None if pair is None else pair.standard_error,
        f"{name}_is_tie": None if pair is None or value is None else pair.is_tie,
        f"{name}_winner": None if ranked is None else ranked.winner,
    }


def _difference(
    report: EvaluationReport, path: str, first: str, second: str
) -> MetricDifference | None:
    wanted = (path, first, second)
    found = (
        each for each in report.differences if (each.metric, each.first, each.second) == wanted
    )
    return next(found, None)


_WORDS = ("name", "path", "format", "architecture", "kind", "dtype", "x", "y", "sha256")


def _numbers(report: DictionaryReport) -> Iterator[tuple[str, object]]:
    """Name and number of every figure: who it is first, then by group."""
    for word in _WORDS:
        yield word, getattr(report.sae, word)
    for group in DictionaryReport.model_fields:
        held = getattr(report, group)
        if isinstance(held, BaseModel):
            yield from _of_group(f"{group}.", held)


def _of_group(prefix: str, held: BaseModel) -> Iterator[tuple[str, object]]:
    for name in type(held).model_fields:
        value = getattr(held, name)
        if isinstance(value, bool):
            continue
        if isinstance(value, (int, float)):
            yield prefix + name, value
        elif isinstance(value, BaseModel) and "counts" not in type(value).model_fields:
            yield from _of_group(f"{prefix}{name}.", value)
