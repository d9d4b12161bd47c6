"""The tables of `dump`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from actcli.reports.dump import DumpReport, PlanReport, VerificationReport

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def dump_tables(report: DumpReport) -> "Iterable[RenderableType]":
    """The speed table, the verification, and where the file is."""
    rows = {
        "Device": report.device,
        "Samples": f"{report.n_samples:,}",
        "Batches": f"{report.n_batches:,}",
        "Elapsed (s)": f"{report.elapsed_s:.3f}",
        "Samples/s": f"{report.samples_per_s:,.1f}",
        "Tokens/s": f"{report.tokens_per_s:,.1f}",
    }
    yield _two_columns("Activation Dump Speed", ("Metric", "Value"), rows)
    if report.verification is not None:
        yield _verification(report.verification)
    if report.output is None:
        yield "Skipped writing outputs (--no-write)."
    else:
        yield f"Wrote {report.output} ({len(report.tensors)} tensors, {size(report.file_bytes)})"


def plan_tables(report: PlanReport) -> "Iterable[RenderableType]":
    """The tensors that a dump would hold, and what it would take."""
    from rich.table import Table

    table = Table("Key", "Dtype", "Shape", title="Planned Dump")
    table.add_column("Bytes", justify="right")
    for each in report.tensors:
        table.add_row(each.key, each.dtype, str(list(each.shape)), f"{each.n_bytes:,}")
    yield table
    rows = {
        "Model": f"{report.model} ({report.family})",
        "Device": report.device,
        "Samples": f"{report.n_samples:,} in batches of {report.batch_size:,}",
        "Layers": ", ".join(map(str, report.layers)),
        "Bytes on disk": f"{report.file_bytes:,} ({size(report.file_bytes)})",
        "Space to write": f"{size(report.space_bytes)} of {size(report.free_bytes)} free",
        "Peak memory": f"about {size(report.peak_memory_bytes)}",
    }
    yield _two_columns("Planned Run", ("What", "Value"), rows)


def size(n_bytes: int) -> str:
    """A number of bytes as people read it: 1.5 GiB."""
    value, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _verification(report: VerificationReport) -> "Table":
    from rich.table import Table

    verdict = "agrees" if report.agrees else "DOES NOT AGREE"
    table = Table("Key", title=f"Verification: {verdict}")
    table.add_column(f"Largest difference, {len(report.samples)} run alone", justify="right")
    for key, difference in report.max_abs_difference.items():
        table.add_row(key, f"{difference:.3g}")
    return table


def _two_columns(title: str, heads: tuple[str, str], rows: dict[str, str]) -> "Table":
    from rich.table import Table

    table = Table(heads[0], title=title)
    table.add_column(heads[1], justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
