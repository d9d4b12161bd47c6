"""The numbers of `qk-contrib` as files: a line for each pair as CSV, arrays as `.npz`.

Both are written as queries are read, so memory does not grow with them.

Tensor legend: A query heads, N pairs, P keys.
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from actcli.errors import ActcliError, reason
from actcli.render.lens_tokens import escaped
from actcli.render.records import write_file
from actcli.reports.qk import QkPairReport, QkPairs, QkReadingReport, QkTableRow

PAIR_COLUMNS = (
    "run",
    "layer",
    "sample",
    "query_pos",
    "token",
    "rank",
    "q_c",
    "k_c",
    "score",
    "peak",
    "peak_head",
    "peak_key",
    "key_token",
    "q_act",
    "k_act",
    "q_ci",
    "k_ci",
    "centered_peak",
    "mean",
    "d_attn",
    "d_attn_head",
    "d_attn_key",
    "visible_heads",
)
"""Of the CSV file of pairs; an empty field is a number that there is not."""


class _Partial:
    """A file that gets its name when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._file: IO[bytes] | None = None

    @property
    def file(self) -> IO[bytes]:
        """The open file."""
        assert self._file is not None, "outside its block"
        return self._file

    def open(self) -> None:
        """Begin it, and its folder."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        except OSError as error:
            raise ActcliError(f"cannot write {self._path}: {reason(error)}") from error

    def close(self, *, is_whole: bool) -> None:
        """Give it its name, or take it away."""
        self.file.close()
        if is_whole:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


class PairsCsv:
    """A CSV file with a line for each pair of each query, in the order of `PAIR_COLUMNS`."""

    def __init__(self, path: Path, *, run: str) -> None:
        self._target, self._run = _Partial(path), run

    def __enter__(self) -> Self:
        self._target.open()
        self._text = io.TextIOWrapper(self._target.file, encoding="utf-8", newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(PAIR_COLUMNS)
        return self

    def write(self, reading: QkReadingReport) -> None:
        """Write the pairs of a query."""
        self._writer.writerows(_pair_rows(self._run, reading))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._text.flush()
        self._target.close(is_whole=kind is None)


def _pair_rows(run: str, reading: QkReadingReport) -> Iterable[Sequence[object]]:
    query = (run, reading.layer, reading.sample, reading.query, _token(reading.token))
    for pair in reading.pairs:
        yield (*query, *_pair_cells(pair))


def _pair_cells(pair: QkPairReport) -> Sequence[object]:
    return (
        pair.place,
        pair.q,
        pair.k,
        pair.score,
        pair.peak,
        pair.peak_head,
        pair.peak_key,
        _token(pair.peak_token),
        _empty(pair.q_act),
        _empty(pair.k_act),
        _empty(pair.q_ci),
        _empty(pair.k_ci),
        pair.centered_peak,
        pair.mean,
        _empty(pair.d_attn),
        _empty(pair.d_attn_head),
        _empty(pair.d_attn_key),
        " ".join(map(str, pair.visible_heads)),
    )


def _empty(value: object) -> object:
    return "" if value is None else value


def _token(text: str | None) -> str:
    return "" if text is None else escaped(text)


class ArraysNpz:
    """An `.npz` file, to which arrays are added; read it with `numpy.load`."""

    def __init__(self, path: Path) -> None:
        self._target = _Partial(path)

    def __enter__(self) -> Self:
        self._target.open()
        self._zip = zipfile.ZipFile(self._target.file, "w", zipfile.ZIP_STORED)
        return self

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add arrays by name."""
        for name, array in arrays.items():
            # A fixed date: the same numbers are the same file.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with self._zip.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._zip.close()
        self._target.close(is_whole=kind is None)


_ALWAYS = ("top_pairs", "top_contrib", "sum", "visible", "score", "peak", "peak_head", "peak_key")
_WHERE_THERE = ("attention", "d_attn", "q_marginals", "k_marginals", "q_ci", "k_ci", "sinks_A")


def pair_arrays(pairs: QkPairs) -> dict[str, NDArray[Any]]:
    """Name the arrays of a query: `s0_q5_l1/ground_truth`, `s0_q5_l1/weighted/top_pairs`, ..."""
    place = f"s{pairs.sample}_q{pairs.query}_l{pairs.layer}"
    arrays: dict[str, NDArray[Any]] = {f"{place}/keys": pairs.keys_P}
    if pairs.ground_truth is not None:
        arrays[f"{place}/ground_truth"] = pairs.ground_truth
    named = {name: getattr(pairs, name) for name in (*_ALWAYS, *_WHERE_THERE)}
    named |= {"centered_peak": pairs.centered_peak, "q_act": pairs.q_act, "k_act": pairs.k_act}
    named |= {"q_names": np.array(pairs.q_names), "k_names": np.array(pairs.k_names)}
    for kinds, values_AP in (pairs.residual or {}).items():
        named[f"residual/{kinds.replace(':', '_')}"] = values_AP
    found = {name: array for name, array in named.items() if array is not None}
    return arrays | {f"{place}/{pairs.mode}/{name}": array for name, array in found.items()}


def table_csv(rows: Iterable[QkTableRow]) -> str:
    """Return the table over samples and queries as CSV; the means of heads, apart by blanks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = tuple(QkTableRow.model_fields)
    writer.writerow(columns)
    for row in rows:
        values = row.model_dump() | {"head_means": " ".join(f"{m:.6g}" for m in row.head_means)}
        values["peak_token"] = _token(row.peak_token)
        writer.writerow([_empty(values[name]) for name in columns])
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, and its folder where it is missing.

    Raises:
        ActcliError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ActcliError(f"cannot write {path}: {reason(error)}") from error
    write_file(path, text.encode())
