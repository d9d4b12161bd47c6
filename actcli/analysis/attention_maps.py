"""Attention of chosen boards as a dump holds it, and what of a dump attention can come from.

Tensor legend: B samples, L layers, A heads, T queries, S keys.
"""

from collections.abc import Sequence
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from actcli.errors import DumpError
from actcli.reports.attention import AttentionMaps
from actcli.store.reader import Dump
from actcli.store.values import as_float32

WEIGHTS, ATTN_INPUT, BOARDS = "attn_weights", "attn_norm", "boards"
_ROUNDING = {"F64": 1e-4, "F32": 1e-4, "F16": 2e-3, "BF16": 8e-3}
"""How far a row of stored weights may be from 1 by rounding: two units in the last place of 1.

Where the dump does not say whether its model has sinks, a row that lacks more gave it to one."""


def attention_layers(dump: Dump) -> list[int]:
    """Model layers, counted from 0, whose attention the dump can give, in the order of its axis.

    Raises:
        DumpError: it has neither `attn_weights` nor `attn_norm`, or not of all tokens.
    """
    key = _attention_key(dump)
    positions = dump.manifest.get("positions")
    if positions is not None:
        raise DumpError(
            f"{dump.path} holds only the positions {positions}: dump all of them (no --positions)"
        )
    n_layers = dump.check_key(key).shape[1]
    named = dump.manifest.get("layers")
    return list(named) if isinstance(named, list) and len(named) == n_layers else [*range(n_layers)]


def check_attention_dump(dump: Dump) -> None:
    """Refuse a dump whose attention, boards and layers do not fit together, before any work.

    Raises:
        DumpError: an axis is missing, of another length than that of the boards, or empty.
    """
    key = _attention_key(dump)
    shape, boards = dump.check_key(key).shape, dump.check_key(BOARDS).shape
    expected = "(N, layers, heads, T, T)" if key == WEIGHTS else "(N, layers, T, hidden)"
    tokens = shape[3:] if key == WEIGHTS else shape[2:3]
    fits = (
        len(shape) == (5 if key == WEIGHTS else 4)
        and len(boards) == 2
        and shape[0] == boards[0]
        and set(tokens) == {boards[1]}
    )
    if not fits:
        raise DumpError(
            f"{dump.path}: {key} is {list(shape)} and {BOARDS} {list(boards)}, expected {expected} "
            f"and (N, T)"
        )
    if isqrt(boards[1]) ** 2 != boards[1] or not boards[1]:
        raise DumpError(f"{dump.path}: boards of {boards[1]} cells are not square")
    if not shape[0]:
        raise DumpError(f"{dump.path} holds no samples")


def holds_weights(dump: Dump) -> bool:
    """Whether the weights are in the dump, so that no model is needed."""
    return WEIGHTS in dump.header.tensors


def read_boards(dump: Dump, samples: Sequence[int]) -> NDArray[np.uint8]:
    """The boards (B, T) of these rows of the dump.

    Raises:
        DumpError: it has no boards.
    """
    if BOARDS not in dump.header.tensors:
        raise DumpError(f"{dump.path} has no {BOARDS!r}: attn-plot draws attention on boards")
    boards = dump.tensor(BOARDS)
    return np.concatenate([boards.read_rows(row, row + 1) for row in samples])


def read_layers(
    dump: Dump, key: str, samples: Sequence[int], layers: Sequence[int]
) -> NDArray[np.float32]:
    """Return some rows and model layers of a tensor with a layer axis, in the order given."""
    tensor, held = dump.tensor(key), attention_layers(dump)
    places = [held.index(layer) for layer in layers]
    return np.concatenate(
        [as_float32(tensor.read_rows(row, row + 1), tensor.dtype)[:, places] for row in samples]
    )


def stored_attention(
    dump: Dump, samples: Sequence[int], boards_BT: NDArray[np.uint8], *, layers: Sequence[int]
) -> AttentionMaps:
    """Read the weights of some rows and layers, all heads."""
    tensor = dump.tensor(WEIGHTS)
    weights_BLATS = read_layers(dump, WEIGHTS, samples, layers)
    rounding = _ROUNDING.get(tensor.dtype, 8e-3)
    missing = float((1 - weights_BLATS.sum(axis=-1)).max(initial=0.0))
    recorded = dump.manifest.get("model", {}).get("has_sinks")
    return AttentionMaps(
        weights_BLATS,
        boards_BT,
        tuple(samples),
        tuple(layers),
        has_sinks=missing > rounding if recorded is None else bool(recorded),
        rounding=rounding,
    )


def _attention_key(dump: Dump) -> str:
    for key in (WEIGHTS, ATTN_INPUT):
        if key in dump.header.tensors:
            return key
    raise DumpError(
        f"{dump.path} has neither {WEIGHTS!r} nor {ATTN_INPUT!r}: dump one of them, for example "
        f"'actcli dump --outputs {WEIGHTS}'; it holds {', '.join(dump.header.tensors)}"
    )
