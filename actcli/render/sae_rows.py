"""The rows of the table of `sae-eval`: each metric, its label and definition."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from actcli.render.sae_text import (
    FVU_FORMULAS,
    FVU_PATHS,
    Verdict,
    absorption_verdict,
    dead_verdict,
    fvu_verdict,
    judged_fvu,
    number,
)
from actcli.reports.sae_eval import CosineReport, DictionaryReport, EvaluationReport

Read = Callable[[DictionaryReport], "float | None"]


class Row(NamedTuple):
    """A metric of the table."""

    label: str
    read: Read
    definition: str
    metric: str | None = None
    """Its path in the report, where winners and differences are told of it."""

    sign: int = 1
    """-1 where the report has what is left of 1: a difference is the other way round there."""

    form: Callable[[DictionaryReport], str] | None = None
    """What stands in a cell, where the number alone says too little."""


def metric_rows(report: EvaluationReport) -> Iterator[Row]:
    """Return the rows of the table, in their order."""
    yield from _reconstruction_rows(report.dictionaries[0])
    yield from _sparsity_rows()
    yield from _feature_rows(report.dictionaries[0])
    yield from _loss_rows()


def _reconstruction_rows(first: DictionaryReport) -> Iterator[Row]:
    chosen = first.reconstruction.fvu_definition
    yield Row(
        f"FVU ({chosen})",
        lambda each: judged_fvu(each.reconstruction),
        FVU_FORMULAS[chosen],
        *FVU_PATHS[chosen],
        lambda each: _judged(
            number(judged_fvu(each.reconstruction)), fvu_verdict(judged_fvu(each.reconstruction))
        ),
    )
    if chosen != "standard":
        yield _of("reconstruction.fvu", "FVU (standard)", FVU_FORMULAS["standard"])
    yield _of("reconstruction.mse", "MSE", "sum e^2 / (tokens x dimensions)")
    yield _of("reconstruction.mae", "MAE", "sum |e| / (tokens x dimensions)")
    yield _of("reconstruction.cosine_similarity", "Cosine", "mean over tokens of cos(t, r)")
    yield _of("reconstruction.cosine_flat", "Cosine, flat", "of all tokens as one vector")
    yield _of("reconstruction.l2_ratio", "L2 ratio", "mean over tokens of |r| / |t|")
    yield _of(
        "reconstruction.relative_reconstruction_bias", "Reconstruction bias", "sum r^2 / sum t r"
    )


def _sparsity_rows() -> Iterator[Row]:
    yield _of("sparsity.mean_l0", "L0, mean", "active features of a token")
    yield Row(
        "L0, median",
        lambda each: each.sparsity.median_l0,
        "lower median; standard deviation; least to most",
        form=_spread,
    )
    yield _of("sparsity.mean_l1", "L1, mean", "sum of |activation| of a token")


def _spread(report: DictionaryReport) -> str:
    s = report.sparsity
    deviation = "" if s.l0_std is None else f" ± {s.l0_std:.3g}"
    return f"{s.median_l0:g}{deviation}, {s.min_l0} to {s.max_l0}"


def _feature_rows(first: DictionaryReport) -> Iterator[Row]:
    used = first.feature_utilization
    yield Row(
        "Dead features",
        lambda each: each.feature_utilization.dead_percentage,
        f"never fired on {used.n_tokens:,} tokens: density below {used.dead_density_bound:.2g} "
        f"(95 %)",
        "feature_utilization.dead_percentage",
        form=_dead,
    )
    yield Row(
        "Dense features",
        lambda each: each.feature_utilization.n_dense,
        f"fire on more than {100 * used.dense_threshold:.3g} % of the tokens",
        form=lambda each: f"{each.feature_utilization.n_dense:,}",
    )
    absorption = first.absorption
    yield Row(
        "Absorption (pairs)",
        lambda each: each.absorption.score,
        f"share of decoder pairs with |cosine| > {absorption.threshold:g}; "
        f"not that of Chanin et al.",
        "absorption.score",
        form=lambda each: _judged(
            number(each.absorption.score), absorption_verdict(each.absorption.score)
        ),
    )
    for name, label, definition in _COSINES:
        yield Row(
            label, _mean_cosine(name), f"{definition}, mean over features", f"cosines.{name}.mean"
        )
    yield _of("cosines.mean_abs_decoder_cosine", "|cosine| of pairs", "mean over all decoder pairs")
    yield _of("activation_stats.max_activation", "Largest activation", "of all tokens")
    yield _of("activation_stats.mean_activation", "Mean activation", "of those other than 0")
    yield _of(
        "first_letter_absorption.mean_absorption_fraction",
        "Absorption (first letter)",
        "Chanin et al. 2024: mean over letters of the mean fraction over their words",
    )
    yield _of(
        "first_letter_absorption.full_absorption_rate",
        "Full absorption",
        "Chanin et al. 2024: share of words where other features stand in for all of it",
    )


_COSINES = (
    ("max_decoder_cosine", "Nearest decoder row", "largest cosine with another"),
    ("max_encoder_cosine", "Nearest encoder column", "largest cosine with another"),
    ("encoder_decoder_cosine", "Encoder and decoder", "cosine of a feature's own two"),
)


def _loss_rows() -> Iterator[Row]:
    yield _of(
        "loss.ce_recovered", "CE recovered", "(CE zero - CE spliced) / (CE zero - CE original)"
    )
    yield _of("loss.kl_recovered", "KL recovered", "(KL zero - KL spliced) / KL zero")
    yield _of("loss.ce_spliced", "CE spliced", "nats; with the reconstruction in the model")
    yield _of("loss.ce_original", "CE original", "nats; the model by itself")


def _of(path: str, label: str, definition: str) -> Row:
    group, name = path.split(".")

    def read(report: DictionaryReport) -> float | None:
        held = getattr(report, group)
        return None if held is None else getattr(held, name)

    return Row(label, read, definition, path)


def _mean_cosine(name: str) -> Read:
    def read(report: DictionaryReport) -> float | None:
        cosines: CosineReport = report.cosines
        found = getattr(cosines, name)
        return None if found is None else float(found.mean)

    return read


def _dead(report: DictionaryReport) -> str:
    used = report.feature_utilization
    text = f"{used.dead_count:,} of {used.total_features:,} ({used.dead_percentage:.1f} %)"
    return _judged(text, dead_verdict(used.dead_percentage))


def _judged(text: str, verdict: Verdict | None) -> str:
    return text if verdict is None else f"{text} {verdict.words}"
