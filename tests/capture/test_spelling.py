"""Activations of words, against the model run on each prompt alone."""

import numpy as np
import pytest
import torch

from actcli.builtin import find_builtin
from actcli.capture.spelling import _last_token, capture_spelling
from actcli.errors import ModelError, SamplesError
from actcli.models import load_model
from actcli.samples.tokenizer import Encoding, load_tokenizer

WORDS = ["Paris", "Rome", "Germany", "Oslo", "Ankara"]


@pytest.fixture(scope="module")
def facts():
    folder = find_builtin("demo://facts", holding="tokenizer.json", error=ModelError)
    adapter = load_model("demo://facts")
    adapter.net.float()  # it is stored in bfloat16, which rounds batches of another size otherwise
    return adapter, load_tokenizer(folder)


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_each_word_has_the_activation_of_its_last_token(facts, batch_tokens):
    adapter, tokenizer = facts
    found = capture_spelling(
        adapter, WORDS, tokenizer, place="layer_outputs.2", examples=2, batch_tokens=batch_tokens
    )
    assert [chr(97 + letter) for letter in found.letters_W.tolist()] == list("prgoa")
    before = {
        "Paris": "Rome has the first letter: R\nOslo has the first letter: O\n",
        "Ankara": "Paris has the first letter: P\nGermany has the first letter: G\n",
    }
    for word, lines in before.items():
        # the model is causal: what follows the word cannot matter
        encoding = tokenizer.encode(lines + word)
        n = len(encoding.ids) - encoding.n_trailing
        ids = torch.from_numpy(encoding.ids[:n].astype("int64"))[None]
        with torch.no_grad():
            hidden = adapter.net(ids, output_hidden_states=True).hidden_states[3]
        torch.testing.assert_close(
            found.x_WI[WORDS.index(word)], hidden[0, -1].float(), atol=2e-5, rtol=1e-4
        )


def test_a_word_without_a_letter(facts):
    with pytest.raises(SamplesError, match="'4th' does not begin"):
        capture_spelling(facts[0], ["one", "4th"], facts[1], place="layer_outputs.2")


def test_the_last_token_of_a_word():
    """The third and fourth token are bytes of one character."""
    offsets = np.array([[0, 0], [0, 3], [3, 4], [3, 4], [4, 9], [0, 0]], dtype=np.int32)
    special = np.array([True, False, False, False, False, True])
    encoding = Encoding(np.arange(6, dtype=np.int32), offsets, special)
    assert [_last_token(encoding, end, "w") for end in (1, 3, 4, 5, 9)] == [1, 1, 3, 4, 4]
    with pytest.raises(SamplesError, match="'w' has no token"):
        _last_token(encoding, 10, "w")
    with pytest.raises(SamplesError, match="does not say which characters"):
        _last_token(encoding._replace(offsets=None), 3, "w")
