"""`sae-eval --report` and `--rich`: what is made of a folder of activation samples.

The folder is one that `actcli.commands.feature_samples` or the Matryoshka program has written.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.commands.feature_samples import PAGE
from actcli.errors import DumpError, UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from actcli.render.feature_files import SamplesFolder

REPORT = "interpretability_report.md"


def report_samples(folder: Path, *, output: Output, force: bool = False) -> Path:
    """Write `interpretability_report.md` into a folder of samples.

    Args:
        folder: samples of this program or of the Matryoshka program; or a run that holds them.
        output: where it is told.
        force: whether a report that is there is replaced.

    Returns:
        The file.

    Raises:
        SamplesError: there are no samples, or they are damaged.
        DumpError: the file exists.
    """
    from actcli.render.feature_markdown import features_markdown

    return _write_beside(folder, REPORT, features_markdown, output=output, force=force)


def page_samples(folder: Path, *, output: Output, force: bool = False) -> Path:
    """Write `features.html` into a folder of samples, such as one of the Matryoshka program.

    Args:
        folder: as of `report_samples`.
        output: where it is told.
        force: whether a page that is there is replaced.

    Returns:
        The file.

    Raises:
        SamplesError: there are no samples, or they are damaged.
        DumpError: the file exists.
    """
    from actcli.render.feature_page import feature_page

    def page(samples: "SamplesFolder") -> str:
        title = f"Features of {samples.name}"
        return feature_page(samples.every(), samples.summary, title=title).html

    return _write_beside(folder, PAGE, page, output=output, force=force)


def export_rich(
    folder: Path,
    path: Path,
    *,
    output: Output,
    features: Sequence[int] = (),
    n_samples: int | None = None,
    force: bool = False,
) -> int:
    """Write the samples as rich examples, ready for a prompt that asks what a feature means.

    A line of JSON for each feature: `{"feature": 42, "examples": [{"raw": ..., "marked": ...,
    "max_activation": ...}]}`, where `marked` has each active token as `<<<token (act: 1.25)>>>`.

    Args:
        folder: as of `report_samples`.
        path: a .jsonl file.
        output: where it is told.
        features: these; all that the folder has, if none is given.
        n_samples: examples of each feature at most.
        force: whether a file that is there is replaced.

    Returns:
        How many features were written.

    Raises:
        SamplesError: there are no samples, they are damaged, or have no texts.
        UsageError: the folder does not have a feature, or the name does not end in .jsonl.
        DumpError: the file exists.
    """
    from actcli.render.feature_files import open_folder
    from actcli.render.feature_rich import rich_lines
    from actcli.render.records import check_report_target, write_file

    if path.suffix != ".jsonl":
        raise UsageError(f"{path}: expected a name ending in .jsonl")
    samples = open_folder(folder)
    check_report_target(path, force=force)
    records = samples.several(features) if features else samples.every()
    lines = list(rich_lines(records, n_samples=n_samples))
    write_file(path, "".join(f"{line}\n" for line in lines).encode())
    output.note(f"wrote {len(lines)} features as rich examples to {path}")
    return len(lines)


def _write_beside(
    folder: Path,
    name: str,
    content: "Callable[[SamplesFolder], str]",
    *,
    output: Output,
    force: bool,
) -> Path:
    from actcli.render.feature_files import open_folder
    from actcli.render.records import write_file

    path = (samples := open_folder(folder)).path / name
    if path.exists() and not force:
        raise DumpError(f"{path} exists: --force replaces it")
    write_file(path, content(samples).encode())
    output.note(f"wrote {path}")
    return path
