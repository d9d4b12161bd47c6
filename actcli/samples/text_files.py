"""Texts from files: one a line, one a JSON object, a column of a data set, or given in words.

Each source is read anew whenever it is iterated, and holds a few texts at a time. Blank texts are
handed out too: whoever encodes leaves them out and counts them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from actcli.builtin import find_builtin, is_builtin
from actcli.errors import SamplesError, reason

BUILTIN_TEXTS = "sentences.txt"
"""The file that holds the texts of what is built in."""

_DATASET_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")
_ROWS_AT_ONCE = 1000
_UTF8_MARK = b"\xef\xbb\xbf"


class Texts(Protocol):
    """Texts in their order, and where they come from."""

    @property
    def name(self) -> str:
        """What messages call them."""
        ...

    def __iter__(self) -> Iterator[str]: ...

    def manifest(self) -> dict[str, Any]:
        """Where they come from, for the manifest of a dump."""
        ...


@dataclass(frozen=True)
class GivenTexts:
    """Texts that are at hand already."""

    texts: Sequence[str]
    name: str = "--prompt"

    def __iter__(self) -> Iterator[str]:
        """Yield them in their order."""
        return iter(self.texts)

    def manifest(self) -> dict[str, Any]:
        """How many they are; the options of the run hold the words."""
        return {"prompts": len(self.texts)}


@dataclass(frozen=True)
class LineTexts:
    """The lines of a UTF-8 file."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def __iter__(self) -> Iterator[str]:
        """Yield the lines without their ends.

        Raises:
            SamplesError: the file cannot be read, or is not UTF-8.
        """
        for _number, line in _lines(self.path):
            yield line

    def manifest(self) -> dict[str, Any]:
        """The file and its size."""
        return {"files": [_described(self.path)]}


@dataclass(frozen=True)
class JsonLinesTexts:
    """One field of the JSON objects in a file, one object a line; blank lines are skipped."""

    path: Path
    field: str

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def __iter__(self) -> Iterator[str]:
        """Yield the field of each object.

        Raises:
            SamplesError: the file cannot be read, is not UTF-8, or a line is no JSON object with
                a text in that field.
        """
        for number, line in _lines(self.path):
            if line.strip():
                yield self._text(line, place=f"{self.path}, line {number}")

    def manifest(self) -> dict[str, Any]:
        """The file, its size and the field."""
        return {"files": [_described(self.path)], "field": self.field}

    def _text(self, line: str, *, place: str) -> str:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SamplesError(f"{place}, is not JSON: {reason(error)}") from error
        if not isinstance(row, dict):
            raise SamplesError(
                f"{place}, holds {_KINDS[type(row)]}, expected an object such as "
                f"{json.dumps({self.field: '...'})}"
            )
        if self.field not in row:
            raise SamplesError(f"{place}, {_no_such_field(self.field, list(row))}")
        text = row[self.field]
        if not isinstance(text, str):
            raise SamplesError(
                f"{place}: the field {self.field!r} is {_KINDS[type(text)]}, expected a string"
            )
        return text


@dataclass(frozen=True)
class DatasetTexts:
    """A column of a saved Hugging Face data set, or of a .parquet file."""

    path: Path
    field: str

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def __iter__(self) -> Iterator[str]:
        """Yield the column.

        Raises:
            SamplesError: the package `datasets` is missing, or the data set is damaged, has
                several splits, lacks the column, or holds no strings there.
        """
        columns = self._parquet() if self.path.is_file() else self._saved()
        number = 0
        for column in columns:
            for text in column:
                if not isinstance(text, str):
                    kind = "null" if text is None else f"{type(text).__name__}"
                    raise SamplesError(
                        f"{self.path}, row {number}: the column {self.field!r} is {kind}, "
                        f"expected a string"
                    )
                number += 1
                yield text

    def manifest(self) -> dict[str, Any]:
        """The files, their sizes, and the column."""
        if self.path.is_file():
            files = [_described(self.path)]
        else:
            files = [_described(each) for each in sorted(self.path.glob("*.arrow"))]
        return {"folder": str(self.path), "files": files, "field": self.field}

    def _parquet(self) -> Iterator[list[Any]]:
        parquet = _import_extra("pyarrow.parquet")
        try:
            with parquet.ParquetFile(self.path) as file:
                self._check_column(file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[self.field]):
                    yield batch.column(0).to_pylist()
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _saved(self) -> Iterator[list[Any]]:
        datasets = _import_extra("datasets")
        datasets.disable_progress_bars()
        try:
            found = datasets.load_from_disk(str(self.path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(error) from error
        if isinstance(found, dict):
            splits = ", ".join(str(self.path / each) for each in found)
            raise SamplesError(f"{self.path} holds several data sets: give one of {splits}")
        self._check_column(found.column_names)
        for batch in found.select_columns([self.field]).iter(batch_size=_ROWS_AT_ONCE):
            yield batch[self.field]

    def _check_column(self, columns: list[str]) -> None:
        if self.field not in columns:
            raise SamplesError(f"{self.path} {_no_such_field(self.field, columns)}")

    def _unreadable(self, error: Exception) -> SamplesError:
        return SamplesError(f"{self.path} is not a readable data set: {reason(error)}")


def is_text_dataset(path: Path) -> bool:
    """Whether a path names a saved Hugging Face data set or a .parquet file, by its looks."""
    if path.suffix == ".parquet":
        return True
    return any((path / each).is_file() for each in _DATASET_FILES)


def open_lines(text: str) -> LineTexts:
    """Return the lines of a file, or of a built-in text (`demo://NAME`).

    Raises:
        SamplesError: nothing of that name is built in.
    """
    if is_builtin(text):
        folder = find_builtin(text, holding=BUILTIN_TEXTS, error=SamplesError)
        return LineTexts(folder / BUILTIN_TEXTS)
    return LineTexts(Path(text).expanduser())


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line; it ends at a line feed, CR before it or not."""
    start = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, _decoded(raw, path=path, number=number, start=start)
                start += len(raw)
    except OSError as error:
        raise SamplesError(f"cannot read {path}: {reason(error)}") from error


def _decoded(raw: bytes, *, path: Path, number: int, start: int) -> str:
    line = raw.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return (line.removeprefix(_UTF8_MARK) if number == 1 else line).decode("utf-8")
    except UnicodeDecodeError as error:
        shift = len(line) - len(error.object)
        place = shift + error.start
        raise SamplesError(
            f"{path}, line {number}, is not UTF-8: byte 0x{line[place]:02x} at byte "
            f"{start + place} of the file; convert it, as with: iconv -t utf-8"
        ) from error


def _no_such_field(field: str, known: list[str]) -> str:
    names = ", ".join(map(repr, known)) or "none"
    return f"has no field {field!r}; it has: {names}; --field picks one"


def _import_extra(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise SamplesError(
            "a data set needs the package datasets: pip install 'actcli[datasets]'"
        ) from error


def _described(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size}
