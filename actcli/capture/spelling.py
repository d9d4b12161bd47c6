"""Words read by a model: the activation at the last token of each, for feature absorption.

The prompt is SAEBench's (evals/absorption/prompting.py, after Chanin et al. 2024,
arXiv:2409.14507): some other words with their answers, one a line, then the word:

    tartan has the first letter: T
    mirth has the first letter: M
    apple has the first letter:

SAEBench draws the words before at random; here they are those that stand evenly spaced after the
word in the list, so that the same list gives the same activations.

Tensor legend: W words, T tokens, I input width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.token_rules import TokenRules
from actcli.capture.token_stream_model import open_model_tokens
from actcli.errors import SamplesError
from actcli.models.adapter import ModelAdapter
from actcli.samples.spelling import Spelling, first_letter
from actcli.samples.text import encode_texts
from actcli.samples.text_files import GivenTexts
from actcli.samples.tokenizer import Encoding, TextTokenizer

TEMPLATE = "{word} has the first letter:"
EXAMPLES = 10
"""Words before each word, as in SAEBench."""

_BATCH_TOKENS = 2048


def capture_spelling(
    adapter: ModelAdapter,
    words: Sequence[str],
    tokenizer: TextTokenizer,
    *,
    place: str,
    examples: int = EXAMPLES,
    batch_tokens: int = _BATCH_TOKENS,
) -> Spelling:
    """Run a model over a prompt for each word.

    Args:
        adapter: the model, with weights.
        words: what it reads; see `actcli.samples.spelling.read_words`.
        tokenizer: the model's.
        place: the dictionary's input: a site and, where it has layers, one: `mlp_input.4`.
        examples: how many words with answers come before; fewer leave room in a short context.
        batch_tokens: the most tokens in a forward pass.

    Raises:
        SamplesError: a word begins with no letter, or its tokens cannot be told from others.
        CaptureError: the model lacks the site, or its context is too short for the prompts.
        UsageError: the place is none that a dictionary reads.
    """
    name = f"{adapter.files.source.init} on {len(words)} words"
    letters = [first_letter(word, source=name) for word in words]
    prompts = [_prompt(words, number, examples) for number in range(len(words))]
    samples = encode_texts(GivenTexts([text for text, _ in prompts], name=name), tokenizer)
    encodings = tokenizer.encode_all(text for text, _ in prompts)
    ends_W = np.array(
        [
            _last_token(encoding, end, word)
            for encoding, (_, end), word in zip(encodings, prompts, words, strict=True)
        ]
    )
    stream = open_model_tokens(
        adapter, samples, places=[place], rules=TokenRules(), batch_tokens=batch_tokens
    )
    x_WI = torch.empty(len(words), stream.widths[place])
    for batch in stream.batches():
        _keep(x_WI, batch.acts[place], batch.samples_N, batch.positions_N, ends_W)
    return Spelling(name, x_WI, torch.tensor(letters, dtype=torch.int64))


def _keep(
    x_WI: Tensor,
    acts_NI: Tensor,
    samples_N: NDArray[np.int64],
    positions_N: NDArray[np.int64],
    ends_W: NDArray[np.int64],
) -> None:
    wanted_N = positions_N == ends_W[samples_N]
    chosen = torch.from_numpy(wanted_N.nonzero()[0]).to(acts_NI.device)
    x_WI[torch.from_numpy(samples_N[wanted_N])] = acts_NI[chosen].float().cpu()


def _prompt(words: Sequence[str], number: int, examples: int) -> tuple[str, int]:
    """Return a word's prompt, and where the word ends in it."""
    n_others = min(examples, len(words) - 1)
    step = (len(words) - 1) / max(1, n_others)
    others = [words[(number + 1 + int(place * step)) % len(words)] for place in range(n_others)]
    lines = [f"{TEMPLATE.format(word=other)} {other[0].upper()}\n" for other in others]
    before = "".join(lines)
    return before + TEMPLATE.format(word=words[number]), len(before) + len(words[number])


def _last_token(encoding: Encoding, end: int, word: str) -> int:
    """Return the position of the token that holds the word's last character."""
    if encoding.offsets is None:
        raise SamplesError(
            "this tokenizer does not say which characters a token stands for, which is needed to "
            "find each word's last token; give a file of activations instead"
        )
    first_T, stop_T = encoding.offsets[:, 0], encoding.offsets[:, 1]
    holds_T = (first_T < end) & (stop_T >= end) & ~encoding.special
    if not holds_T.any():
        raise SamplesError(f"{word!r} has no token of this model's own: remove it")
    return int(holds_T.nonzero()[0][-1])
