"""Attention of chosen texts as a dump holds it: of each text its own tokens, without padding.

Tensor legend: L layers, A heads, T queries, S keys, N samples of the dump.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.attention_maps import MASK, TOKEN_IDS, WEIGHTS, read_layers_of
from actcli.errors import DumpError
from actcli.reports.attention import TextMaps
from actcli.store.reader import Dump

_ROUNDING, _FP16_ROUNDING, _BF16_ROUNDING = 1e-4, 2e-3, 8e-3
"""How far a row of weights may be from 1 by rounding: two units in the last place of 1."""


class ChosenTexts(NamedTuple):
    """Some rows of a dump of text, in the order asked for."""

    samples: tuple[int, ...]
    """Their numbers."""

    token_ids: tuple[NDArray[np.int32], ...]
    """The tokens of each (T,), without padding."""

    tokens: tuple[tuple[str, ...], ...]
    """The same as words."""


def read_texts(
    dump: Dump, samples: Sequence[int], *, name: Callable[[int], str] = "#{}".format
) -> ChosenTexts:
    """Read the tokens of some rows; `mask`, where there is one, tells which are real.

    Args:
        dump: with `token_ids` (N, T).
        samples: rows.
        name: how a token id is written.

    Raises:
        DumpError: a row has no tokens, or padding before its end.
    """
    token_ids = tuple(_own_tokens(dump, row) for row in samples)
    names = tuple(tuple(name(int(each)) for each in ids_T) for ids_T in token_ids)
    return ChosenTexts(tuple(samples), token_ids, names)


def stored_text_attention(dump: Dump, texts: ChosenTexts, *, layers: Sequence[int]) -> TextMaps:
    """Read the weights of some rows and layers, all heads.

    Raises:
        DumpError: attention of a real token goes to padding, or a real token has none.
    """
    weights = []
    for row, ids_T in zip(texts.samples, texts.token_ids, strict=True):
        whole_LATS = read_layers_of(dump, WEIGHTS, row, layers)
        own_LATS = whole_LATS[:, :, : len(ids_T), : len(ids_T)]
        _check_padding(dump, row, own_LATS, whole_LATS[:, :, : len(ids_T), len(ids_T) :])
        weights.append(np.ascontiguousarray(own_LATS))
    recorded = dump.manifest.get("model", {}).get("has_sinks")
    return text_maps(texts, weights, layers=layers, has_sinks=bool(recorded))


def text_maps(
    texts: ChosenTexts,
    weights: Iterable[NDArray[np.float32]],
    *,
    layers: Sequence[int],
    has_sinks: bool,
) -> TextMaps:
    """Put texts and weights together; rows that lack more than rounding gave it to a sink.

    Args:
        texts: the samples.
        weights: (L, A, T, S) of each.
        layers: model layers, counted from 0.
        has_sinks: whether the model is known to have sinks; many have them and do not say so.
    """
    weights = tuple(weights)
    rounding = max(_rounding_of(each) for each in weights)
    missing = max(float((1 - each.sum(axis=-1)).max(initial=0.0)) for each in weights)
    return TextMaps(
        weights,
        texts.token_ids,
        texts.tokens,
        texts.samples,
        tuple(layers),
        has_sinks=has_sinks or missing > rounding,
        rounding=rounding,
    )


def _own_tokens(dump: Dump, row: int) -> NDArray[np.int32]:
    ids_T = dump.tensor(TOKEN_IDS).read_rows(row, row + 1)[0]
    real_T = ids_T >= 0
    if MASK in dump.header.tensors:
        if dump.check_key(MASK).shape != dump.check_key(TOKEN_IDS).shape:
            raise DumpError(
                f"{dump.path}: {MASK} is {list(dump.check_key(MASK).shape)} and {TOKEN_IDS} "
                f"{list(dump.check_key(TOKEN_IDS).shape)}, expected the same"
            )
        real_T &= dump.tensor(MASK).read_rows(row, row + 1)[0] != 0
    length = int(real_T.sum())
    if not length or not real_T[:length].all():
        what = "padding before its end" if length else "no tokens"
        raise DumpError(f"{dump.path}: sample {row} has {what}, expected padding on the right")
    own_T: NDArray[np.int32] = ids_T[:length].astype(np.int32)
    return own_T


def _check_padding(
    dump: Dump, row: int, own_LATS: NDArray[np.float32], beyond: NDArray[np.float32]
) -> None:
    if beyond.size and float(np.abs(beyond).max()) > _BF16_ROUNDING:
        raise DumpError(
            f"{dump.path}: tokens of sample {row} attend to its padding, so the model did not see "
            f"its mask; dump it again"
        )
    if not own_LATS.sum(axis=-1).all():
        raise DumpError(f"{dump.path}: a token of sample {row} attends to nothing: is it padding?")


def _rounding_of(weights_LATS: NDArray[np.float32]) -> float:
    """By what the numbers are, not by how they are stored: a bf16 model may be dumped as fp32."""
    codes = np.ascontiguousarray(weights_LATS).view(np.uint32)
    if not (codes & 0xFFFF).any():
        return _BF16_ROUNDING
    is_half = (weights_LATS.astype(np.float16).astype(np.float32) == weights_LATS).all()
    return _FP16_ROUNDING if is_half else _ROUNDING
