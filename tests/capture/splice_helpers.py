"""What the tests of replaced activations have in common."""

import numpy as np
import torch

from actcli.capture.splice import run_spliced
from actcli.capture.token_rules import TokenRules
from actcli.models import load_model
from actcli.samples.token_file import open_token_file
from tests.models import architectures

LENGTHS = [9, 5, 1, 7, 9, 3]
WIDTH = 48
RULES = TokenRules(exclude_first=True)


class Adapters:
    """Adapters by architecture, loaded once."""

    def __init__(self, make_folder):
        self._make_folder, self._found = make_folder, {}

    def __call__(self, name):
        if name not in self._found:
            folder = self._make_folder(name) / name
            self._found[name] = load_model(architectures.save(name, folder))
        return self._found[name]


def write_ids(path, vocabulary=architectures.VOCAB, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    ids = np.full((len(lengths), max(lengths)), -1)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(3, vocabulary, length)
    np.save(path, ids)
    return open_token_file(path)


def rebuilt(x):
    """A dictionary's work: something of the same width that is not its input."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(WIDTH, WIDTH, generator=generator) / 7
    return torch.tanh(x @ weight) + 0.2


def gathered(adapter, samples, spliced, *, rules=RULES, batch_tokens=20):
    """Logits by kind and dictionary, of all tokens that count, with places and next tokens."""
    logits, places, following = {}, [], []
    for batch in run_spliced(adapter, samples, spliced, rules=rules, batch_tokens=batch_tokens):
        places += zip(batch.samples_N.tolist(), batch.positions_N.tolist(), strict=True)
        for pair in batch.pairs():
            key = (pair.kind, pair.numbers)
            for chunk in pair.chunks():
                logits.setdefault("original", []).append(chunk.original_RV)
                logits.setdefault(key, []).append(chunk.other_RV)
                if key == ("zero", (0,)):
                    following += chunk.next_R.tolist()
    n_kinds = len(logits) - 1
    original = torch.cat(logits.pop("original"))
    assert len(original) == n_kinds * len(places)
    return {key: torch.cat(each) for key, each in logits.items()}, places, following


def slowly(adapter, samples, hooks):
    """The logits of each sample alone, with hooks of this test; (module, make hook) pairs."""
    found = []
    for row, length in enumerate(LENGTHS):
        ids = samples.batch(range(row, row + 1)).stored["token_ids"][:, :length]
        handles = [register(adapter.net) for register in hooks]
        with torch.no_grad():
            found.append(adapter.net(input_ids=torch.from_numpy(ids).long()).logits[0].float())
        for handle in handles:
            handle.remove()
    return found
