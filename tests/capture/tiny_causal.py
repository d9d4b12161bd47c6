"""A small causal model and texts of different lengths, for what no board can show.

Its forward returns every value beside what hooks see, so that tests need no hooks.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from actcli.models.adapter import HookPoint, LoadedFiles, ModelAdapter
from actcli.models.source import ModelSource
from actcli.samples.source import SampleBatch, as_index
from actcli.store.header import TensorInfo

VOCABULARY, WIDTH, LONGEST, LAYERS = 11, 6, 64, 2


class Best(nn.Module):
    """The two largest values and where they are, as a tuple."""

    def forward(self, x):
        return torch.topk(x, 2, dim=-1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.weights, self.side, self.best = nn.Identity(), nn.Identity(), Best()

    def forward(self, x, is_real):
        read = self.norm(x)
        scores = read @ read.transpose(-1, -2)
        is_past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        weights = self.weights(scores.masked_fill(~is_past, -torch.inf).softmax(-1)[:, None])
        x = x + self.linear((weights @ read[:, None])[:, 0]).tanh()
        side = self.side(x.masked_fill(~is_real[..., None], torch.nan))
        ids = self.best(x).indices
        return x, {
            "attn_norm": read,
            "attn_weights": weights,
            "layer_outputs": x,
            "mlp_out": side,
            "q": ids[:, :, None],
        }


class Net(nn.Module):
    """Everything that it computes is returned, by the name of its site."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.final, self.last = nn.LayerNorm(WIDTH), nn.Identity()

    def forward(self, tokens, is_real):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        layers = []
        for block in self.blocks:
            x, found = block(x, is_real)
            layers.append(found)
        final = self.final(x)
        last = self.last(final[torch.arange(len(x)), is_real.sum(1) - 1])
        stacked = {name: torch.stack([each[name] for each in layers], 1) for name in layers[0]}
        return stacked | {"final_hidden": final, "pooled": last, "module:final": final}


class TinyCausal(ModelAdapter):
    """Its sites; `mlp_out` is NaN at padding, `q` holds ids, `pooled` is the last real token."""

    family = "tiny causal"
    n_layers, n_heads, n_kv_heads, d_model = LAYERS, 1, 1, WIDTH
    max_tokens, vocab_size = LONGEST, VOCABULARY

    def __init__(self, *, device="cpu"):
        self.files = LoadedFiles(ModelSource("tiny", Path("tiny")), None)
        torch.manual_seed(0)
        self.net = Net().eval().to(device)
        self.n_tokens_seen = []

    def layer_points(self, site, layer):
        block = f"blocks.{layer}"
        return {
            "attn_norm": HookPoint(f"{block}.norm"),
            "attn_weights": HookPoint(f"{block}.weights"),
            "layer_outputs": HookPoint(block),
            "mlp_out": HookPoint(f"{block}.side"),
            "q": HookPoint(
                f"{block}.best", view=lambda ids: ids[:, :, None], item=1, dtype=torch.int32
            ),
        }.get(site)

    def point(self, site):
        return {"final_hidden": HookPoint("final"), "pooled": HookPoint("last")}.get(site)

    def forward(self, inputs):
        tokens = inputs["tokens"]
        self.n_tokens_seen.append(tuple(tokens.shape))
        self.net(tokens, inputs.get("mask", torch.ones_like(tokens, dtype=torch.bool)))

    def parameters(self, _site):
        return None

    def prepare(self, _sites):
        self.net.eval()

    def attention(self, _layer, _attn_input_BTH):
        raise NotImplementedError

    def metadata(self):
        return {}

    def working_bytes(self, n_tokens):
        return n_tokens


class Texts:
    """Tokens of given lengths, as a source of texts gives them."""

    def __init__(self, lengths, *, seed=0):
        rng = np.random.default_rng(seed)
        self.tokens = [rng.integers(1, VOCABULARY, n) for n in lengths]
        self.n_tokens, self.largest_token = max(lengths), VOCABULARY - 1
        self.lengths = np.array(lengths) if len(set(lengths)) > 1 else None
        shape = (len(lengths), self.n_tokens)
        self.stored = {"token_ids": TensorInfo("I32", shape), "mask": TensorInfo("U8", shape)}
        self._ids = np.full(shape, -1, np.int32)
        for row, each in enumerate(self.tokens):
            self._ids[row, : len(each)] = each

    def __len__(self):
        return len(self.tokens)

    def batch(self, rows):
        ids = self._ids[as_index(rows)]
        is_real = ids >= 0
        width = int(is_real.sum(1).max())
        inputs = {"tokens": np.where(is_real, ids, 0)[:, :width].astype(np.int64)}
        if not is_real[:, :width].all():
            inputs["mask"] = is_real[:, :width].copy()
        return SampleBatch(rows, inputs, {"token_ids": ids, "mask": is_real.astype(np.uint8)})

    def manifest(self):
        return {}
