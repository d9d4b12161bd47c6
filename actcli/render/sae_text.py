"""The verdicts of the Matryoshka program on a dictionary, its suggestions, and `summary.txt`.

Its thresholds: absorption 0.01 and 0.05, dead features 10 % and 30 %, FVU 0.1 and 0.3. They were
set for its own FVU, so each verdict stands beside the definition that it was given by.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from actcli.reports.sae_eval import DictionaryReport, EvaluationReport, MetricDifference
from actcli.reports.sae_glossary import FVU_DEFINITIONS, METRICS, value_at
from actcli.reports.sae_metrics import ReconstructionReport
from actcli.reports.sae_subject import TokenSet

ABSORPTION_BOUNDS = (0.01, 0.05)
DEAD_BOUNDS = (10.0, 30.0)
FVU_BOUNDS = (0.1, 0.3)

INTERPRETATION = (
    "Lower is better for FVU and Absorption. Higher is better for cosine similarity and alive "
    "features."
)
"""What `comparison.json` of the Matryoshka program says under `summary`."""


class Verdict(NamedTuple):
    """What is said of a figure."""

    words: str
    """In tables: `moderate`."""

    headline: str
    """In `summary.txt`: `MODERATE`."""


_FVU = (
    Verdict("excellent", "EXCELLENT"),
    Verdict("moderate", "MODERATE"),
    Verdict("poor", "NEEDS IMPROVEMENT"),
)
_ABSORPTION = (
    Verdict("good (diverse features)", "EXCELLENT"),
    Verdict("high redundancy", "MODERATE"),
    Verdict("very high redundancy", "HIGH REDUNDANCY"),
)
_DEAD = (
    Verdict("good utilization", "EXCELLENT"),
    Verdict("some waste", "MODERATE"),
    Verdict("poor utilization", "POOR"),
)

_IF_FVU = (
    "more capacity: more features, larger prefixes, more active features per token",
    "another schedule: a higher learning rate, a longer warm-up, a lower final rate",
)
_IF_ABSORPTION = (
    "regularise decoder rows apart while training, or initialise them in another way",
    "change the prefixes: more of them, or other ratios",
)
_IF_DEAD = ("revive dead features: another auxiliary loss, more of them in it, more patience",)


def judged_fvu(reconstruction: ReconstructionReport) -> float | None:
    """Return the FVU by the definition that the report goes by."""
    path, sign = FVU_DEFINITIONS[reconstruction.fvu_definition]
    value = value_at(reconstruction, path.partition(".")[2])
    return value if value is None or sign > 0 else 1 - value


def fvu_verdict(fvu: float | None) -> Verdict | None:
    """Say how good a fraction of variance unexplained is."""
    return _verdict(fvu, FVU_BOUNDS, _FVU)


def absorption_verdict(score: float | None) -> Verdict | None:
    """Say how redundant decoder rows are."""
    return _verdict(score, ABSORPTION_BOUNDS, _ABSORPTION)


def dead_verdict(percentage: float | None) -> Verdict | None:
    """Say how well features are used."""
    return _verdict(percentage, DEAD_BOUNDS, _DEAD)


def suggestions(report: DictionaryReport) -> Iterator[str]:
    """Say what to try where a figure is in its worst range, one line each."""
    figures = (
        ("FVU", judged_fvu(report.reconstruction), FVU_BOUNDS[1], _IF_FVU),
        ("Absorption", report.absorption.score, ABSORPTION_BOUNDS[1], _IF_ABSORPTION),
        ("Dead features", report.feature_utilization.dead_percentage, DEAD_BOUNDS[1], _IF_DEAD),
    )
    for name, value, bound, advice in figures:
        if value is not None and value > bound:
            for each in advice:
                yield f"{name} above {bound:g}: {each}"


def token_line(tokens: TokenSet) -> str:
    """Return the token set in one line."""
    rules = f" ({'; '.join(tokens.rules)})" if tokens.rules else ""
    samples = f" in {tokens.n_samples:,} samples" if tokens.n_samples > 1 else ""
    left = f"{tokens.n_excluded:,} left out{rules}"
    return f"{tokens.n_tokens:,} tokens{samples} of {tokens.source}; {left}"


def summary_text(report: EvaluationReport) -> str:
    """Return the content of `summary.txt`."""
    title = "SAE EVALUATION" if len(report.dictionaries) == 1 else "COMPARISON OF DICTIONARIES"
    lines = [title, "=" * len(title), f"Tokens: {token_line(report.tokens)}", ""]
    for each in report.dictionaries:
        lines += [*_dictionary_lines(each), ""]
    if len(report.dictionaries) > 1:
        lines += [*_comparison_lines(report), ""]
    if report.warnings:
        lines += [*_headed("WARNINGS"), *report.warnings, ""]
    return "\n".join(lines)


def difference_line(difference: MetricDifference) -> str:
    """Return who wins by how much: `ours - google = 0.03 ± 0.001, google is better`."""
    d = difference
    if d.difference is None:
        return f"{d.first} - {d.second} is not defined"
    error = "" if d.standard_error is None else f" ± {d.standard_error:.2g}"
    end = ""
    if d.better != "none":
        end = ", a tie" if d.is_tie else f", {d.winner} is better"
    return f"{d.first} - {d.second} = {d.difference:.4g}{error}{end}"


def number(value: float | None) -> str:
    """Return a figure with four digits; n/a for what is not defined."""
    if value is None:
        return "n/a"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def _dictionary_lines(report: DictionaryReport) -> Iterator[str]:
    sae, r = report.sae, report.reconstruction
    yield from _headed(f"{sae.name}: {sae.path}")
    widths = f"{sae.d_in} -> {sae.d_out}"
    yield f"{sae.format}, {sae.architecture}; {sae.n_features:,} features, {widths}"
    yield f"Reads {sae.x}, target {sae.y}"
    yield from ("", "KEY METRICS")
    yield from _key_metrics(report)
    yield from ("", "INTERPRETATION")
    definition = f"FVU by the definition {r.fvu_definition}"
    yield _judged("Reconstruction", fvu_verdict(judged_fvu(r)), FVU_BOUNDS, definition)
    yield _judged(
        "Redundancy",
        absorption_verdict(report.absorption.score),
        ABSORPTION_BOUNDS,
        "share of decoder pairs; not the absorption of Chanin et al.",
    )
    used = report.feature_utilization
    yield _judged(
        "Utilization",
        dead_verdict(used.dead_percentage),
        DEAD_BOUNDS,
        f"percent of features that never fired on {used.n_tokens:,} tokens",
    )
    advice = [*suggestions(report)]
    if advice:
        yield from ("", "SUGGESTIONS", *advice)


def _key_metrics(report: DictionaryReport) -> Iterator[str]:
    r, used, sparse = report.reconstruction, report.feature_utilization, report.sparsity
    absorption = report.absorption
    fvu = f"{number(judged_fvu(r))}  {r.fvu_definition}: {FVU_DEFINITIONS[r.fvu_definition].words}"
    yield _row("FVU", fvu)
    pairs = f"|cosine| of decoder rows > {absorption.threshold:g}"
    score = number(absorption.score)
    yield _row(
        METRICS["absorption.score"].label,
        f"{score}  {absorption.unordered_pairs:,} pairs with {pairs}",
    )
    dead = f"{used.dead_count:,} / {used.total_features:,} ({used.dead_percentage:.1f} %)"
    bound = f"95 %: density below {used.dead_density_bound:.2g}"
    yield _row("Dead features", f"{dead}  {bound}")
    yield _row("L0", f"mean {sparse.mean_l0:.2f}, median {sparse.median_l0:g}")
    yield _row(
        METRICS["reconstruction.cosine_similarity"].label,
        f"{number(r.cosine_similarity)}  mean over tokens",
    )


def _comparison_lines(report: EvaluationReport) -> Iterator[str]:
    yield from _headed("COMPARISON")
    yield INTERPRETATION
    if report.not_compared is not None:
        yield f"Not compared: {report.not_compared}"
    for each in report.differences:
        yield f"{each.label}: {difference_line(each)}"


def _verdict(
    value: float | None, bounds: Sequence[float], verdicts: Sequence[Verdict]
) -> Verdict | None:
    return None if value is None else verdicts[sum(value >= bound for bound in bounds)]


def _judged(what: str, verdict: Verdict | None, bounds: Sequence[float], definition: str) -> str:
    said = "not defined" if verdict is None else verdict.headline
    return _row(what, f"{said}  (bounds {bounds[0]:g} and {bounds[1]:g}; {definition})")


def _row(name: str, text: str) -> str:
    return f"{name + ':':20}{text}"


def _headed(title: str) -> Iterable[str]:
    return title, "-" * len(title)
