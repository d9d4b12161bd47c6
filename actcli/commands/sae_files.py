"""The files of `sae-eval`: refused before any work where they exist, written when all is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from actcli.errors import ActcliError, DumpError, reason

if TYPE_CHECKING:
    from actcli.commands.sae_eval import SaeEvalConfig
    from actcli.reports.sae_eval import EvaluationReport

_DEFAULT_FOLDER = Path("out/sae_eval")
_METRICS, _COMPARISON = "metrics.json", "comparison.json"
_SUMMARY, _PAGE = "summary.txt", "page.html"


@dataclass(frozen=True)
class SaeTargets:
    """The files that will be written."""

    folder: Path | None
    output: Path | None
    several: bool

    @classmethod
    def of(cls, config: "SaeEvalConfig") -> Self:
        """Name the files, and refuse those that exist.

        Raises:
            DumpError: one exists and there is no --force, or a folder is not there.
        """
        from actcli.commands.feature_samples import check_samples_target
        from actcli.render.records import check_report_target

        found = cls(_folder(config), config.output, config.n_dictionaries > 1)
        if found.main is not None and found.main.exists() and not config.force:
            raise DumpError(
                f"{found.main} exists: choose another --output-dir, or --force to replace it"
            )
        for path in (found.main, config.output, config.rich):
            if path is not None:
                check_report_target(path, force=config.force)
        if config.samples is not None and not found.several:
            check_samples_target(config.samples, force=config.force)
        return found

    @property
    def main(self) -> Path | None:
        """The first file of the folder."""
        return self.folder and self.folder / (_COMPARISON if self.several else _METRICS)

    def write(
        self, report: "EvaluationReport", upstream: Mapping[str, Mapping[str, Any]]
    ) -> list[Path]:
        """Write everything.

        Args:
            report: the answer.
            upstream: what `--compat upstream` computed, by name; empty without it.

        Returns:
            The files.
        """
        written = [] if self.folder is None else self._write_folder(self.folder, report, upstream)
        if self.output is not None:
            from actcli.render.records import write_file
            from actcli.render.sae_records import as_json, sae_csv

            text = sae_csv(report) if self.output.suffix == ".csv" else as_json(report)
            write_file(self.output, text.encode())
            written.append(self.output)
        return written

    def _write_folder(
        self, folder: Path, report: "EvaluationReport", upstream: Mapping[str, Mapping[str, Any]]
    ) -> list[Path]:
        from actcli.render.records import write_file
        from actcli.render.sae_figures import write_figures
        from actcli.render.sae_page import write_page
        from actcli.render.sae_records import as_json
        from actcli.render.sae_text import summary_text

        contents = self._compat(upstream) if upstream else self._contents(report)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ActcliError(f"cannot make the folder {folder}: {reason(error)}") from error
        for name, content in contents.items():
            write_file(folder / name, as_json(content).encode())
        write_file(folder / _SUMMARY, summary_text(report).encode())
        figures = write_figures(report, folder)
        write_page(report, folder / _PAGE)
        return [folder / each for each in (*contents, _SUMMARY)] + figures + [folder / _PAGE]

    def _contents(self, report: "EvaluationReport") -> dict[str, Any]:
        from actcli.render.sae_records import comparison

        if not self.several:
            return {_METRICS: report.dictionaries[0]}
        names = file_names([each.sae.name for each in report.dictionaries])
        each_one = {
            f"{name}_metrics.json": report
            for name, report in zip(names, report.dictionaries, strict=True)
        }
        return {_COMPARISON: comparison(report), **each_one}

    def _compat(self, upstream: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        from actcli.analysis.sae_upstream import upstream_comparison

        metrics = list(map(dict, upstream.values()))
        if not self.several:
            return {_METRICS: metrics[0]}
        first, second = metrics
        names = [f"{name}_metrics.json" for name in file_names([*upstream])]
        return {
            _COMPARISON: upstream_comparison(first, second),
            **dict(zip(names, metrics, strict=True)),
        }


def file_names(names: Sequence[str]) -> list[str]:
    """Return names that can stand in the name of a file, all different."""
    found: list[str] = []
    for name in names:
        plain = "".join(each if each.isalnum() or each in "-_." else "-" for each in name)
        while plain in found:
            plain += "-"
        found.append(plain)
    return found


def _folder(config: "SaeEvalConfig") -> Path | None:
    if not config.files:
        return None
    if config.output_dir is not None:
        return config.output_dir.expanduser()
    spec = config.name[0] if config.name else config.checkpoint[0]
    stem = spec.rstrip("/").rpartition("/")[2].partition("@")[0]
    now = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    return _DEFAULT_FOLDER / f"{file_names([stem])[0]}_{now}"
