"""The files of `logit-lens` beside its records: summary, pictures, page."""

from collections.abc import Callable, Iterator
from pathlib import Path

from actcli.render.lens_words import lens_note
from actcli.render.records import write_file
from actcli.reports.lens_table import LensTable
from actcli.reports.logit_lens import LogitLensReport, SampleReport


def write_summary(report: LogitLensReport, path: Path) -> None:
    """Write the report as JSON.

    Raises:
        ActcliError: the file cannot be written.
    """
    write_file(path, (report.model_dump_json(indent=2) + "\n").encode())


def write_drawings(
    table: LensTable | None,
    report: LogitLensReport,
    folder: Path,
    *,
    stem: str,
    colour: str,
    text_of: Callable[[int], str],
) -> list[Path]:
    """Draw the samples whose records are all here, and write the page to explore them.

    Args:
        table: those records; None for no drawing.
        report: the summary, which names texts and answers.
        folder: where the files go.
        stem: how their names begin.
        colour: what shades the heatmaps: one of `lens_grid.METRICS`.
        text_of: a token's text.

    Returns:
        The files, in the order in which they were written.

    Raises:
        ActcliError: a file cannot be written.
    """
    if table is None:
        return []
    from actcli.render.lens_page import lens_page

    files = [*_pictures(table, report, folder, stem=stem, colour=colour, text_of=text_of)]
    path = folder / f"{stem}.html"
    page = lens_page(table, report, text_of=text_of, title=f"Logit lens of {report.model.init}")
    write_file(path, page.html.encode())
    return [*files, path]


def _pictures(
    table: LensTable,
    report: LogitLensReport,
    folder: Path,
    *,
    stem: str,
    colour: str,
    text_of: Callable[[int], str],
) -> Iterator[Path]:
    from actcli.render.lens_heatmap import write_heatmap
    from actcli.render.lens_lines import write_trajectories

    note = lens_note(report.lens)
    for sample in _drawn(table, report):
        for stream in report.streams:
            name = f"{stem}-{sample.sample}" + ("" if stream == "resid" else f"-{stream}")
            heatmap, lines = folder / f"{name}-heatmap.png", folder / f"{name}-lines.png"
            write_heatmap(
                heatmap,
                table,
                sample=sample.sample,
                text_of=text_of,
                metric=colour,
                stream=stream,
                note=note,
            )
            yield heatmap
            write_trajectories(
                lines,
                table,
                sample=sample.sample,
                text_of=text_of,
                answer=sample.answer,
                contrast=sample.control.contrast if sample.control else None,
                stream=stream,
                note=note,
            )
            yield lines


def _drawn(table: LensTable, report: LogitLensReport) -> list[SampleReport]:
    there = set(table.sample.tolist())
    return [sample for sample in report.samples if sample.sample in there]
