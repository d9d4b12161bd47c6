"""What `sae-eval` does: one pass over the tokens, the decoder rows, the model's loss, the files."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from actcli.commands.sae_checks import Check, failures, find_metrics
from actcli.commands.sae_describe import Found, Rows, describe_all
from actcli.commands.sae_files import SaeTargets
from actcli.commands.sae_setup import SaeSetup, prepare
from actcli.commands.sae_spelling import open_spellings
from actcli.errors import CheckFailed, UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from actcli.analysis.feature_samples import TopSamples
    from actcli.analysis.loss_recovered import LossResult
    from actcli.analysis.sae_inputs import MeanSquares
    from actcli.analysis.sae_results import PassResult
    from actcli.analysis.sae_upstream import UpstreamPass
    from actcli.capture.token_stream import TokenBatch
    from actcli.commands.sae_eval import SaeEvalConfig
    from actcli.reports.sae_eval import EvaluationReport
    from actcli.saes.dictionary import Dictionary
    from actcli.samples.spelling import Spelling


def run(config: "SaeEvalConfig", output: Output) -> None:
    """Judge the dictionaries, write the files, print the answer, and see that the checks hold.

    Raises:
        ActcliError: something is missing or does not fit.
        CheckFailed: a `--check` does not hold.
    """
    from actcli.render.sae_tables import sae_tables

    began = time.perf_counter()
    asked, config = config, config.with_demo()
    checks = find_metrics(map(Check.parse, config.check))
    targets = SaeTargets.of(config)
    with ExitStack() as stack:
        setup = prepare(config, output, stack)
        if not asked.checkpoint:
            output.note(f"using the built-in {' and '.join(setup.names)}; --checkpoint takes yours")
        tops = _tops(setup)
        found = _read(setup, tops, output)
        report = _report(setup, found).model_copy(update={"elapsed_s": time.perf_counter() - began})
        for warning in report.warnings:
            output.warn(warning)
        files = list(map(str, targets.write(report, found.upstream)))
        files += _write_samples(setup, tops, report, output)
    output.print_report(report, partial(sae_tables, files=files))
    problems = [*failures(checks, report.dictionaries)]
    if problems:
        raise CheckFailed("; ".join(problems))


def _tops(setup: SaeSetup) -> "list[TopSamples]":
    """What collects the strongest activations, one for each dictionary; none if not asked for."""
    if setup.config.samples is None:
        return []
    from actcli.analysis.feature_samples import MOST, TopSamples
    from actcli.commands.sae_features import check_features

    check_features(setup)
    most = max(MOST, setup.config.top_contexts)
    return [TopSamples(each.n_features, most=most) for each in setup.dictionaries]


def _write_samples(
    setup: SaeSetup, tops: "list[TopSamples]", report: "EvaluationReport", output: Output
) -> list[str]:
    if not tops:
        return []
    from actcli.commands.sae_features import write_all_samples

    described = [each.sae for each in report.dictionaries]
    return write_all_samples(setup, tops, described, output)


def _read(setup: SaeSetup, tops: "list[TopSamples]", output: Output) -> Found:
    spellings = open_spellings(setup)
    seen = _pass(setup, tops, output)
    tokens = setup.stream.token_set()
    return Found(
        results=seen.results,
        rows=_rows(setup, spellings, output),
        tokens=tokens,
        losses=_losses(setup, output),
        warnings=[_input_warnings(setup, index, seen) for index in range(len(seen.results))],
        upstream=seen.upstream,
    )


class _Seen(NamedTuple):
    """What one pass over the tokens gives."""

    results: "list[PassResult]"
    upstream: dict[str, dict[str, Any]]
    squares: "dict[str, MeanSquares]"
    """Of the inputs, by key."""


def _input_warnings(setup: SaeSetup, index: int, seen: _Seen) -> tuple[str, ...]:
    """Say what speaks against input and target of a dictionary."""
    from actcli.analysis.sae_inputs import place_warnings

    dictionary, keys, places = setup.dictionaries[index], setup.keys[index], setup.stream.places
    found = place_warnings(dictionary, x=places[keys.x], y=places[keys.y])
    gain = seen.squares[keys.x].warning(dictionary)
    return found if gain is None else (*found, gain)


def _pass(setup: SaeSetup, tops: "list[TopSamples]", output: Output) -> _Seen:
    """Go over the tokens once."""
    from actcli.analysis.sae_inputs import MeanSquares
    from actcli.analysis.sae_pass import Candidate, DictionaryPass

    pairs = list(zip(setup.dictionaries, setup.keys, strict=True))
    passes = DictionaryPass(
        [Candidate(each, keys.x, keys.y) for each, keys in pairs],
        dense_threshold=setup.config.dense_threshold,
        keep_acts=bool(tops),
    )
    upstream, squares = _upstream(setup), {keys.x: MeanSquares(keys.x) for keys in setup.keys}
    with output.progress(setup.stream.n_tokens, "reading tokens") as advance:
        for batch in setup.stream.batches():
            acts = passes.add(batch.acts, batch.samples_N)
            for top, active in zip(tops, acts, strict=False):
                top.add(active, batch.samples_N, batch.positions_N)
            for key, square in squares.items():
                square.add(batch.acts[key])
            _add_upstream(setup, upstream, batch)
            advance(len(batch.samples_N))
    figures = {name: each.metrics() for name, each in zip(setup.names, upstream, strict=False)}
    return _Seen(passes.results(), figures, squares)


def _upstream(setup: SaeSetup) -> "list[UpstreamPass]":
    if setup.config.compat is None:
        return []
    import torch

    from actcli.analysis.sae_upstream import UpstreamPass

    batch_tokens = setup.config.seed_batch
    return [
        UpstreamPass(each, batch_tokens=batch_tokens, dtype=getattr(torch, each.origin.dtype))
        for each in setup.dictionaries
    ]


def _add_upstream(setup: SaeSetup, upstream: "Sequence[UpstreamPass]", batch: "TokenBatch") -> None:
    for each, keys in zip(upstream, setup.keys, strict=False):
        each.add(batch.acts[keys.x], batch.acts[keys.y])


def _rows(setup: SaeSetup, spellings: "Sequence[Spelling | None]", output: Output) -> list[Rows]:
    """Compare the features of each dictionary with one another."""
    found = []
    with output.progress(len(setup.dictionaries), "comparing features") as advance:
        for each, spelling in zip(setup.dictionaries, spellings, strict=True):
            found.append(_rows_of(setup, each, spelling))
            advance(1)
    return found


def _rows_of(setup: SaeSetup, dictionary: "Dictionary", spelling: "Spelling | None") -> Rows:
    from actcli.analysis.sae_cosines import cosine_report, decoder_redundancy
    from actcli.analysis.sae_first_letter import first_letter_absorption

    config = setup.config
    return Rows(
        decoder_redundancy(
            dictionary.W_dec_DO, threshold=config.threshold, prefixes=dictionary.prefixes
        ),
        cosine_report(dictionary, pair_statistics=config.pair_statistics),
        None if spelling is None else first_letter_absorption(dictionary, spelling),
    )


def _losses(setup: SaeSetup, output: Output) -> "list[LossResult | None]":
    if not setup.config.loss:
        return [None] * len(setup.dictionaries)
    from actcli.commands.sae_loss import losses

    return [*losses(setup, output)]


def _report(setup: SaeSetup, found: Found) -> "EvaluationReport":
    from actcli.reports.sae_eval import EvaluationReport

    dictionaries = tuple(describe_all(setup, found))
    told: dict[str, Any] = {"upstream": found.upstream} if found.upstream else {}
    if len(dictionaries) > 1:
        from actcli.analysis.sae_compare import Judged, compare

        judged = [
            Judged(report, result.sums, loss.estimates if loss else {})
            for report, result, loss in zip(dictionaries, found.results, found.losses, strict=True)
        ]
        try:
            compared = compare(judged)
            told |= {"metrics": compared.metrics, "differences": compared.differences}
        except UsageError as error:
            told["not_compared"] = str(error)
    warnings = [line for each in dictionaries for line in each.warnings]
    return EvaluationReport(
        tokens=found.tokens, dictionaries=dictionaries, warnings=tuple(warnings), **told
    )
