"""The files of `qk-contrib`: refused before any work where they exist, written as queries come."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from actcli.commands.qk_contrib import QkContribConfig
    from actcli.render.qk_records import ArraysNpz, PairsCsv
    from actcli.render.qk_view import QkView
    from actcli.reports.qk import QkReadingReport, QkReport, QkStatic

_PAGE_BYTES = 4 << 20
_RECORDS, _ARRAYS, _PAGE = "-pairs.csv", ".npz", ".html"
_TABLE, _SUMMARY = "-table.csv", ".json"


@dataclass(frozen=True)
class QkTargets:
    """The files that will be written."""

    folder: Path | None
    stem: str
    output: Path | None
    export: Path | None

    @classmethod
    def of(cls, config: "QkContribConfig", *, folder: Path | None) -> Self:
        """Name the files, and refuse those that exist.

        Raises:
            DumpError: one exists and there is no --force, or its folder is not there.
        """
        from actcli.render.records import check_report_target

        found = cls(folder, f"output-{config.stem}", config.output, config.export)
        mains = (_RECORDS, _ARRAYS, _SUMMARY) if folder is not None else ()
        asked = [path for path in (config.output, config.export) if path is not None]
        for path in (*map(found.path, mains), *asked):
            check_report_target(path, force=config.force)
        return found

    def path(self, ending: str) -> Path:
        """A file in the folder."""
        assert self.folder is not None
        return self.folder / f"{self.stem}{ending}"

    def ends(self, *endings: str) -> list[Path]:
        """Files in the folder; none where nothing is written there."""
        return [] if self.folder is None else list(map(self.path, endings))

    def of_output(self, suffix: str) -> list[Path]:
        """`--output`, if it has this suffix."""
        return [self.output] if self.output is not None and self.output.suffix == suffix else []

    def name_in(self, report: "QkReport", files: Sequence[Path], *, elapsed_s: float) -> "QkReport":
        """Return the report with the names of its files."""
        folder = None if self.folder is None else str(self.folder)
        every = [*files, self.export] if self.export is not None else files
        told = {"files": tuple(map(str, every)), "folder": folder, "elapsed_s": elapsed_s}
        return report.model_copy(update=told)


class QkFiles:
    """Records and arrays as queries are read; pictures, page and summaries at the end."""

    def __init__(self, targets: QkTargets, run: str, most_drawn: int) -> None:
        self._targets, self._run, self._most_drawn = targets, run, most_drawn
        self._views: list[QkView] = []
        self._n_bytes = self._n_seen = 0
        self._stack = ExitStack()
        self._csv: PairsCsv | None = None
        self._npz: ArraysNpz | None = None

    def __enter__(self) -> Self:
        from actcli.render.qk_records import ArraysNpz, PairsCsv

        for path in self._targets.ends(_RECORDS):
            self._csv = self._stack.enter_context(PairsCsv(path, run=self._run))
        for path in self._targets.ends(_ARRAYS):
            self._npz = self._stack.enter_context(ArraysNpz(path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, view: "QkView", reading: "QkReadingReport") -> None:
        """Write the records of a query, and keep it for picture and page while there is room."""
        from actcli.render.qk_records import pair_arrays

        if self._csv is None or self._npz is None:
            return
        self._csv.write(reading)
        self._npz.write(pair_arrays(view.pairs))
        self._n_seen += 1
        self._n_bytes += view.pairs.top_contrib.nbytes
        if len(self._views) < max(self._most_drawn, 1) or self._n_bytes <= _PAGE_BYTES:
            self._views.append(view)

    def finish(self, report: "QkReport", *, elapsed_s: float) -> "QkReport":
        """Draw, and write page, table and summaries; gives the report with their names."""
        from actcli.render.qk_records import table_csv, write_text

        targets = self._targets
        drawn = [*self._draw()]
        pages = targets.ends(_PAGE)
        tables = [*targets.ends(_TABLE), *targets.of_output(".csv")]
        summaries = [*targets.ends(_SUMMARY), *targets.of_output(".json")]
        files = [*targets.ends(_RECORDS, _ARRAYS), *drawn, *pages, *tables, *summaries]
        report = targets.name_in(report, files, elapsed_s=elapsed_s)
        for path in pages:
            write_text(path, self._page(report))
        for path in tables:
            write_text(path, table_csv(report.table))
        for path in summaries:
            write_text(path, report.model_dump_json(indent=2) + "\n")
        return report

    def _draw(self) -> list[Path]:
        from actcli.render.qk_figure import write_qk_figure

        drawn = []
        for view in self._views[: self._most_drawn]:
            drawn.append(self._targets.path(f"-{view.stem}.png"))
            write_qk_figure(drawn[-1], view)
        return drawn

    def _page(self, report: "QkReport") -> str:
        from actcli.render.qk_page import qk_page

        return qk_page(
            self._views,
            report,
            title=f"Pairs of components: {report.decomposition}",
            n_more=self._n_seen - len(self._views),
            max_bytes=_PAGE_BYTES,
        ).html


@dataclass(frozen=True)
class StaticFiles:
    """What static mode writes."""

    targets: QkTargets
    most_drawn: int

    def finish(
        self, report: "QkReport", static_readings: "Sequence[QkStatic]", *, elapsed_s: float
    ) -> "QkReport":
        """Write records, arrays, pictures and summaries; gives the report with their names."""
        from actcli.render.qk_records import ArraysNpz, write_text
        from actcli.render.qk_static import static_arrays, static_csv, write_static_figure

        targets, run = self.targets, report.decomposition
        tables = [*targets.ends(_RECORDS), *targets.of_output(".csv")]
        summaries = [*targets.ends(_SUMMARY), *targets.of_output(".json")]
        drawn = static_readings[: self.most_drawn]
        pictures = targets.ends(*(f"-layer{each.layer}-static.png" for each in drawn))
        arrays = targets.ends(_ARRAYS)
        for path in tables:
            write_text(path, static_csv(static_readings, run=run))
        for path in arrays:
            with ArraysNpz(path) as npz:
                for static in static_readings:
                    npz.write(static_arrays(static))
        for path, static in zip(pictures, drawn, strict=False):  # none where no files are wanted
            write_static_figure(path, static, run=run)
        files = [*tables, *arrays, *pictures, *summaries]
        report = targets.name_in(report, files, elapsed_s=elapsed_s)
        for path in summaries:
            write_text(path, report.model_dump_json(indent=2) + "\n")
        return report
