"""From captured activations of a batch of texts to the records of the logit lens.

Nothing runs and no file is read here: what was captured goes in, a table comes out, in the order
sample, stream, layer, position. A target is the next token of the text; at a text's last token
there is none, unless an answer is given.

Tensor legend: B texts, T tokens, H hidden, R rows (one text at one position), P states, k largest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.lens_formulas import Columns
from actcli.analysis.lens_statistics import Decode, LensKernel
from actcli.errors import UsageError
from actcli.models.translators import Translators
from actcli.models.unembedding import Unembedding
from actcli.reports.lens_table import STREAMS, LensTable
from actcli.terminal.fields import IntRanges

Positions = Literal["last", "all"] | IntRanges
"""Which positions of a text are read; of a range, those of the text's own length."""


class State(NamedTuple):
    """A place in the model; layers as in `reports.lens_table`."""

    stream: str
    layer: int


@dataclass(frozen=True)
class Lens:
    """How a state is taken to the head."""

    norm: bool = True
    """Through the model's final norm; without it the lens is called raw."""

    translators: Translators | None = None
    """Maps that come before the norm, for layers of the residual stream."""

    def decode(self, unembedding: Unembedding, state: State) -> Decode | None:
        """Return the way of this state; None for the plain one, through the final norm."""
        if self.translators is not None and self.translators.has(state.layer):
            return partial(_translated, unembedding, self.translators, state.layer)
        return None if self.norm else _raw


@dataclass(frozen=True)
class LensBatch:
    """Texts, and the activations of all their tokens."""

    samples_B: NDArray[np.int64]
    """Number of each text."""

    tokens_BT: NDArray[np.int64]
    """Padded on the right, with anything."""

    lengths_B: NDArray[np.int64]
    final_BTH: Tensor
    """The residual stream after the last block."""

    states: Mapping[State, Tensor]
    """Each (B, T, H); the one that is the final stream may be the same object."""

    answers_B: NDArray[np.int64] | None = None
    """Target at the last position; -1 for none."""

    contrasts_B: NDArray[np.int64] | None = None
    """What is followed beside the target at the last position; -1 for none."""


class _Rows(NamedTuple):
    """Where the rows are: (R,) each, by text and then position."""

    text: NDArray[np.int64]
    pos: NDArray[np.int64]


def read_lens(
    kernel: LensKernel,
    unembedding: Unembedding,
    batch: LensBatch,
    *,
    positions: Positions = "last",
    lens: Lens = Lens(),
) -> LensTable:
    """Read the states of a batch.

    Args:
        kernel: made for this unembedding.
        unembedding: the model's final norm and head.
        batch: the texts and their activations.
        positions: which positions of each text.
        lens: how states are taken to the head; the model's own output Q never changes with it.

    Raises:
        UsageError: a text has no such position, or a translator for another stream than resid.
    """
    states = sorted(batch.states, key=lambda each: (STREAMS.index(each.stream), each.layer))
    if lens.translators is not None and any(each.stream != "resid" for each in states):
        raise UsageError(
            "a translator is made for the residual stream: leave the other streams out"
        )
    rows = _choose_rows(batch, positions)
    final_RH = _at(batch.final_BTH, rows)
    targets_R = _targets(batch, rows)
    read = kernel.read(
        final_RH,
        [
            final_RH if batch.states[each] is batch.final_BTH else _at(batch.states[each], rows)
            for each in states
        ],
        targets_R=targets_R,
        contrasts_R=_contrasts(batch, rows),
        decode=[lens.decode(unembedding, each) for each in states],
    )
    return _as_table(read, batch, rows, states, targets_R)


def choose_positions(length: int, positions: Positions, *, sample: int) -> Sequence[int]:
    """Return the positions of one text, rising.

    Raises:
        UsageError: the text has no such position.
    """
    if positions == "last":
        return (length - 1,)
    if positions == "all":
        return range(length)
    assert isinstance(positions, IntRanges)
    return sorted(positions.resolve(length, name=f"in sample {sample}, position"))


def _choose_rows(batch: LensBatch, positions: Positions) -> _Rows:
    chosen = [
        choose_positions(int(length), positions, sample=int(sample))
        for sample, length in zip(batch.samples_B, batch.lengths_B, strict=True)
    ]
    counts = [len(each) for each in chosen]
    flat = np.array([pos for each in chosen for pos in each], dtype=np.int64)
    return _Rows(np.repeat(np.arange(len(chosen)), counts), flat)


def _at(state_BTH: Tensor, rows: _Rows) -> Tensor:
    """The rows of a state; all of them without a copy."""
    if len(rows.pos) == state_BTH.shape[0] * state_BTH.shape[1]:
        return state_BTH.flatten(0, 1)
    text, pos = (torch.as_tensor(each, device=state_BTH.device) for each in rows)
    return state_BTH[text, pos]


def _targets(batch: LensBatch, rows: _Rows) -> NDArray[np.int64]:
    """The next token; at the last position the answer."""
    is_last = rows.pos == batch.lengths_B[rows.text] - 1
    after = np.minimum(rows.pos + 1, batch.tokens_BT.shape[1] - 1)
    ends = _none(batch) if batch.answers_B is None else batch.answers_B
    return np.where(is_last, ends[rows.text], batch.tokens_BT[rows.text, after])


def _contrasts(batch: LensBatch, rows: _Rows) -> NDArray[np.int64] | None:
    if batch.contrasts_B is None:
        return None
    is_last = rows.pos == batch.lengths_B[rows.text] - 1
    return np.where(is_last, batch.contrasts_B[rows.text], -1)


def _none(batch: LensBatch) -> NDArray[np.int64]:
    return np.full(len(batch.samples_B), -1, dtype=np.int64)


def _as_table(
    read: Columns,
    batch: LensBatch,
    rows: _Rows,
    states: Sequence[State],
    targets_R: NDArray[np.int64],
) -> LensTable:
    n_states = len(states)

    def by_row(values_R: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
        return np.tile(values_R, n_states).astype(dtype)

    def by_state(values: Sequence[int], dtype: type[np.generic]) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), len(rows.pos))

    table = LensTable(
        sample=by_row(batch.samples_B[rows.text], np.int64),
        stream=by_state([STREAMS.index(each.stream) for each in states], np.int8),
        layer=by_state([each.layer for each in states], np.int16),
        pos=by_row(rows.pos, np.int32),
        token_id=by_row(batch.tokens_BT[rows.text, rows.pos], np.int32),
        target_id=by_row(targets_R, np.int32),
        **{name: column.reshape(-1, *column.shape[2:]) for name, column in read.items()},
    )
    return table.ordered()


def _raw(state_RH: Tensor) -> Tensor:
    return state_RH.float()


def _translated(
    unembedding: Unembedding, translators: Translators, layer: int, state_RH: Tensor
) -> Tensor:
    return unembedding.normed(translators.apply(layer, state_RH))
