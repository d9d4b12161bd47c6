"""The token that an answer begins with, found where it stands: behind its prompt.

The id of a word depends on what precedes it (`Berlin` and ` Berlin` are two tokens), so prompt and
answer are encoded together, with a space between them if possible. That tells the token only if
the prompt keeps its own tokens: a tokenizer may merge its last characters with the answer's first
ones. Then the model would have read other tokens than those of the prompt, and the answer has no
first token behind it; such a pair is refused.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actcli.errors import UsageError
from actcli.samples.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Gold:
    """An answer behind its prompt."""

    ids: tuple[int, ...]
    """Its tokens, as they follow those of the prompt."""

    text: str
    """The answer as it was given."""

    prefix: str
    """What stands between prompt and answer: a space or nothing."""

    position: int
    """The position in the prompt's tokens whose next token is the answer: its last one, before
    what the tokenizer adds at the end (EOS, [SEP])."""

    @property
    def first_id(self) -> int:
        """The target of the lens: the first token of the answer."""
        return self.ids[0]

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole answer; where there are several, only the first is the target."""
        return len(self.ids)


def gold_ids(
    tokenizer: TextTokenizer, *, prompt: str, answer: str, option: str = "--answer"
) -> Gold:
    """Find the tokens of an answer behind its prompt.

    With a space between them; without one if the prompt ends, or the answer begins, with
    whitespace, or if the space made the prompt's last token another one.

    Args:
        tokenizer: the model's.
        prompt: what the model reads.
        answer: what it should say next.
        option: what messages call the answer.

    Raises:
        UsageError: the answer is blank, its first token is unknown to the tokenizer, or the
            tokenizer merges it into the prompt.
    """
    if not answer.strip():
        raise UsageError(f"{option} is empty: give the text that should follow the prompt")
    prompt_ids = _without_ending(tokenizer, prompt)
    refusals: list[str] = []
    for prefix in _prefixes(prompt, answer):
        joint = _without_ending(tokenizer, prompt + prefix + answer)
        ids = tuple(int(each) for each in joint[len(prompt_ids) :])
        refusal = _find_fault(tokenizer, prompt_ids, joint)
        if refusal is None:
            return Gold(ids, answer, prefix, position=len(prompt_ids) - 1)
        refusals.append(refusal)
    raise UsageError(f"{option} {answer!r}: {refusals[0]}")


def _prefixes(prompt: str, answer: str) -> tuple[str, ...]:
    apart = not prompt or prompt[-1].isspace() or answer[0].isspace()
    return ("",) if apart else (" ", "")


def _without_ending(tokenizer: TextTokenizer, text: str) -> NDArray[np.int32]:
    encoding = tokenizer.encode(text)
    return encoding.ids[: len(encoding.ids) - encoding.n_trailing]


def _find_fault(
    tokenizer: TextTokenizer, prompt_ids: NDArray[np.int32], joint: NDArray[np.int32]
) -> str | None:
    """Say why the tokens behind the prompt are not the answer's; None if they are."""
    n_prompt = len(prompt_ids)
    n_same = _n_same(prompt_ids, joint)
    if n_same < n_prompt:
        alone = tokenizer.piece_of(int(prompt_ids[n_same]))
        merged = tokenizer.piece_of(int(joint[n_same])) if n_same < len(joint) else "nothing"
        return (
            f"the tokenizer merges it into the prompt: token {n_same} is {alone!r} in the prompt "
            f"alone and {merged!r} with the answer behind it; end the prompt at a word's end, "
            f"without a blank"
        )
    if len(joint) == n_prompt:
        return "the tokenizer drops it; give an answer that has a token"
    if int(joint[n_prompt]) == tokenizer.unknown_id:
        return (
            f"its first word is not in the tokenizer's vocabulary (it reads as "
            f"{tokenizer.piece_of(int(joint[n_prompt]))!r}); give an answer that the model can say"
        )
    return None


def _n_same(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many tokens two texts share from their start."""
    shared = min(len(one), len(other))
    differs = np.flatnonzero(one[:shared] != other[:shared])
    return int(differs[0]) if differs.size else shared
