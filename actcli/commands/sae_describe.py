"""What `sae-eval` says of each dictionary: the figures of the pass beside those of its rows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actcli import builtin
from actcli.commands.sae_places import is_transcoder
from actcli.errors import ModelError

if TYPE_CHECKING:
    from actcli.analysis.loss_recovered import LossResult
    from actcli.analysis.sae_cosines import Redundancy
    from actcli.analysis.sae_results import PassResult
    from actcli.commands.sae_setup import SaeSetup
    from actcli.reports.sae_eval import DictionaryReport
    from actcli.reports.sae_metrics import PrefixReport
    from actcli.reports.sae_subject import DictionaryDescription, TokenSet
    from actcli.reports.sae_weights import CosineReport, FirstLetterReport


@dataclass(frozen=True)
class Rows:
    """What the weights of a dictionary say by themselves."""

    redundancy: "Redundancy"
    cosines: "CosineReport"
    first_letter: "FirstLetterReport | None" = None


@dataclass
class Found:
    """What is known when everything has been read."""

    results: "Sequence[PassResult]"
    rows: Sequence[Rows]
    tokens: "TokenSet"
    losses: "Sequence[LossResult | None]"
    warnings: Sequence[tuple[str, ...]]
    """Of the inputs of each dictionary."""

    upstream: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def describe_all(setup: "SaeSetup", found: Found) -> "list[DictionaryReport]":
    """Return the report of each dictionary."""
    return [_report(setup, found, index) for index in range(len(setup.dictionaries))]


def describe_dictionary(setup: "SaeSetup", index: int) -> "DictionaryDescription":
    """Say which dictionary it is."""
    from actcli.reports.sae_subject import DictionaryDescription

    dictionary, keys = setup.dictionaries[index], setup.keys[index]
    origin = dictionary.origin
    return DictionaryDescription(
        name=origin.name,
        path=told_path(origin.path),
        format=origin.format,
        architecture=origin.architecture,
        kind="transcoder" if is_transcoder(dictionary) or keys.x != keys.y else "sae",
        d_in=dictionary.d_in,
        d_out=dictionary.d_out,
        n_features=dictionary.n_features,
        dtype=origin.dtype,
        x=setup.place(keys.x),
        y=setup.place(keys.y),
        sha256=_sha256(origin.path),
        prefixes=dictionary.prefixes,
        notes=origin.notes,
    )


def told_path(path: Path) -> str:
    """Return a path as a user knows it: of a built-in dictionary its name, demo://NAME."""
    for each in builtin.DICTIONARIES:
        folder = builtin.find_builtin(each, holding="README.md", error=ModelError)
        if path.is_relative_to(folder):
            return each
    return str(path)


def _report(setup: "SaeSetup", found: Found, index: int) -> "DictionaryReport":
    from actcli.reports.sae_eval import DictionaryReport

    result, rows, loss = found.results[index], found.rows[index], found.losses[index]
    chosen = {"fvu_definition": setup.config.fvu_definition}
    return DictionaryReport(
        sae=describe_dictionary(setup, index),
        tokens=found.tokens,
        absorption=rows.redundancy.report,
        feature_utilization=result.utilization,
        sparsity=result.sparsity,
        reconstruction=result.reconstruction.model_copy(update=chosen),
        activation_stats=result.activation_stats,
        cosines=rows.cosines,
        density=result.density,
        prefixes=_prefixes(result, rows),
        loss=loss.report if loss else None,
        first_letter_absorption=rows.first_letter,
        warnings=(*found.warnings[index], *result.warnings),
    )


def _prefixes(result: "PassResult", rows: Rows) -> "tuple[PrefixReport, ...]":
    return tuple(
        each.model_copy(update={"redundancy": share})
        for each, share in zip(result.prefixes, rows.redundancy.by_prefix, strict=True)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
