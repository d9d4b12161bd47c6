"""What each token adds to a text, so that the texts of its tokens make up the text."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actcli.samples.tokenizer import TextTokenizer

_MOST_PAIRS = 1 << 16


def texts_of_tokens(
    tokenizer: "TextTokenizer | None",
) -> Callable[[Sequence[int]], tuple[str, ...]]:
    """Return what gives the texts of consecutive tokens.

    A token is decoded behind the one before it, since alone it would lose the space that tokenizers
    of whole words, and some of pieces, put before it. Where the two do not begin as the first (the
    bytes of one character, special tokens), the token stands as it does alone.

    Args:
        tokenizer: the model's; None for numbers, each with a space before it but the first.
    """
    if tokenizer is None:
        return _numbers
    found = tokenizer

    @lru_cache(maxsize=_MOST_PAIRS)
    def behind(before: int, token: int) -> str:
        first, both = found.text_of(before), found.decode((before, token))
        return both[len(first) :] if both.startswith(first) else found.text_of(token)

    def texts(ids: Sequence[int]) -> tuple[str, ...]:
        if not ids:
            return ()
        return (found.text_of(ids[0]), *(behind(*pair) for pair in pairwise(ids)))

    return texts


def _numbers(ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{' ' if place else ''}#{token}" for place, token in enumerate(ids))
