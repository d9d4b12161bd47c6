"""The table of `attn-plot`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from actcli.reports.attention import AttentionReport, HeadReport

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMNS = {
    "entropy_bits": "Entropy (bits)",
    "mean_distance": "Distance",
    "self_mass": "Self",
    "row_mass": "Row",
    "column_mass": "Column",
    "corner_mass": "Corners",
    "equal_mass": "Equal tiles",
    "empty_mass": "Empty",
    "sink_mass": "Sink",
}


def attention_tables(report: AttentionReport) -> "Iterable[RenderableType]":
    """The numbers of each head, and where the files are."""
    from rich.table import Table

    boards = ", ".join(map(str, report.samples[:8])) + (", ..." if len(report.samples) > 8 else "")
    table = Table(title=f"Attention Heads (mean over samples {boards})")
    for name in ("Layer", "Head", *_COLUMNS.values()):
        table.add_column(name, justify="right")
    for head in report.heads:
        table.add_row(str(head.layer), str(head.head), *map(_shown, _numbers(head)))
    yield table
    if report.folder is not None:
        yield f"Wrote attention visualizations to {report.folder}"
    for path in report.files:
        if report.folder is None or not path.startswith(report.folder):
            yield f"Wrote {path}"


def _numbers(head: HeadReport) -> list[float]:
    return [float(getattr(head, name)) for name in _COLUMNS]


def _shown(number: float) -> str:
    return f"{number:.3f}"
