"""`interpretability_report.md`: activation samples as one Markdown document."""

import re
from collections.abc import Iterator

from actcli.render.feature_files import SamplesFolder
from actcli.render.lens_tokens import brief, escaped
from actcli.reports.feature_pieces import pieces_of
from actcli.reports.feature_samples import FeatureRecord, FeatureSample, SamplesSummary

_MOST_FEATURES = 50
_MOST_EXAMPLES = 10
_TEXT_WIDTH = 40


def features_markdown(
    samples: SamplesFolder,
    *,
    n_features: int = _MOST_FEATURES,
    n_examples: int = _MOST_EXAMPLES,
) -> str:
    """Return summary, a table of the features with the largest activations, and their examples.

    Args:
        samples: the folder.
        n_features: features shown at most.
        n_examples: examples of each at most.

    Raises:
        SamplesError: a file is damaged.
    """
    every = samples.every()
    shown = every[:n_features]
    lines = [
        f"# Features of {samples.name}",
        "",
        *_summary(samples.summary, n_files=len(every)),
        _title(len(shown)),
        "",
        *_table(shown),
        "",
        "## Examples",
        "",
        "The token is bold; the number before it is the activation.",
        "",
    ]
    for record in shown:
        lines += _feature(record, n_examples)
    return "\n".join(lines).rstrip() + "\n"


def _title(n_shown: int) -> str:
    several = f"{n_shown} features with the largest activations"
    return f"## The {several if n_shown != 1 else 'feature with the largest activation'}"


def _summary(summary: SamplesSummary | None, *, n_files: int) -> Iterator[str]:
    if summary is not None:
        yield f"- Activations above the threshold: {summary.total_samples_seen:,}"
        yield f"- Activations kept: {summary.total_samples_stored:,}"
        yield f"- Features with samples: {summary.num_features_tracked:,}"
        yield f"- Kept of each feature, on average: {summary.avg_samples_per_feature:.1f}"
        if summary.n_tokens is not None:
            yield f"- Tokens: {summary.n_tokens:,}"
        if summary.source is not None:
            yield f"- Source: {_code(summary.source)}"
        if summary.dictionary is not None:
            dictionary = summary.dictionary
            yield (
                f"- Dictionary: {_code(dictionary.name)}, {dictionary.architecture}, "
                f"{dictionary.n_features:,} features, reads {_code(dictionary.x)}"
            )
    yield f"- Features in this folder: {n_files:,}"
    yield ""


def _table(records: list[FeatureRecord]) -> Iterator[str]:
    yield "| feature | max | mean of the top | activations | density | strongest at |"
    yield "|---:|---:|---:|---:|---:|---|"
    for record in records:
        numbers = record.statistics
        density = "" if numbers.density is None else f"{numbers.density:.3%}"
        text = record.top_samples[0].text if record.top_samples else ""
        cell = _code(brief(text, width=_TEXT_WIDTH)).replace("|", r"\|") if text else ""
        yield (
            f"| {record.feature} | {numbers.max_activation:.4f} | {numbers.mean_activation:.4f} | "
            f"{numbers.activation_count:,} | {density} | {cell} |"
        )


def _feature(record: FeatureRecord, n_examples: int) -> Iterator[str]:
    numbers = record.statistics
    yield f"### Feature {record.feature}"
    yield ""
    said = [f"max {numbers.max_activation:.4f}", f"{numbers.activation_count:,} activations"]
    if numbers.density is not None:
        said.append(f"density {numbers.density:.3%}")
    said.append(f"{numbers.num_samples:,} kept")
    yield ", ".join(said) + "."
    if record.similar:
        near = [f"{each.feature_idx} ({each.cosine:+.2f})" for each in record.similar]
        yield f"Similar decoder rows (cosine): {', '.join(near)}."
    yield ""
    for number, sample in enumerate(record.top_samples[:n_examples], start=1):
        yield f"{number}. {sample.activation_value:.4f} {_context(sample)} {_where(sample)}"
    yield ""


def _context(sample: FeatureSample) -> str:
    """Code spans: what stands before the token, the token in bold, what stands behind."""
    before = after = peak = ""
    for piece in pieces_of(sample):
        if piece.is_peak:
            peak = piece.text
        elif peak:
            after += piece.text
        else:
            before += piece.text
    parts = [_span(before), f"**{_span(peak)}**" if peak else "", _span(after)]
    return " ".join(filter(None, parts))


def _span(text: str) -> str:
    """A text as code, without the spaces around it; nothing if it is empty."""
    return _code(escaped(text).strip(" ") or escaped(text)) if text else ""


def _where(sample: FeatureSample) -> str:
    of = "" if sample.sample is None else f"sample {sample.sample}, "
    return f"({of}position {sample.position})"


def _code(text: str) -> str:
    """A code span that shows the text as it is, whatever backticks it has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    needs_room = text.startswith("`") or text.endswith("`") or text != text.strip(" ")
    inner = f" {text} " if needs_room and text.strip(" ") else text
    return f"{fence}{inner}{fence}"
