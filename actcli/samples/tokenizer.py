"""The tokenizer in a model's folder: texts to token ids, and single ids back to text.

The folder's own tokenizer in the words of transformers, with the special tokens that it adds by
default. It never cuts a text: how long a sample may be is checked against the model.

Tensor legend: T tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.errors import ModelError, SamplesError, reason

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
"""Files that a tokenizer may consist of: what a download must fetch, besides the model's own."""

_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")
_TEXTS_AT_ONCE = 256


class Encoding(NamedTuple):
    """A text as token ids."""

    ids: NDArray[np.int32]
    """Token ids (T,), with the special tokens that the tokenizer adds."""

    offsets: NDArray[np.int32] | None
    """First and last+1 character of each token (T, 2), (0, 0) for an added one; None where the
    tokenizer does not say (those written in Python)."""

    special: NDArray[np.bool_]
    """Whether the tokenizer added the token (T,), as it does with BOS."""

    @property
    def n_trailing(self) -> int:
        """How many tokens the tokenizer added after the text, such as EOS or [SEP]."""
        return 0 if self.special.all() else int(np.argmin(self.special[::-1]))


class TextTokenizer:
    """A tokenizer of transformers, with names for every id."""

    def __init__(self, backend: Any, *, fingerprint: dict[str, Any] | None = None) -> None:
        """Wrap a tokenizer; the fingerprint is that of its vocabulary, unless one is given."""
        self._backend, self._fingerprint = backend, fingerprint
        self._texts: dict[int, str] = {}

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        return dict(self._backend.get_vocab())

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: what a model's embedding must at least have."""
        return max(self.vocabulary.values(), default=-1) + 1

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, if there is one."""
        return _optional_int(self._backend.bos_token_id)

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, if there is one."""
        return _optional_int(self._backend.eos_token_id)

    @property
    def unknown_id(self) -> int | None:
        """The id that stands for what the vocabulary lacks, if there is one."""
        return _optional_int(self._backend.unk_token_id)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells it from others: sha256 of `tokenizer.json`, or else of the vocabulary."""
        if self._fingerprint is not None:
            return self._fingerprint
        listed = json.dumps(sorted(self.vocabulary.items(), key=lambda item: (item[1], item[0])))
        return {"file": None, "sha256": hashlib.sha256(listed.encode()).hexdigest()}

    def encode(self, text: str) -> Encoding:
        """Return a text as token ids, special tokens included, never cut.

        Raises:
            SamplesError: the text is not valid Unicode.
        """
        return next(self.encode_all([text]))

    def encode_all(self, texts: Iterable[str]) -> Iterator[Encoding]:
        """Encode texts one after another, a few hundred at a time.

        Raises:
            SamplesError: a text is not valid Unicode.
        """
        for some in _batches(texts):
            yield from self._encode_some(some)

    def text_of(self, token: int) -> str:
        """Return what a token shows as: its text alone, or `<id 50300>` beyond the vocabulary."""
        if token not in self._texts:
            self._texts[token] = self._find_text(token)
        return self._texts[token]

    def decode(self, ids: Iterable[int]) -> str:
        """Return a whole text, without the special tokens that the tokenizer adds."""
        return str(
            self._backend.decode(
                [int(each) for each in ids],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )

    def piece_of(self, token: int) -> str:
        """Return the token as the vocabulary spells it (`Ġthe`, `▁the`), or `<id 50300>`."""
        inside = 0 <= token < self.vocab_size
        piece = self._backend.convert_ids_to_tokens(int(token)) if inside else None
        return f"<id {token}>" if piece is None else str(piece)

    def _find_text(self, token: int) -> str:
        piece = self.piece_of(token)
        if piece == f"<id {token}>":
            return piece
        text = self._backend.decode([int(token)], clean_up_tokenization_spaces=False)
        return str(text) or piece

    def _encode_some(self, texts: Sequence[str]) -> Iterator[Encoding]:
        _check_unicode(texts)
        has_offsets = bool(self._backend.is_fast)
        found = self._backend(
            list(texts),
            return_offsets_mapping=has_offsets,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            padding=False,
            truncation=False,
            verbose=False,  # else it warns of long texts, by a limit that need not be the model's
        )
        for place, ids in enumerate(found["input_ids"]):
            offsets = found["offset_mapping"][place] if has_offsets else None
            yield Encoding(
                np.array(ids, dtype=np.int32),
                None if offsets is None else np.array(offsets, dtype=np.int32).reshape(-1, 2),
                np.array(found["special_tokens_mask"][place], dtype=np.bool_),
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder (or that of a weights file) holds files of a tokenizer."""
    folder = _folder(folder)
    return (folder / "tokenizer_config.json").is_file() or _has_vocabulary(folder)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> TextTokenizer:
    """Load the tokenizer in a model's folder (or beside a weights file), from local files alone.

    Raises:
        ModelError: the folder has none, or it cannot be read.
    """
    folder = _folder(folder)
    if not has_tokenizer(folder):
        raise _nothing_there(folder, "has no tokenizer")
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # tokenizers raises no narrower class for a damaged file
        raise ModelError(
            f"the tokenizer in {folder} cannot be read: {type(error).__name__}: {reason(error)}"
        ) from error
    if backend.is_fast and not _has_vocabulary(folder):  # transformers makes an empty one up
        raise _nothing_there(folder, "has a tokenizer_config.json but no vocabulary")
    return TextTokenizer(backend, fingerprint=_file_fingerprint(folder))


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _has_vocabulary(folder: Path) -> bool:
    return any(path.is_file() for pattern in _VOCABULARIES for path in folder.glob(pattern))


def _nothing_there(folder: Path, what: str) -> ModelError:
    return ModelError(
        f"{folder} {what}: give token ids with --tokens ids.npy, "
        f"or put the model's tokenizer.json and tokenizer_config.json there"
    )


def _file_fingerprint(folder: Path) -> dict[str, Any] | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _batches(texts: Iterable[str]) -> Iterator[Sequence[str]]:
    remaining = iter(texts)
    while some := list(islice(remaining, _TEXTS_AT_ONCE)):
        yield some


def _check_unicode(texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SamplesError(
                f"a text has half of a surrogate pair at character {error.start}, which is no "
                f"Unicode text: {text[:40]!r}"
            ) from error


def _optional_int(value: object) -> int | None:
    return value if isinstance(value, int) else None
