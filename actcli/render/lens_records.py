r"""Records of the logit lens as CSV files in UTF-8, written batch by batch.

As RFC 4180 has it: lines end in CR LF, a cell is quoted where it holds a comma or a quote. No token
holds a line end, for `lens_tokens` writes those as `\n` and `\r`, so a record is a line. An empty
cell says that there is no such number. Tokens that read `NA` or `nan` are tokens:
`pandas.read_csv(path, keep_default_na=False, na_values=[""])` keeps them.

A number has nine digits, which name a float32 exactly.

Tensor legend: R records, k largest.
"""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from actcli.errors import ActcliError, reason
from actcli.render.lens_grid import at_end
from actcli.render.lens_tokens import escaped
from actcli.reports.lens_table import STREAMS, LensTable, place_name

NEXT = "⟨NEXT⟩"
"""Stands for the token in the file of last positions: the one that the model is about to give."""

_CHUNK = 8192
_LINE_END = "\r\n"


class _Column(NamedTuple):
    """A column of a chunk of records."""

    name: str
    form: str
    """Of a value in its line: `%s` where the values are cells already."""

    values: list[Any]


class _LensCsv(ABC):
    """A file of records that gets its name when it is whole; use as a context manager.

    An error within the context removes what was written; an older file of that name stays.
    """

    def __init__(
        self, path: Path, *, top_k: int, text_of: Callable[[int], str], contrast: bool = False
    ) -> None:
        """Say what will be written; the file is made on entering.

        Args:
            path: the final name.
            top_k: how many of the likeliest tokens each record lists.
            text_of: a token's text.
            contrast: whether to have the columns of a second token that is followed.
        """
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._top_k, self._text_of, self._contrast = top_k, text_of, contrast
        self._cells = dict[int, str]()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Make the file, with its header.

        Raises:
            ActcliError: it cannot be written.
        """
        try:
            self._file = self._partial.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise self._cannot_write(error) from error
        self._write_text(",".join(each.name for each in self._no_records()) + _LINE_END)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove it after an error."""
        assert self._file is not None
        try:
            self._file.close()
            if kind is None:
                self._partial.replace(self._path)
        except OSError as error_of_file:
            raise self._cannot_write(error_of_file) from error_of_file
        finally:
            self._partial.unlink(missing_ok=True)

    @abstractmethod
    def _no_records(self) -> list[_Column]: ...

    def _write_columns(self, columns: list[_Column]) -> None:
        line = ",".join(each.form for each in columns) + _LINE_END
        values = zip(*(each.values for each in columns), strict=True)
        self._write_text("".join([line % record for record in values]))

    def _write_text(self, text: str) -> None:
        assert self._file is not None, "not open: use it as a context manager"
        try:
            self._file.write(text)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> ActcliError:
        return ActcliError(f"cannot write {self._path}: {reason(error)}")

    def _columns(self, table: LensTable, tokens: _Column) -> list[_Column]:
        there_R = table.target_id >= 0
        entropy = _floats("entropy", table.entropy_bits)
        return [
            *_places(table),
            tokens,
            entropy,
            entropy._replace(name="entropy_bits"),
            _integers("target_id", table.target_id, there_R),
            self._tokens("target", table.target_id),
            _floats("p_target", table.p_target),
            _floats("nll_target_bits", table.nll_target_bits),
            _integers("rank_target", table.rank_target, there_R),
            *(_contrast(table) if self._contrast else ()),
            _floats("kl_to_final_bits", table.kl_to_final_bits),
            _floats("kl_from_final_bits", table.kl_from_final_bits),
            _floats("js_bits", table.js_bits),
            _Column("top1_agree", "%s", table.top1_agree.tolist()),
            _floats("cos_to_final", table.cos_to_final),
            _floats("resid_norm", table.resid_norm),
            _floats("rest_mass", table.rest_mass),
            *self._likeliest(table),
        ]

    def _likeliest(self, table: LensTable) -> list[_Column]:
        assert table.top_ids.shape[1] == self._top_k, "another k than in the header"
        columns = []
        for place in range(self._top_k):
            ids_R, rank = table.top_ids[:, place], place + 1
            columns.append(_integers(f"top{rank}_id", ids_R))
            columns.append(self._tokens(f"top{rank}", ids_R))
            columns.append(_floats(f"prob{rank}", table.top_p[:, place]))
        return columns

    def _tokens(self, name: str, ids_R: NDArray[Any]) -> _Column:
        return _Column(name, "%s", [self._cell(token) for token in ids_R.tolist()])

    def _cell(self, token: int) -> str:
        if token not in self._cells:
            self._cells[token] = _quoted(escaped(self._text_of(token))) if token >= 0 else ""
        return self._cells[token]


class RecordsCsv(_LensCsv):
    """`output-<model>-records.csv`: a line for each sample, stream, layer and position."""

    def write(self, table: LensTable) -> None:
        """Write the records of a batch.

        Raises:
            ActcliError: they cannot be written.
        """
        for start in range(0, len(table), _CHUNK):
            self._write_columns(self._of(table.select(slice(start, start + _CHUNK))))

    def _of(self, table: LensTable) -> list[_Column]:
        return self._columns(table, self._tokens("token", table.token_id))

    def _no_records(self) -> list[_Column]:
        return self._of(_empty_table(self._top_k))


class PureNextTokenCsv(_LensCsv):
    """`output-<model>-pure-next-token.csv`: the last position of each sample alone.

    The columns of `RecordsCsv`, the token shown as `⟨NEXT⟩`, and

        copy_collapse     the likeliest token stands in the prompt, and the model is sure of it
        entropy_collapse  entropy of at most so many bits
        is_answer         answer_rank = 1
        p_top1, p_top5    probability of the likeliest token; of the five likeliest together, where
                          as many are listed
        p_answer          p_target, which is that of the answer's first token
        answer_rank       rank_target: 1 + number of tokens with larger logits

    The two collapses are judged by `actcli.analysis.lens_milestones`.
    """

    def write(
        self,
        table: LensTable,
        *,
        copy_collapse: NDArray[np.bool_],
        entropy_collapse: NDArray[np.bool_],
    ) -> None:
        """Write those of the records that are at the last recorded position of their sample.

        Args:
            table: all records of some samples.
            copy_collapse: for each record (R,), whether it is one, as with the next.
            entropy_collapse: as said above.

        Raises:
            ActcliError: they cannot be written.
        """
        last_R = np.flatnonzero(at_end(table))
        for start in range(0, len(last_R), _CHUNK):
            chunk = last_R[start : start + _CHUNK]
            self._write_columns(
                self._of(table.select(chunk), copy_collapse[chunk], entropy_collapse[chunk])
            )

    def _of(
        self, table: LensTable, copy_R: NDArray[np.bool_], entropy_R: NDArray[np.bool_]
    ) -> list[_Column]:
        there_R = table.target_id >= 0
        top5_R = table.top_p[:, :5].sum(axis=1, dtype=np.float64)
        is_five = self._top_k >= 5
        return [
            *self._columns(table, _Column("token", "%s", [NEXT] * len(table))),
            _Column("copy_collapse", "%s", copy_R.tolist()),
            _Column("entropy_collapse", "%s", entropy_R.tolist()),
            _Column("is_answer", "%s", _or_empty(table.rank_target == 1, there_R)),
            _floats("p_top1", table.top_p[:, 0]),
            _floats("p_top5", top5_R if is_five else np.full(len(table), np.nan)),
            _floats("p_answer", table.p_target),
            _integers("answer_rank", table.rank_target, there_R),
        ]

    def _no_records(self) -> list[_Column]:
        none = np.zeros(0, dtype=np.bool_)
        return self._of(_empty_table(self._top_k), none, none)


def _places(table: LensTable) -> list[_Column]:
    streams = [STREAMS[number] for number in table.stream.tolist()]
    layers = table.layer.tolist()
    places = [place_name(*each) for each in zip(streams, layers, strict=True)]
    return [
        _integers("sample", table.sample),
        _Column("stream", "%s", streams),
        _Column("layer", "%d", layers),
        _Column("place", "%s", places),
        _integers("pos", table.pos),
        _integers("token_id", table.token_id),
    ]


def _contrast(table: LensTable) -> tuple[_Column, _Column]:
    there_R = table.rank_contrast > 0
    return (
        _floats("p_contrast", table.p_contrast),
        _integers("rank_contrast", table.rank_contrast, there_R),
    )


def _integers(
    name: str, column_R: NDArray[Any], there_R: NDArray[np.bool_] | None = None
) -> _Column:
    if there_R is None or there_R.all():
        return _Column(name, "%d", column_R.tolist())
    return _Column(name, "%s", _or_empty(column_R, there_R))


def _floats(name: str, column_R: NDArray[Any]) -> _Column:
    values_R = column_R + 0.0  # no number is -0
    missing_R = np.isnan(values_R)
    if not missing_R.any():
        return _Column(name, "%.9g", values_R.tolist())
    numbers = [f"{value:.9g}" for value in values_R.tolist()]
    return _Column(name, "%s", _or_empty(np.array(numbers, dtype=object), ~missing_R))


def _or_empty(column_R: NDArray[Any], there_R: NDArray[np.bool_]) -> list[Any]:
    return [
        value if there else ""
        for value, there in zip(column_R.tolist(), there_R.tolist(), strict=True)
    ]


def _quoted(text: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([text])
    return line.getvalue()


def _empty_table(top_k: int) -> LensTable:
    columns: dict[str, Any] = {each.name: np.zeros(0) for each in fields(LensTable)}
    columns["top_ids"] = columns["top_p"] = np.zeros((0, top_k))
    return LensTable(**columns)
