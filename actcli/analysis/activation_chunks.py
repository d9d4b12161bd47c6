"""Run through the activations of a dump in chunks that fit into the processor's cache.

A chunk holds all chosen layers of whole (sample, token) places, since the layer rule of `outliers`
looks across the layers. Only the chosen layers' bytes are read. Where a mask tells which tokens are
real, the others are left out of what is read.

Axis letters: N samples, L chosen layers, T tokens, H hidden dimensions, P real (sample, token)
places.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.float_codes import FORMATS, Codes, FloatFormat
from actcli.analysis.token_mask import TokenMask
from actcli.errors import DumpError
from actcli.store.reader import StoredTensor

CHUNK_ELEMENTS = 1 << 19
"""Elements that a chunk has about."""

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Samples and tokens."""


@dataclass(frozen=True)
class Chunk:
    """Some samples and some of their tokens."""

    rows: range
    tokens: range


class Piece(NamedTuple):
    """What was read of a chunk."""

    codes_NLTH: Codes
    """(rows, L, tokens, H) of the chunk, or (P, L, 1, H) of its real places alone."""

    places: Places | None = None
    """Samples and tokens of those; None if all places of the chunk are real."""


class ActivationChunks:
    """The activations (N, L, T, H) of a stored tensor; (N, T, H) counts as one layer."""

    def __init__(
        self,
        tensor: StoredTensor,
        layers: Sequence[int] | None = None,
        *,
        mask: TokenMask | None = None,
    ) -> None:
        """Look at a tensor, or at some of its layers.

        Args:
            tensor: (N, L, T, H) or (N, T, H), of any float dtype.
            layers: indices on the layer axis, rising; all by default.
            mask: which tokens are real; all, if not given.

        Raises:
            DumpError: it is of another shape or dtype, or the mask does not fit it.
        """
        self.format = float_format(tensor)
        self._tensor = tensor
        n, n_layers, n_tokens, n_dims = _shape_NLTH(tensor)
        self._stored_layers = n_layers
        self._layers = tuple(range(n_layers)) if layers is None else tuple(layers)
        assert list(self._layers) == sorted(set(self._layers)), "layers rise, each once"
        self.shape = (n, len(self._layers), n_tokens, n_dims)
        """(N, L, T, H), with the chosen layers."""
        if mask is not None and mask.shape != (n, n_tokens):
            raise DumpError(
                f"{tensor.name!r} is {list(tensor.shape)} and the dump's mask {list(mask.shape)}, "
                f"expected {[n, n_tokens]}: the mask says which tokens of which samples are real"
            )
        self._mask = mask if mask is not None and mask.n_masked else None

    @property
    def n_places(self) -> int:
        """Real (sample, token) places."""
        return self.shape[0] * self.shape[2] if self._mask is None else self._mask.n_real

    @property
    def n_masked(self) -> int:
        """(sample, token) places that the mask leaves out."""
        return self.shape[0] * self.shape[2] - self.n_places

    @property
    def size(self) -> int:
        """Elements of the chosen layers at real places."""
        return self.n_places * self.shape[1] * self.shape[3]

    def layer_names(self, names: Sequence[int] | None) -> tuple[int, ...]:
        """Return the chosen layers' numbers, given those of all stored ones (0, 1, ... if None)."""
        return self._layers if names is None else tuple(names[each] for each in self._layers)

    def plan(self, elements: int = CHUNK_ELEMENTS) -> list[Chunk]:
        """Cut into chunks of about that many elements; one place at least each."""
        n, n_layers, n_tokens, n_dims = self.shape
        tokens = max(1, min(n_tokens, elements // max(1, n_layers * n_dims)))
        rows = max(1, elements // max(1, n_layers * n_dims * tokens)) if tokens == n_tokens else 1
        return [
            Chunk(range(row, min(row + rows, n)), range(token, min(token + tokens, n_tokens)))
            for row in range(0, n, rows)
            for token in range(0, n_tokens, tokens)
        ]

    def sample_places(self, count: int) -> list[Chunk]:
        """Return about that many single real places, spread over all of them."""
        stride = max(1, self.n_places // max(1, count))
        n_drawn = self.n_places // stride
        jitter = np.random.default_rng(0).integers(0, stride, size=n_drawn)
        rows, tokens = self._find_places(np.arange(n_drawn) * stride + jitter)
        return [
            Chunk(range(row, row + 1), range(token, token + 1))
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)
        ]

    def read(self, chunk: Chunk, buffer: Codes) -> Piece:
        """Read the real places of a chunk, without copying where all its bytes stand together.

        Returns:
            the codes: a view of the file or of the flat buffer, or a copy of the real places.
        """
        is_real = None if self._mask is None else self._read_mask(self._mask, chunk)
        if is_real is None:
            return Piece(self._read_all(chunk, buffer))
        rows_P, tokens_P = is_real.nonzero()
        if not rows_P.size:
            return Piece(buffer[:0].reshape(0, self.shape[1], 1, self.shape[3]), (rows_P, tokens_P))
        codes_PLH = self._read_all(chunk, buffer)[rows_P, :, tokens_P]
        places = (rows_P + chunk.rows.start, tokens_P + chunk.tokens.start)
        return Piece(codes_PLH[:, :, None], places)

    def expect(self, chunks: Iterable[Chunk]) -> None:
        """Say that these chunks will be wanted soon."""
        for chunk in chunks:
            for span in self._spans(chunk):
                self._tensor.expect_span(*span)

    def forget(self, chunk: Chunk) -> None:
        """Give back the memory of a chunk that was read."""
        for span in self._spans(chunk):
            self._tensor.forget_span(*span)

    def walk(self, chunks: Sequence[Chunk]) -> Iterator[Piece]:
        """Read chunks one after the other; each is valid until the next."""
        buffer = np.empty(self.width(chunks), self.format.codes)
        for chunk in chunks:
            yield self.read(chunk, buffer)
            self.forget(chunk)

    def width(self, chunks: Iterable[Chunk]) -> int:
        """Return the elements of the largest of the chunks."""
        places = max((len(each.rows) * len(each.tokens) for each in chunks), default=0)
        return places * self.shape[1] * self.shape[3]

    def gather(self, places: NDArray[np.int64]) -> Codes:
        """Return the codes at flat row-major places of (N, L, T, H); they need not rise.

        With a mask the places are those of the real tokens alone.
        """
        order = np.argsort(places, kind="stable")
        wanted = self._stored_places(places[order])
        blocks = wanted // CHUNK_ELEMENTS
        found = np.empty(places.size, self.format.codes)
        n_stored = int(np.prod(self._tensor.shape, dtype=object))
        buffer = np.empty(min(CHUNK_ELEMENTS, n_stored), self.format.codes)
        for block in np.unique(blocks).tolist():
            first = block * CHUNK_ELEMENTS
            codes = buffer[: min(CHUNK_ELEMENTS, n_stored - first)]
            self._tensor.read_spans([(first, codes.size)], out=codes)
            start, stop = np.searchsorted(blocks, [block, block + 1])
            found[order[start:stop]] = codes[wanted[start:stop] - first]
        return found

    def _stored_places(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """From rising places of the chosen layers and real tokens to those of the whole tensor."""
        _n, n_layers, n_tokens, n_dims = self.shape
        if self._mask is None:
            planes, inside = np.divmod(places, n_tokens * n_dims)
            rows, layers = np.divmod(planes, n_layers)
        else:
            rows, layers, inside = self._in_real_places(places, self._mask)
        stored = rows * self._stored_layers + np.array(self._layers)[layers]
        elements: NDArray[np.int64] = stored * (n_tokens * n_dims) + inside
        return elements

    def _in_real_places(
        self, places: NDArray[np.int64], mask: TokenMask
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Samples, layers and places within (T, H) of rising places among the real tokens."""
        _n, n_layers, _n_tokens, n_dims = self.shape
        rows = np.searchsorted(mask.starts_N * (n_layers * n_dims), places, side="right") - 1
        left = places - mask.starts_N[rows] * (n_layers * n_dims)
        layers, inside = np.divmod(left, mask.counts_N[rows] * n_dims)
        numbers, dims = np.divmod(inside, n_dims)
        return rows, layers, mask.find(rows, numbers) * n_dims + dims

    def _find_places(self, numbers: NDArray[np.int64]) -> Places:
        """Samples and tokens of real places, by their rising numbers."""
        if self._mask is None:
            return np.divmod(numbers, self.shape[2])
        rows = np.searchsorted(self._mask.starts_N, numbers, side="right") - 1
        return rows, self._mask.find(rows, numbers - self._mask.starts_N[rows])

    def _read_mask(self, mask: TokenMask, chunk: Chunk) -> NDArray[np.bool_] | None:
        """Which places of a chunk are real; None if all are."""
        is_real = mask.read(chunk.rows)[:, chunk.tokens.start : chunk.tokens.stop]
        return None if is_real.all() else is_real

    def _read_all(self, chunk: Chunk, buffer: Codes) -> Codes:
        shape = (len(chunk.rows), self.shape[1], len(chunk.tokens), self.shape[3])
        spans = list(self._spans(chunk))
        codes = self._tensor.view_span(*spans[0]) if len(spans) == 1 else None
        if codes is None:
            codes = buffer[: int(np.prod(shape))]
            self._tensor.read_spans(spans, out=codes)
        return codes.view(self.format.codes).reshape(shape)

    def _spans(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Give (first element, how many), those that touch as one."""
        _n, n_layers, n_tokens, n_dims = self.shape
        if (n_layers, len(chunk.tokens)) == (self._stored_layers, n_tokens):
            sample = n_layers * n_tokens * n_dims
            yield chunk.rows.start * sample, len(chunk.rows) * sample
            return
        width = len(chunk.tokens) * n_dims
        start = end = -1
        for row in chunk.rows:
            for layer in self._layers:
                plane = row * self._stored_layers + layer
                first = (plane * n_tokens + chunk.tokens.start) * n_dims
                if first != end:
                    if start != end:
                        yield start, end - start
                    start = first
                end = first + width
        if start != end:
            yield start, end - start


def float_format(tensor: StoredTensor) -> FloatFormat:
    """Return the layout of a tensor's floats.

    Raises:
        DumpError: they are no floats, or 8-bit ones.
    """
    if tensor.dtype not in FORMATS:
        raise DumpError(
            f"{tensor.name!r} holds {tensor.dtype} values, expected activations of dtype "
            f"{', '.join(FORMATS)}: choose another --key"
        )
    return FORMATS[tensor.dtype]


def has_layers(shape: Sequence[int]) -> bool:
    """Whether activations of that shape have a layer axis."""
    return len(shape) == len("NLTH")


def _shape_NLTH(tensor: StoredTensor) -> tuple[int, ...]:
    shape = tensor.shape
    if has_layers(shape):
        return shape
    if len(shape) == len("NTH"):
        return shape[0], 1, *shape[1:]
    raise DumpError(
        f"{tensor.name!r} has the shape {list(shape)}, expected (samples, layers, tokens, hidden) "
        f"or (samples, tokens, hidden): choose another --key"
    )


def codes_of(values: NDArray[Any]) -> Codes:
    """Return the codes of an array of numpy floats."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
