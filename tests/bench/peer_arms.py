"""Ways to get activations out of a Hugging Face model into a file, one a process.

    python peer_arms.py WAY --model FOLDER --tokens ids.npy --output FILE [--batch 16]

Reads no actcli code, so that it runs where only the peers are installed. Sites: `layer_outputs`,
`attn_norm` and `mlp_input` of all layers, stored as bf16. Each way is driven as its documentation
does: the causal model runs, tensors are collected, and saved at the end. The last line printed is
JSON: seconds from after loading and one warm-up batch to the end of the saved file, and tokens/s of
real tokens.
"""

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

PADDING = -1


def main() -> None:
    options = _parse()
    net = LlamaForCausalLM.from_pretrained(options.model).eval()
    ids = np.load(options.tokens)
    way = WAYS[options.way](net, options)
    with torch.inference_mode():
        way.step(*next(batches(ids, options.batch)))  # warm-up
        way.kept.clear()
        began = time.perf_counter()
        for tokens, mask in batches(ids, options.batch):
            way.step(tokens, mask)
        way.save(options.output)
    elapsed = time.perf_counter() - began
    print(json.dumps({"seconds": elapsed, "tokens_per_s": int((ids != PADDING).sum()) / elapsed}))


def batches(ids: np.ndarray, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """In the order of arrival, each padded on the right to its longest."""
    for start in range(0, len(ids), size):
        rows = ids[start : start + size]
        rows = rows[:, : int((rows != PADDING).sum(axis=1).max())]
        mask = torch.from_numpy(rows != PADDING)
        yield torch.from_numpy(np.where(rows == PADDING, 0, rows)).long(), mask.long()


class Way(ABC):
    """Collects tensors (batch, layer, token, hidden) by site, and saves them at the end."""

    def __init__(self, net: Any, options: argparse.Namespace) -> None:
        self.net, self.width = net, np.load(options.tokens, mmap_mode="r").shape[1]
        self.n_layers = net.config.num_hidden_layers
        self.kept: dict[str, list[torch.Tensor]] = {}

    @abstractmethod
    def step(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        """Run one batch, and keep what is wanted of it."""

    def keep(self, site: str, layers: list[torch.Tensor]) -> None:
        stacked = torch.stack([each.to(torch.bfloat16) for each in layers], dim=1)
        short = self.width - stacked.shape[2]
        padded = torch.nn.functional.pad(stacked, (0, 0, 0, short)) if short else stacked
        self.kept.setdefault(site, []).append(padded)

    def save(self, path: str) -> None:
        if self.kept:
            torch.save({site: torch.cat(each) for site, each in self.kept.items()}, path)


class Bare(Way):
    """A forward pass of the body: no head, nothing captured, nothing written."""

    def step(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        del mask  # right padding, causal
        self.net.model(input_ids=tokens, use_cache=False)


class Hooks(Way):
    """Forward hooks that append to lists, and one save at the end."""

    def __init__(self, net: Any, options: argparse.Namespace) -> None:
        super().__init__(net, options)
        self.seen: dict[str, list[torch.Tensor]] = {}
        for layer in net.model.layers:
            layer.register_forward_hook(self._append("layer_outputs"))
            layer.input_layernorm.register_forward_hook(self._append("attn_norm"))
            layer.post_attention_layernorm.register_forward_hook(self._append("mlp_input"))

    def _append(self, site: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            self.seen.setdefault(site, []).append(value.detach().to(torch.bfloat16))

        return hook

    def step(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        self.seen.clear()
        self.net(input_ids=tokens, attention_mask=mask, use_cache=False)
        for site, layers in self.seen.items():
            self.keep(site, layers)


class NNsight(Way):
    """nnsight: a trace that saves module outputs."""

    def __init__(self, net: Any, options: argparse.Namespace) -> None:
        super().__init__(net, options)
        from nnsight import NNsight as Wrapped

        self.model = Wrapped(net)

    def step(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        outputs, norms, inputs = [], [], []
        with self.model.trace(input_ids=tokens, attention_mask=mask, use_cache=False):
            for layer in self.model.model.layers:
                norms.append(layer.input_layernorm.output.save())
                inputs.append(layer.post_attention_layernorm.output.save())
                outputs.append(layer.output.save())
        first = [each[0] if isinstance(each, tuple) else each for each in outputs]
        self.keep("layer_outputs", first)
        self.keep("attn_norm", norms)
        self.keep("mlp_input", inputs)


BRIDGE_NAMES = {
    "layer_outputs": "blocks.{}.hook_resid_post",
    "attn_norm": "blocks.{}.ln1.hook_out",
    "mlp_input": "blocks.{}.ln2.hook_out",
}


class TransformerLens(Way):
    """TransformerLens' bridge: run_with_cache with a filter of names."""

    def __init__(self, net: Any, options: argparse.Namespace) -> None:
        super().__init__(net, options)
        from transformer_lens.model_bridge import TransformerBridge

        dtype = next(net.parameters()).dtype
        self.bridge = TransformerBridge.boot_transformers(
            options.model, hf_model=net, device="cpu", dtype=dtype
        )

    def step(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        names = [
            each.format(layer) for each in BRIDGE_NAMES.values() for layer in range(self.n_layers)
        ]
        _logits, cache = self.bridge.run_with_cache(
            tokens, attention_mask=mask, names_filter=names, return_type="logits"
        )
        for site, name in BRIDGE_NAMES.items():
            self.keep(site, [cache[name.format(layer)] for layer in range(self.n_layers)])


WAYS: dict[str, type[Way]] = {
    "bare": Bare,
    "hooks": Hooks,
    "nnsight": NNsight,
    "transformer-lens": TransformerLens,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--batch", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    main()
