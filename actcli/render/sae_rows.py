"""The rows of the table of `sae-eval`: each metric, its label and definition."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from actcli.render.sae_text import (
    Verdict,
    absorption_verdict,
    dead_verdict,
    fvu_verdict,
    judged_fvu,
    number,
)
from actcli.reports.sae_eval import DictionaryReport, EvaluationReport
from actcli.reports.sae_glossary import FVU_DEFINITIONS, METRICS, value_at


class Row(NamedTuple):
    """A metric of the table."""

    label: str
    read: Callable[[DictionaryReport], float | None]
    definition: str
    metric: str
    """Its path in the report, where winners and differences are told of it."""

    sign: int = 1
    """-1 where the report has what is left of 1: a difference is the other way round there."""

    form: Callable[[DictionaryReport], str] | None = None
    """What stands in a cell, where the number alone says too little."""


def metric_rows(report: EvaluationReport) -> Iterator[Row]:
    """Return the rows of the table, in their order."""
    first = report.dictionaries[0]
    yield from _fvu_rows(first)
    yield from _rows(_RECONSTRUCTION)
    yield from _sparsity_rows()
    yield from _feature_rows(first)
    yield from _rows(_REST)


_RECONSTRUCTION = (
    "reconstruction.mse",
    "reconstruction.mae",
    "reconstruction.cosine_similarity",
    "reconstruction.cosine_flat",
    "reconstruction.l2_ratio",
    "reconstruction.relative_reconstruction_bias",
)

_REST = (
    "cosines.max_decoder_cosine.mean",
    "cosines.max_encoder_cosine.mean",
    "cosines.encoder_decoder_cosine.mean",
    "cosines.mean_abs_decoder_cosine",
    "activation_stats.max_activation",
    "activation_stats.mean_activation",
    "first_letter_absorption.mean_absorption_fraction",
    "first_letter_absorption.full_absorption_rate",
    "loss.ce_recovered",
    "loss.kl_recovered",
    "loss.ce_spliced",
    "loss.ce_original",
    "loss.ce_zero",
)


def _fvu_rows(first: DictionaryReport) -> Iterator[Row]:
    """The one that winners go by, and the standard one."""
    name = first.reconstruction.fvu_definition
    chosen = FVU_DEFINITIONS[name]
    yield Row(
        f"FVU ({name})",
        lambda each: judged_fvu(each.reconstruction),
        chosen.words,
        chosen.path,
        chosen.sign,
        lambda each: _judged(
            number(judged_fvu(each.reconstruction)), fvu_verdict(judged_fvu(each.reconstruction))
        ),
    )
    if name != "standard":
        yield _row("reconstruction.fvu")


def _sparsity_rows() -> Iterator[Row]:
    yield _row("sparsity.mean_l0")
    yield _row("sparsity.median_l0")._replace(
        definition="the lower median; standard deviation; least to most", form=_spread
    )
    yield _row("sparsity.mean_l1")


def _spread(report: DictionaryReport) -> str:
    s = report.sparsity
    deviation = "" if s.l0_std is None else f" ± {s.l0_std:.3g}"
    return f"{s.median_l0:g}{deviation}, {s.min_l0} to {s.max_l0}"


def _feature_rows(first: DictionaryReport) -> Iterator[Row]:
    """Those whose definition has figures of the run."""
    used, absorption = first.feature_utilization, first.absorption
    yield _row("feature_utilization.dead_percentage")._replace(
        definition=f"never fired on {used.n_tokens:,} tokens: density below "
        f"{used.dead_density_bound:.2g} (95 %)",
        form=_dead,
    )
    yield _row("feature_utilization.n_dense")._replace(
        definition=f"fire on more than {100 * used.dense_threshold:.3g} % of the tokens",
        form=lambda each: f"{each.feature_utilization.n_dense:,}",
    )
    yield _row("absorption.score")._replace(
        definition=f"share of decoder pairs with |cosine| > {absorption.threshold:g}; "
        f"not that of Chanin et al.",
        form=lambda each: _judged(
            number(each.absorption.score), absorption_verdict(each.absorption.score)
        ),
    )


def _dead(report: DictionaryReport) -> str:
    used = report.feature_utilization
    text = f"{used.dead_count:,} ({used.dead_percentage:.1f} %)"
    return _judged(text, dead_verdict(used.dead_percentage))


def _judged(text: str, verdict: Verdict | None) -> str:
    """Set the first words of a verdict behind a figure; those in brackets explain them."""
    return text if verdict is None else f"{text} {verdict.words.partition(' (')[0]}"


def _rows(paths: Iterable[str]) -> Iterator[Row]:
    return map(_row, paths)


def _row(path: str) -> Row:
    metric = METRICS[path]
    return Row(metric.label, lambda report: value_at(report, path), metric.words, path)
