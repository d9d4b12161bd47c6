"""The tokens of a dump: of actcli's own, or of any file of activations that the store opens.

Tensor legend: P places of a piece (samples by tokens), H hidden.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.token_rules import TokenRules, split_place
from actcli.capture.token_stream_count import Piece, TokenBatch, TokenCount
from actcli.capture.token_stream_grid import TokenGrid, find_grid
from actcli.errors import DumpError, UsageError
from actcli.reports.sae_subject import TokenSet
from actcli.store.reader import Dump, StoredTensor, numpy_dtype, open_dump

PIECE_BYTES = 32 << 20
"""Of activations, in float32, read at a time."""

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _Column:
    """One layer of a stored tensor, as a row of H numbers for each place."""

    tensor: StoredTensor
    layer: int | None
    """On the layer axis; None if it has none."""

    @property
    def width(self) -> int:
        return self.tensor.shape[-1]

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """(N, T), or (P,)."""
        shape = self.tensor.shape
        return (shape[0], shape[2]) if self.layer is not None else shape[:-1]

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Give (first element, how many) of consecutive places."""
        if self.layer is None:
            yield start * self.width, (stop - start) * self.width
            return
        _n, n_layers, n_tokens, width = self.tensor.shape
        while start < stop:
            sample, token = divmod(start, n_tokens)
            count = min(n_tokens - token, stop - start)
            first = (sample * n_layers + self.layer) * n_tokens + token
            yield first * width, count * width
            start += count


class DumpedTokens:
    """The tokens of a dump that count; see `TokenStream`."""

    def __init__(
        self,
        dump: Dump,
        columns: Mapping[str, _Column],
        places: Mapping[str, tuple[str, int | None]],
        grid: TokenGrid,
        *,
        rules: TokenRules,
        normed: Sequence[str],
        device: torch.device,
    ) -> None:
        """Args as found; `open_dumped_tokens` finds them."""
        self.name = str(dump.path)
        self.model = _model_of(dump)
        self.places = dict(places)
        self.widths = {key: each.width for key, each in columns.items()}
        self.n_samples = grid.n_samples
        n_real = grid.count_real()
        if not n_real:
            raise DumpError(f"{dump.path} holds no token, padding alone: dump some samples first")
        self.n_tokens = n_real if rules.most_tokens is None else min(n_real, rules.most_tokens)
        self._dump, self._columns, self._grid = dump, columns, grid
        self._rules, self._normed, self._device = rules, normed, device
        rules.check_known(ids_known=grid.ids is not None, has_samples=grid.has_samples)
        self._count = self._new_count()

    def batches(self) -> Iterator[TokenBatch]:
        """Yield the tokens that count, in their order; may be asked for again."""
        self._count = self._new_count()
        return self._count.batches(self._pieces(), keys=list(self._columns))

    def token_set(self) -> TokenSet:
        """Return which tokens were counted, when all have been read."""
        return self._count.token_set()

    def ids_of(self, sample: int) -> NDArray[np.int64] | None:
        """Return the token ids of a sample, by position; None where they are not known."""
        return self._grid.ids_of(sample)

    def known_widths(self) -> dict[str, int]:
        """Return the width of everything in the dump that could be asked for."""
        return activation_widths(self._dump)

    def _new_count(self) -> TokenCount:
        words = self._rules.words(
            ids_known=self._grid.ids is not None, has_samples=self._grid.has_samples
        )
        return TokenCount(self._rules, self._normed, self.name, words)

    def _pieces(self) -> Iterator[Piece]:
        step = max(1, PIECE_BYTES // (4 * sum(each.width for each in self._columns.values())))
        step = min(step, self._grid.total)
        buffers = {key: _Buffer(each, step) for key, each in self._columns.items()}
        for start in range(0, self._grid.total, step):
            stop = min(start + step, self._grid.total)
            places = self._grid.places(start, stop)
            yield Piece(places, self._selector(buffers, start, stop))

    def _selector(
        self, buffers: Mapping[str, "_Buffer"], start: int, stop: int
    ) -> Callable[[str, NDArray[np.int64] | None], Tensor]:
        def select(key: str, chosen: NDArray[np.int64] | None) -> Tensor:
            acts_PH = buffers[key].read(start, stop)
            if chosen is not None:
                acts_PH = acts_PH[torch.from_numpy(chosen)]
            return acts_PH.to(self._device)

        return select


class _Buffer:
    """Room for the places of one piece: as stored, and in float32."""

    def __init__(self, column: _Column, n_places: int) -> None:
        self._column = column
        self._stored = np.empty(n_places * column.width, numpy_dtype(column.tensor.dtype))
        self._view = _as_torch(self._stored, column.tensor.dtype).view(n_places, column.width)
        is_wide = self._view.dtype == torch.float32
        self._wide = self._view if is_wide else torch.empty(self._view.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Return places (P, H); valid until the next call."""
        count = stop - start
        self._column.tensor.read_spans(
            self._column.spans(start, stop), out=self._stored[: count * self._column.width]
        )
        if self._wide is not self._view:
            self._wide[:count].copy_(self._view[:count])
        return self._wide[:count]


def open_dumped_tokens(
    dump: Path | Dump,
    *,
    keys: Sequence[str],
    layer: int | None = None,
    rules: TokenRules,
    normed: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> DumpedTokens:
    """Open the tokens of a dump.

    Args:
        dump: a file, or an open dump.
        keys: what to read: keys of tensors (tokens, d), (N, T, d) or (N, L, T, d), or a key with
            the number of a layer, `mlp_input.4`.
        layer: for tensors with a layer axis whose key names none; a layer of the model where the
            dump says which it holds, else a place on the axis; negative ones count from the end.
        rules: which tokens count.
        normed: the keys that `rules.max_norm_multiple` looks at, mostly those that dictionaries
            read; all by default.
        device: where the activations are handed out.

    Raises:
        DumpError: no such key, of another shape or dtype, keys that differ in tokens, or no token.
        UsageError: a layer is missing or not there, or rules that cannot be meant.
    """
    rules.check()
    with ExitStack() as stack:
        found = dump if isinstance(dump, Dump) else stack.enter_context(open_dump(dump))
        places = {key: _find_place(found, key, layer) for key in dict.fromkeys(keys)}
        columns = {key: _find_column(found, *place) for key, place in places.items()}
        grid = _common_grid(found, columns)
        stream = DumpedTokens(
            found,
            columns,
            places,
            grid,
            rules=rules,
            normed=list(columns) if normed is None else list(dict.fromkeys(normed)),
            device=torch.device(device),
        )
        weakref.finalize(stream, stack.pop_all().close)
        return stream


def activation_widths(dump: Dump) -> dict[str, int]:
    """Return the width of every tensor of floats that could be activations of tokens."""
    return {
        key: info.shape[-1]
        for key, info in dump.header.tensors.items()
        if info.dtype in _FLOATS and len(info.shape) in (2, 3, 4)
    }


def _find_place(dump: Dump, key: str, layer: int | None) -> tuple[str, int | None]:
    """Split `mlp_input.4` into key and layer, unless there is a tensor of just that name."""
    name, number = split_place(key)
    if key not in dump.header.tensors and name in dump.header.tensors and number is not None:
        if len(dump.header.tensors[name].shape) != 4:
            shape = list(dump.header.tensors[name].shape)
            raise UsageError(
                f"{name!r} in {dump.path} has no layers ({shape}): ask for it as {name!r}"
            )
        return name, _in_model(dump, name, number)
    if len(dump.check_key(key).shape) != 4:
        return key, None
    held = _held_layers(dump, key)
    if layer is None and len(held) > 1:
        raise UsageError(
            f"{key!r} in {dump.path} holds the layers {', '.join(map(str, held))}: say which with "
            f"--layer, or ask for {key}.{held[-1]}"
        )
    return key, held[0] if layer is None else _in_model(dump, key, layer)


def _held_layers(dump: Dump, key: str) -> tuple[int, ...]:
    """The layers that the layer axis of a tensor stands for."""
    count = dump.check_key(key).shape[1]
    recorded = dump.manifest.get("layers")
    fits = isinstance(recorded, list) and len(recorded) == count
    return tuple(map(int, recorded)) if fits and recorded else tuple(range(count))


def _in_model(dump: Dump, key: str, layer: int) -> int:
    """The layer of the model, for one that may count from the end of what the dump holds."""
    held = _held_layers(dump, key)
    if -len(held) <= layer < 0:
        return held[layer]
    if layer not in held:
        raise UsageError(
            f"{key!r} in {dump.path} does not hold layer {layer}; it holds "
            f"{', '.join(map(str, held)) or 'none'}"
        )
    return layer


def _find_column(dump: Dump, key: str, layer: int | None) -> _Column:
    tensor = dump.tensor(key)
    if tensor.dtype not in _FLOATS or len(tensor.shape) not in (2, 3, 4):
        raise DumpError(
            f"{key!r} in {dump.path} is {tensor.dtype} {list(tensor.shape)}, expected activations "
            f"(tokens, d), (samples, tokens, d) or (samples, layers, tokens, d) of dtype "
            f"{', '.join(_FLOATS)}; it has: {', '.join(activation_widths(dump)) or 'none such'}"
        )
    if not prod(tensor.shape):
        raise DumpError(
            f"{key!r} in {dump.path} is empty ({list(tensor.shape)}): dump some samples"
        )
    place = None if layer is None else _held_layers(dump, key).index(layer)
    return _Column(tensor, place)


def _common_grid(dump: Dump, columns: Mapping[str, _Column]) -> TokenGrid:
    """The samples and tokens that all of the tensors are of."""
    shapes = {key: each.grid_shape for key, each in columns.items()}
    widest = max(shapes, key=lambda key: len(shapes[key]))
    for key, shape in shapes.items():
        is_same = shape == shapes[widest]
        is_flat = len(shape) == 1 and shape[0] == prod(shapes[widest])
        if not is_same and not is_flat:
            raise DumpError(
                f"{key!r} in {dump.path} is of {' x '.join(map(str, shape))} tokens and {widest!r} "
                f"of {' x '.join(map(str, shapes[widest]))}: x and y must be of the same tokens"
            )
    return find_grid(dump, shapes[widest], key=columns[widest].tensor.name)


def _as_torch(stored: NDArray[Any], dtype: str) -> Tensor:
    if dtype == "BF16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)


def _model_of(dump: Dump) -> str | None:
    """The model that a dump says it is of."""
    recorded = dump.metadata.get("checkpoint")
    if recorded is not None:
        return recorded
    model = dump.manifest.get("model")
    return str(model["path"]) if isinstance(model, dict) and "path" in model else None
