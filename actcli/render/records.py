"""Reports as files: the suffix of the name picks the form.

A file is written beside its final name and renamed, so what has the name is whole.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from actcli.errors import ActcliError
from actcli.reports.attention import AttentionReport
from actcli.reports.outliers import ComparedOutliersReport, OutlierReport
from actcli.store.writer import check_target

_COLUMNS = ("key", "by", "index", "count", "share", "positive", "negative")


def check_report_target(path: Path, *, force: bool) -> None:
    """Refuse a target that cannot become a file, before any work is done for it.

    Raises:
        DumpError: it exists and `force` is not given, or its folder is missing or not writable.
    """
    check_target(path, force=force)


def write_outliers(report: OutlierReport | ComparedOutliersReport, path: Path) -> None:
    """Write a report as JSON, as CSV, or as a picture.

    Raises:
        ActcliError: the file cannot be written.
    """
    reports = (
        (report.first, report.second) if isinstance(report, ComparedOutliersReport) else (report,)
    )
    if path.suffix == ".png":
        from actcli.render.figures import outlier_picture

        content = outlier_picture(reports)
    elif path.suffix == ".csv":
        content = outlier_csv(reports).encode()
    else:
        content = (report.model_dump_json(indent=2) + "\n").encode()
    write_file(path, content)


def write_heads(report: AttentionReport, path: Path) -> None:
    """Write the numbers of attention heads as JSON, or as CSV with a line a head.

    Raises:
        ActcliError: the file cannot be written.
    """
    if path.suffix == ".json":
        write_file(path, (report.model_dump_json(indent=2) + "\n").encode())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(type(report.heads[0]).model_fields)
    writer.writerows(head.model_dump().values() for head in report.heads)
    write_file(path, text.getvalue().encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside its final name and rename it.

    Raises:
        ActcliError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ActcliError(f"cannot write {path}: {error.strerror}") from error


def outlier_csv(reports: Iterable[OutlierReport]) -> str:
    """Return the counts as CSV: a line for each key and dimension, layer, first layer and token.

    `share` is of all outliers of the key; for `first_layer`, of all places that hold one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for report in reports:
        total = report.outlier_occurrences
        signs = (sum(report.pos_counts), sum(report.neg_counts))
        writer.writerow((report.key, "all", "", total, float(total > 0), *signs))
        dims = range(len(report.dim_counts))
        for dim in dims:
            signs = (report.pos_counts[dim], report.neg_counts[dim])
            share = _share(report.dim_counts[dim], total)
            writer.writerow((report.key, "dim", dim, report.dim_counts[dim], share, *signs))
        writer.writerows(_plain_rows(report, "layer", report.layers, report.layer_counts))
        writer.writerows(
            _plain_rows(report, "first_layer", report.layers, report.first_layer_counts)
        )
        writer.writerows(_plain_rows(report, "token", report.tokens, report.token_counts))
    return text.getvalue()


def _plain_rows(
    report: OutlierReport, by: str, indices: Sequence[int], counts: Sequence[int]
) -> Iterable[tuple[object, ...]]:
    total = sum(counts)
    for index, count in zip(indices, counts, strict=True):
        yield report.key, by, index, count, _share(count, total), "", ""


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
