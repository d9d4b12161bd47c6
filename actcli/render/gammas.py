"""The table of `gammas`."""

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Table

from actcli.reports.gammas import GammaReport, GammaStats

_BARS = " ▁▂▃▄▅▆▇█"


def gamma_tables(report: GammaReport) -> Iterable[RenderableType]:
    """One line for each norm, then the verdict over all of them."""
    table = Table("Norm", "Shape", "Dtype", title=f"Norm gammas of {report.source}")
    for head in ("Ones", "Ones %", "Min", "Max", "Mean", "Std"):
        table.add_column(head, justify="right")
    table.add_column(_distribution_head(report), no_wrap=True)
    for each in report.modules:
        table.add_row(*_row(each))
    yield table
    within = f"within {report.tolerance:g} of 1.0" if report.tolerance else "exactly 1.0"
    verdict = "yes" if report.all_ones else "no"
    yield f"All gammas {within}: {verdict} ({report.ones:,}/{report.total:,} overall)"
    n_nan = sum(each.nan_count for each in report.modules)
    if n_nan:
        yield f"NaN elements: {n_nan:,} (left out of min, max, mean, std and the distribution)"


def bars(counts: Sequence[int]) -> str:
    """Return counts as one character each: the fullest is the highest, none is a blank.

    Heights go with the square root of the count, so that a few elements still show.
    """
    most = max(counts, default=0)
    steps = len(_BARS) - 1
    return "".join(
        _BARS[max(1, round(steps * (count / most) ** 0.5))] if count else _BARS[0]
        for count in counts
    )


def _distribution_head(report: GammaReport) -> str:
    if not report.modules:
        return "Distribution"
    edges = report.modules[0].histogram.edges
    return f"{edges[0]:.3g} … {edges[-1]:.3g}"


def _row(stats: GammaStats) -> Iterable[str]:
    yield stats.module
    yield str(tuple(stats.shape))
    yield stats.dtype
    yield f"{stats.ones:,}/{stats.total:,}"
    yield f"{stats.ones_share:.2%}"
    for number in (stats.min, stats.max, stats.mean, stats.std):
        yield "-" if number is None else f"{number:.6f}"
    yield bars(stats.histogram.counts)
