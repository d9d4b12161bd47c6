"""The folder of activation samples: written whole, read one feature at a time.

`activation_samples` of a run of the Matryoshka program, and what `sae-eval --samples` writes.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from actcli.errors import DumpError, SamplesError, UsageError, reason
from actcli.render.records import write_file
from actcli.reports.feature_samples import FeatureRecord, SamplesSummary
from actcli.store.writer import make_folder

SUMMARY = "collection_summary.json"
SUBFOLDER = "activation_samples"
_NAME = re.compile(r"feature_(\d+)_samples\.json")
_MOST_NAMED = 12

Model = TypeVar("Model", bound=BaseModel)


def samples_name(feature: int) -> str:
    """Return the name of a feature's file."""
    return f"feature_{feature:05d}_samples.json"


def check_samples_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that cannot take samples.

    Raises:
        DumpError: it holds samples and `force` is not given, or it cannot be made or written into.
    """
    make_folder(folder)
    if not force and ((folder / SUMMARY).exists() or _files(folder)):
        raise DumpError(
            f"{folder} holds activation samples: choose another folder, or --force to replace them"
        )


def write_folder(folder: Path, records: Iterable[FeatureRecord], summary: SamplesSummary) -> None:
    """Write a file for each feature, and the summary last; other features' files are removed.

    Raises:
        ActcliError: a file cannot be written.
    """
    written = set()
    for record in records:
        written.add(record.feature)
        write_file(folder / samples_name(record.feature), _json(record))
    for feature, path in _files(folder).items():
        if feature not in written:
            path.unlink()
    write_file(folder / SUMMARY, _json(summary))


@dataclass(frozen=True)
class SamplesFolder:
    """A folder of activation samples, open to be read."""

    path: Path
    files: dict[int, Path]
    """By feature, rising."""

    @property
    def name(self) -> str:
        """What tells it from others: the run's name, if it is a run's `activation_samples`."""
        if self.summary is not None and self.summary.dictionary is not None:
            return self.summary.dictionary.name
        path = self.path.absolute()
        return path.parent.name if path.name == SUBFOLDER else path.name

    @cached_property
    def summary(self) -> SamplesSummary | None:
        """What is said of all features; None where the folder does not say.

        Raises:
            SamplesError: the file is damaged.
        """
        path = self.path / SUMMARY
        return _read(path, SamplesSummary) if path.is_file() else None

    def record(self, feature: int) -> FeatureRecord:
        """Return a feature.

        Raises:
            UsageError: there is no file of it.
            SamplesError: the file is damaged.
        """
        if feature not in self.files:
            raise UsageError(
                f"{self.path} has no samples of feature {feature}; {self._near(feature)}"
            )
        return _read(self.files[feature], FeatureRecord)

    def several(self, features: Sequence[int]) -> Iterator[FeatureRecord]:
        """Yield some features; raises as `record`."""
        return map(self.record, features)

    def every(self) -> list[FeatureRecord]:
        """Return all features, the largest activation first, of equal ones the lower number.

        Raises:
            SamplesError: a file is damaged.
        """
        records = self.several(list(self.files))
        return sorted(records, key=lambda each: (-each.statistics.max_activation, each.feature))

    def _near(self, feature: int) -> str:
        if len(self.files) <= _MOST_NAMED:
            return f"it has {', '.join(map(str, self.files))}"
        near = sorted(sorted(self.files, key=lambda each: abs(each - feature))[:3])
        return f"it has {len(self.files):,} features, the nearest are {', '.join(map(str, near))}"


def open_folder(folder: Path) -> SamplesFolder:
    """Open a folder of samples, or a run that holds one.

    Raises:
        SamplesError: it is not there, or holds no samples.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "is not there"
        raise SamplesError(f"{folder} {found}: expected a folder of activation samples")
    for path in (folder, folder / SUBFOLDER):
        if files := _files(path):
            return SamplesFolder(path, files)
    raise SamplesError(
        f"{folder} has no activation samples: expected files such as {samples_name(42)}, there or "
        f"in {SUBFOLDER}; --samples {folder} collects them"
    )


def sample_files(folder: Path) -> dict[int, Path]:
    """Return the files of features in a folder or its `activation_samples`, by feature."""
    return _files(folder) or _files(folder / SUBFOLDER)


def _files(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _json(model: BaseModel) -> bytes:
    return (model.model_dump_json(indent=2) + "\n").encode()


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SamplesError(f"cannot read {path}: {reason(error)}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = f"{place}: {first['msg']}" if place else first["msg"]
        raise SamplesError(f"{path} is damaged or no file of activation samples: {said}") from error
