"""What of a dump attention can come from, and attention of chosen boards as it is stored.

Tensor legend: B samples, L layers, A heads, T queries, S keys.
"""

from collections.abc import Sequence
from math import isqrt, prod

import numpy as np
from numpy.typing import NDArray

from actcli.errors import DumpError
from actcli.reports.attention import AttentionMaps
from actcli.store.reader import Dump, numpy_dtype
from actcli.store.values import as_float32

WEIGHTS, ATTN_INPUT, BOARDS = "attn_weights", "attn_norm", "boards"
TOKEN_IDS, MASK = "token_ids", "mask"
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
    """Refuse a dump whose attention, samples and layers do not fit together, before any work.

    Raises:
        DumpError: an axis is missing, of another length than that of the samples, or empty.
    """
    key = _attention_key(dump)
    samples = samples_key(dump)
    shape, tokens_shape = dump.check_key(key).shape, dump.check_key(samples).shape
    expected = "(N, layers, heads, T, T)" if key == WEIGHTS else "(N, layers, T, hidden)"
    tokens = shape[3:] if key == WEIGHTS else shape[2:3]
    fits = (
        len(shape) == (5 if key == WEIGHTS else 4)
        and len(tokens_shape) == 2
        and shape[0] == tokens_shape[0]
        and set(tokens) == {tokens_shape[1]}
    )
    if not fits:
        raise DumpError(
            f"{dump.path}: {key} is {list(shape)} and {samples} {list(tokens_shape)}, expected "
            f"{expected} and (N, T)"
        )
    n_cells = tokens_shape[1]
    if samples == BOARDS and (isqrt(n_cells) ** 2 != n_cells or not n_cells):
        raise DumpError(f"{dump.path}: boards of {n_cells} cells are not square")
    if not shape[0]:
        raise DumpError(f"{dump.path} holds no samples")


def samples_key(dump: Dump) -> str:
    """Which tensor tells what the samples were: `boards` or `token_ids`.

    Raises:
        DumpError: the dump has neither.
    """
    for key in (BOARDS, TOKEN_IDS):
        if key in dump.header.tensors:
            return key
    raise DumpError(
        f"{dump.path} has no tensor {BOARDS!r} and no {TOKEN_IDS!r}: attn-plot draws attention on "
        f"boards or on tokens, and a dump keeps them beside the activations"
    )


def holds_weights(dump: Dump) -> bool:
    """Whether the weights are in the dump, so that no model is needed."""
    return WEIGHTS in dump.header.tensors


def read_boards(dump: Dump, samples: Sequence[int]) -> NDArray[np.uint8]:
    """The boards (B, T) of these rows of the dump."""
    boards = dump.tensor(BOARDS)
    return np.concatenate([boards.read_rows(row, row + 1) for row in samples])


def read_layers(
    dump: Dump, key: str, samples: Sequence[int], layers: Sequence[int]
) -> NDArray[np.float32]:
    """Return some rows and model layers of a tensor with a layer axis, in the order given."""
    return np.stack([read_layers_of(dump, key, row, layers) for row in samples])


def read_layers_of(dump: Dump, key: str, row: int, layers: Sequence[int]) -> NDArray[np.float32]:
    """Return some model layers of one row of a tensor with a layer axis: nothing else is read."""
    tensor, held = dump.tensor(key), attention_layers(dump)
    shape, size = tensor.shape[2:], prod(tensor.shape[2:])
    first = row * tensor.shape[1]
    spans = [((first + held.index(layer)) * size, size) for layer in layers]
    flat = np.empty(len(layers) * size, numpy_dtype(tensor.dtype))
    tensor.read_spans(spans, out=flat)
    return as_float32(flat.reshape(len(layers), *shape), tensor.dtype)


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
        f"'actcli dump --outputs {WEIGHTS}' (which is there also where no norm comes before "
        f"attention, as in BERT and OLMo-2); it holds {', '.join(dump.header.tensors)}"
    )
