"""The activations that the built-in transcoders are of: read at the built-in text model's MLP.

Tensor legend: N tokens, B texts of a batch, T tokens of a text, H hidden.
"""

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from actcli.builtin import TEXT_MODEL
from actcli.capture.lens_sources import run_model
from actcli.demo.facts_text import sentences
from actcli.models import load_model
from actcli.models.source import find_source
from actcli.samples.text import encode_texts
from actcli.samples.text_files import GivenTexts
from actcli.samples.tokenizer import load_tokenizer

LAYER, BOS = 4, "<bos>"
GAINED, NORMED, WRITTEN = "mlp_input", "mlp_input_normed", "mlp_out"
_SITES = (GAINED, NORMED, WRITTEN)
_BATCH_TOKENS = 8192


class Tokens(NamedTuple):
    """Tokens of sentences, each sentence a text of its own behind `<bos>`, which is a token too."""

    sites: dict[str, Tensor]
    """By site (N, H), in the dtype that the model computes in."""
    is_bos_N: Tensor

    def __len__(self) -> int:
        return len(self.is_bos_N)


def capture_tokens(*, seed: int, n_sentences: int) -> Tokens:
    """Run `demo://facts` over the first sentences of a seed; capture what its MLP reads and adds.

    Returns:
        All tokens, text after text, of one layer: `LAYER`.
    """
    adapter = load_model(TEXT_MODEL)
    tokenizer = load_tokenizer(find_source(TEXT_MODEL).path)
    bos_id = tokenizer.vocabulary[BOS]
    texts = GivenTexts(list(islice(sentences(seed=seed), n_sentences)))
    samples = encode_texts(texts, tokenizer)
    found: dict[str, list[Tensor]] = {site: [] for site in _SITES}
    is_bos: list[Tensor] = []
    for batch in run_model(
        adapter, samples, sites=_SITES, blocks=[LAYER], batch_tokens=_BATCH_TOKENS
    ):
        ids_BT = torch.from_numpy(batch.tokens_BT)
        lengths_B1 = torch.from_numpy(batch.lengths_B)[:, None]
        is_token_BT = torch.arange(ids_BT.shape[1]) < lengths_B1
        is_bos.append(ids_BT[is_token_BT].eq(bos_id))
        for site, parts in found.items():
            parts.append(batch.read(site)[:, 0][is_token_BT])
    sites = {site: torch.cat(parts) for site, parts in found.items()}
    return Tokens(sites, torch.cat(is_bos))
