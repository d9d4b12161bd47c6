"""The answers that `logit-lens` follows: which token of which text, found in the text itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actcli.reports.logit_lens import AnswerReport
    from actcli.samples.answers import Gold
    from actcli.samples.tokenizer import TextTokenizer

TokensOf = Callable[[int], "NDArray[np.integer]"]
"""Token ids of a sample, without padding."""


@dataclass(frozen=True)
class Followed:
    """What is followed at the end of each text; empty where nothing is."""

    answers: tuple["Gold", ...] = ()
    contrasts: tuple["Gold", ...] = ()

    def first_ids(self, rows: Sequence[int], *, contrast: bool) -> "NDArray[np.int64] | None":
        """The targets of some texts (B,), or what is compared with them."""
        import numpy as np

        golds = self.contrasts if contrast else self.answers
        return np.array([golds[row].first_id for row in rows]) if golds else None

    def length(self, row: int, otherwise: int) -> int:
        """Tokens of a text up to the place where the answer should follow."""
        return self.answers[row].position + 1 if self.answers else otherwise


def find_followed(
    tokenizer: "TextTokenizer | None",
    tokens_of: TokensOf,
    *,
    n_samples: int,
    answers: Sequence[str],
    contrasts: Sequence[str],
) -> Followed:
    """Find the tokens of answers behind their texts.

    Args:
        tokenizer: the model's; None if it has none.
        tokens_of: the texts as the model reads them.
        n_samples: how many there are.
        answers: one for all texts, or one for each.
        contrasts: likewise; only beside answers.

    Raises:
        UsageError: no tokenizer, another number of answers than of texts, or an answer that is not
            to be found behind its text.
    """
    if not answers:
        if contrasts:
            raise UsageError("--contrast is compared with an --answer: give one")
        return Followed()
    if tokenizer is None:
        raise UsageError("--answer is a text, and the model's folder has no tokenizer: drop it")
    found = {
        option: tuple(
            _find(tokenizer, tokens_of(row), word, option)
            for row, word in enumerate(_one_each(words, n_samples, option))
        )
        for option, words in (("--answer", answers), ("--contrast", contrasts))
        if words
    }
    return Followed(found["--answer"], found.get("--contrast", ()))


def describe(gold: "Gold", tokenizer: "TextTokenizer") -> "AnswerReport":
    """The answer as a report names it."""
    from actcli.reports.logit_lens import AnswerReport, TokenReport

    pieces = tuple(TokenReport(id=each, text=tokenizer.text_of(each)) for each in gold.ids)
    return AnswerReport(text=gold.text, id=gold.first_id, pieces=pieces)


def prompt_of(tokenizer: "TextTokenizer", ids: "NDArray[np.integer]") -> str | None:
    """The text that these ids are; None if the tokenizer reads the decoded text otherwise."""
    text = tokenizer.decode(ids)
    again = tokenizer.encode(text).ids
    return text if [*map(int, again)] == [*map(int, ids)] else None


def _one_each(words: Sequence[str], n_samples: int, option: str) -> list[str]:
    if len(words) not in (1, n_samples):
        raise UsageError(
            f"{option} was given {len(words)} times and there are {n_samples} texts: give it once "
            f"for all of them, or once for each"
        )
    return [*words] * (n_samples if len(words) == 1 else 1)


def _find(tokenizer: "TextTokenizer", ids: "NDArray[np.integer]", word: str, option: str) -> "Gold":
    from actcli.samples.answers import gold_ids

    prompt = prompt_of(tokenizer, ids)
    if prompt is None:
        raise UsageError(
            f"{option} {word!r}: the tokens of a text are not those that the tokenizer gives for "
            f"{tokenizer.decode(ids)[:60]!r}, so the token behind it cannot be known; drop {option}"
        )
    return gold_ids(tokenizer, prompt=prompt, answer=word, option=option)
