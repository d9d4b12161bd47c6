"""Texts as samples: each one encoded, or all packed into full rows.

Only token ids and offsets are kept, flat, one after another: the texts themselves stay in their
files. A dump keeps, beside `token_ids` and `mask`, `offsets` (N, T, 2), first and last+1 character
of each token in its text, (0, 0) for a token that is not from the text and (-1, -1) at padding;
and with packed rows `document` (N, T), the number of the text that a token comes from.

Tensor legend: N samples, B rows of a batch, T tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actcli.errors import SamplesError, UsageError
from actcli.samples.flat_tokens import FlatTokens, GrowingTokens
from actcli.samples.source import Rows, SampleBatch
from actcli.samples.text_files import Texts
from actcli.samples.token_rows import PADDING, TokenRows
from actcli.samples.tokenizer import Encoding, TextTokenizer
from actcli.store.header import TensorInfo


class TextSamples(TokenRows):
    """Encoded texts."""

    def __init__(self, flat: FlatTokens, *, made: Mapping[str, Any], n_truncated: int = 0) -> None:
        """Take encoded texts; `encode_texts` and `pack_texts` make them.

        Args:
            flat: their tokens.
            made: how they were made, for the manifest.
            n_truncated: how many were longer than allowed, and cut.
        """
        super().__init__(flat.lengths_N)
        self._flat, self._made, self._n_truncated = flat, dict(made), n_truncated

    @property
    def largest_token(self) -> int:
        """The largest token id in any sample."""
        return int(self._flat.ids_F.max())

    @property
    def n_truncated(self) -> int:
        """How many texts were longer than allowed, and cut."""
        return self._n_truncated

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """`token_ids`, `mask`, and `offsets` and `document` where they are known."""
        stored = dict(super().stored)
        shape = (len(self), self.n_tokens)
        if self._flat.offsets_F2 is not None:
            stored["offsets"] = TensorInfo("I32", (*shape, 2))
        if self._flat.document_ends_D is not None:
            stored["document"] = TensorInfo("I32", shape)
        return stored

    def batch(self, rows: Rows) -> SampleBatch:
        """Tokens and mask as all rows of tokens have; offsets and documents for the dump."""
        batch = super().batch(rows)
        places_BT, mask_BT = self._places(np.asarray(rows, np.int64), width=self.n_tokens)
        stored = dict(batch.stored)
        if self._flat.offsets_F2 is not None:
            offsets_BT2 = self._flat.offsets_F2[places_BT]
            stored["offsets"] = np.where(mask_BT[..., None], offsets_BT2, np.int32(PADDING))
        if self._flat.document_ends_D is not None:
            ends_D = self._flat.document_ends_D
            stored["document"] = np.searchsorted(ends_D, places_BT, "right").astype(np.int32)
        return batch._replace(stored=stored)

    def manifest(self) -> dict[str, Any]:
        """Source, tokenizer, how texts became rows, and a hash of the tokens."""
        return self._made | {"n_truncated": self.n_truncated, "tokens_sha256": self._sha256()}

    def _padded(self, rows_B: NDArray[np.int64], *, width: int) -> NDArray[np.int32]:
        places_BT, mask_BT = self._places(rows_B, width=width)
        return np.where(mask_BT, self._flat.ids_F[places_BT], np.int32(PADDING))

    def _places(
        self, rows_B: NDArray[np.int64], *, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where the tokens of some samples are, and whether there is one: both (B, width)."""
        steps_T = np.arange(width)
        mask_BT = steps_T < self._flat.lengths_N[rows_B, None]
        return np.where(mask_BT, self._flat.starts_N[rows_B, None] + steps_T, 0), mask_BT


def encode_texts(
    texts: Texts,
    tokenizer: TextTokenizer,
    *,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> TextSamples:
    """Encode texts, each a sample; blank ones are left out.

    Args:
        texts: what to encode, in this order.
        tokenizer: the model's.
        limit: take the first texts alone.
        max_tokens: cut longer texts; the tokens that the tokenizer adds at their end are kept.

    Raises:
        SamplesError: there is no text, or one without any token.
        UsageError: `max_tokens` leaves no room beside the tokens that the tokenizer adds.
    """
    filled = _Filled(texts)
    growing, n_truncated = GrowingTokens(), 0
    for number, encoding in enumerate(tokenizer.encode_all(islice(filled, limit)), start=1):
        if not len(encoding.ids):
            raise SamplesError(f"text {number} of {texts.name} has no token: remove it")
        cut = _cut(encoding, max_tokens)
        n_truncated += len(cut.ids) < len(encoding.ids)
        growing.add(cut)
    filled.check_any()
    made = _made(texts, tokenizer, filled) | {"max_tokens": max_tokens}
    return TextSamples(growing.samples(), made=made, n_truncated=n_truncated)


def pack_texts(
    texts: Texts, tokenizer: TextTokenizer, *, chunk: int, limit: int | None = None
) -> TextSamples:
    """Join texts in their order and cut the whole into rows of `chunk` tokens.

    Each text is as the tokenizer encodes it, with the BOS that it adds. Where it adds nothing and
    has an EOS, one stands between two texts (and belongs to the first of them). What is left
    behind the last full row is dropped; the manifest says how many tokens that were.

    Args:
        texts: what to encode; blank ones are left out.
        tokenizer: the model's.
        chunk: tokens of a row.
        limit: take the first rows alone.

    Raises:
        SamplesError: there is no text.
        UsageError: all of them have fewer tokens than one row.
    """
    filled = _Filled(texts)
    growing = GrowingTokens()
    wanted = None if limit is None else limit * chunk
    for encoding in _separated(tokenizer.encode_all(filled), eos_id=tokenizer.eos_id):
        growing.add(encoding)
        if wanted is not None and growing.n_tokens >= wanted:
            break
    filled.check_any()
    n_rows = growing.n_tokens // chunk
    if not n_rows:
        raise UsageError(
            f"{texts.name} has {growing.n_tokens} tokens, fewer than one row of --chunk {chunk}"
        )
    n_rows = n_rows if limit is None else min(n_rows, limit)
    made = _made(texts, tokenizer, filled) | {
        "chunk": chunk,
        "tokens_dropped": growing.n_tokens - n_rows * chunk,
    }
    return TextSamples(growing.rows(n_rows, chunk=chunk), made=made)


class _Filled:
    """The texts of a source that are not blank, and a count of those that are."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self.n_blank = self.n_filled = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if text.strip():
                self.n_filled += 1
                yield text
            else:
                self.n_blank += 1

    def check_any(self) -> None:
        if not self.n_filled:
            raise SamplesError(
                f"{self._texts.name} holds no text"
                + (f": all {self.n_blank} entries are blank" if self.n_blank else "")
            )


def _cut(encoding: Encoding, max_tokens: int | None) -> Encoding:
    if max_tokens is None or len(encoding.ids) <= max_tokens:
        return encoding
    n_added = int(encoding.special.sum())
    if max_tokens <= n_added:
        raise UsageError(
            f"--max-tokens {max_tokens} leaves no room for text: the tokenizer adds {n_added} "
            f"tokens to each; give {n_added + 1} or more"
        )
    n_end = encoding.n_trailing
    places = np.r_[: max_tokens - n_end, len(encoding.ids) - n_end : len(encoding.ids)]
    return Encoding(
        encoding.ids[places],
        None if encoding.offsets is None else encoding.offsets[places],
        encoding.special[places],
    )


def _separated(encodings: Iterable[Encoding], *, eos_id: int | None) -> Iterator[Encoding]:
    """Put EOS behind each text that another follows, unless the tokenizer adds tokens itself."""
    remaining = iter(encodings)
    last = next(remaining, None)
    for following in remaining:
        assert last is not None
        yield last if eos_id is None or last.special.any() else _ended(last, eos_id)
        last = following
    if last is not None:
        yield last


def _ended(encoding: Encoding, eos_id: int) -> Encoding:
    offsets = encoding.offsets
    return Encoding(
        np.append(encoding.ids, np.int32(eos_id)),
        None if offsets is None else np.vstack([offsets, np.zeros((1, 2), np.int32)]),
        np.append(encoding.special, np.True_),
    )


def _made(texts: Texts, tokenizer: TextTokenizer, filled: _Filled) -> dict[str, Any]:
    return texts.manifest() | {"tokenizer": tokenizer.fingerprint, "blank_left_out": filled.n_blank}
