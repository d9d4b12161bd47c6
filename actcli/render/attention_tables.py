"""The table of `attn-plot`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from actcli.reports.attention import AttentionReport, TextHeadReport

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
_TEXT_COLUMNS = {
    "entropy_bits": "Entropy (bits)",
    "mean_distance": "Distance",
    "first_mass": "First token",
    "previous_mass": "Previous",
    "self_mass": "Self",
    "sink_mass": "Sink",
}


def attention_tables(report: AttentionReport) -> "Iterable[RenderableType]":
    """The numbers of each head, and where the files are."""
    from rich.table import Table

    samples = ", ".join(map(str, report.samples[:8])) + (", ..." if len(report.samples) > 8 else "")
    is_text = bool(report.heads) and isinstance(report.heads[0], TextHeadReport)
    columns = _TEXT_COLUMNS if is_text else _COLUMNS
    table = Table(title=f"Attention Heads (mean over samples {samples})")
    for name in ("Layer", "Head", *columns.values()):
        table.add_column(name, justify="right")
    for head in report.heads:
        numbers = (_shown(getattr(head, name)) for name in columns)
        table.add_row(str(head.layer), str(head.head), *numbers)
    yield table
    if report.folder is not None:
        yield f"Wrote attention visualizations to {report.folder}"
    for path in report.files:
        if report.folder is None or not path.startswith(report.folder):
            yield f"Wrote {path}"


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"
