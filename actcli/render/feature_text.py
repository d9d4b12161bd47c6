"""Activation samples in the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from actcli.render.lens_tokens import brief, escaped
from actcli.reports.feature_pieces import pieces_of
from actcli.reports.feature_samples import (
    ExperimentList,
    FeatureLine,
    FeatureList,
    FeatureRecord,
    FeatureSample,
    FeatureView,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_MOST_LINES = 50
_TEXT_WIDTH = 40
_PEAK, _STRONG, _WEAK = "bold reverse", "bold underline", "underline"
_STRONG_SHARE = 0.5


def view_tables(view: FeatureView, *, n_samples: int) -> "Iterable[RenderableType]":
    """Each feature: its numbers, those most similar to it, its contexts."""
    for record in view.features:
        yield from _feature(record, n_samples)


def list_tables(listed: FeatureList) -> "Iterable[RenderableType]":
    """A line for each feature, and how many there are beside."""
    if not listed.features:
        yield f"No context has {listed.find!r} ({listed.n_features:,} features searched)"
        return
    yield _lines(listed)
    more = len(listed.features) - _MOST_LINES
    if more > 0:
        yield f"...and {more:,} more feature{'s' if more > 1 else ''}"


def experiment_tables(listed: ExperimentList) -> "Iterable[RenderableType]":
    """A line for each experiment."""
    from rich.table import Table

    if not listed.experiments:
        yield f"No folder under {listed.root} holds a checkpoint or activation samples"
        return
    table = Table("Model", title=f"Experiments in {listed.root}")
    table.add_column("Layer", justify="right")
    for name in ("Experiment", "Checkpoint", "Samples", "Folder"):
        table.add_column(name, overflow="fold")
    for each in listed.experiments:
        table.add_row(
            each.model or "",
            "" if each.layer is None else str(each.layer),
            each.name,
            ", ".join(each.checkpoints) or "none",
            f"{each.n_features:,} features" if each.has_samples else "none",
            each.path,
        )
    yield table


def _feature(record: FeatureRecord, n_samples: int) -> "Iterable[RenderableType]":
    from rich.text import Text

    yield Text(f"Feature {record.feature}", style="bold")
    yield _numbers(record)
    if record.similar:
        near = [f"{each.feature_idx} ({each.cosine:+.2f})" for each in record.similar]
        yield f"Similar decoder rows (cosine): {', '.join(near)}"
    if not record.top_samples:
        yield "No activation of it was above the threshold"
    for number, sample in enumerate(record.top_samples[:n_samples], start=1):
        yield _sample(number, sample)
    yield ""


def _numbers(record: FeatureRecord) -> str:
    numbers = record.statistics
    parts = [f"max {numbers.max_activation:.4g}", f"mean of the top {numbers.mean_activation:.4g}"]
    if numbers.mean_when_active is not None:
        parts.append(f"mean when active {numbers.mean_when_active:.4g}")
    if numbers.density is not None:
        parts.append(f"active on {numbers.density:.3%} of {numbers.n_tokens:,} tokens")
    parts.append(f"{numbers.activation_count:,} above the threshold")
    parts.append(f"{numbers.num_samples:,} kept")
    return " · ".join(parts)


def _sample(number: int, sample: FeatureSample) -> "Text":
    from rich.text import Text

    where = f"position {sample.position}"
    if sample.sample is not None:
        where = f"sample {sample.sample}, {where}"
    line = Text(f"{number:3d}. {sample.activation_value:8.4g}  ")
    pieces = pieces_of(sample)
    for piece in pieces:
        if piece.is_peak:
            line.append(f"«{escaped(piece.text)}»", _PEAK)
        else:
            line.append(escaped(piece.text), _style(piece.activation or 0.0, sample))
    if pieces:
        line.append("  ")
    line.append(f"({where})", "dim")
    return line


def _style(activation: float, sample: FeatureSample) -> str:
    if activation <= 0:
        return ""
    return _STRONG if activation >= _STRONG_SHARE * sample.activation_value else _WEAK


def _lines(listed: FeatureList) -> "Table":
    from rich.table import Table

    has_density = any(each.density is not None for each in listed.features)
    title = (
        f"Features of {listed.folder}"
        if listed.find is None
        else f"Features with {listed.find!r} in a context"
    )
    table = Table(title=title)
    names = ["Feature", "Max", "Mean of the top", "Activations"]
    names += ["Density"] if has_density else []
    names += ["Contexts found"] if listed.find is not None else []
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("Strongest at")
    for each in listed.features[:_MOST_LINES]:
        table.add_row(*_cells(each, has_density=has_density))
    return table


def _cells(line: FeatureLine, *, has_density: bool) -> list[str]:
    cells = [
        str(line.feature_idx),
        f"{line.max_activation:.4g}",
        f"{line.mean_activation:.4g}",
        f"{line.activation_count:,}",
    ]
    if has_density:
        cells.append("" if line.density is None else f"{line.density:.3%}")
    if line.n_found is not None:
        cells.append(str(line.n_found))
    return [*cells, brief(line.text, width=_TEXT_WIDTH)]
