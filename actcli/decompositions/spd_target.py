"""Targets of SPD's own model classes, as models of the package transformers.

    LlamaSimpleMLP   Arcee (one MLP map up, tanh GELU, one down)
    LlamaSimple      Llama
    GPT2Simple       GPT2, its separate q, k and v in one projection

All weights map; what differs is only their names and places. Where rotary planes are adjacent
numbers (0,1), (2,3), ... the rows of W_q and W_k are put in the order 0, 2, ..., 1, 3, ... in each
head, which is the same model with planes that are the halves of a head.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actcli.errors import ModelError
from actcli.models.adapter import LoadedFiles, ModelAdapter
from actcli.models.source import ModelSource
from actcli.models.transformer import HuggingFaceTransformer

SIMPLE_CLASSES = ("LlamaSimpleMLP", "LlamaSimple", "GPT2Simple")
_GPT2 = "GPT2Simple"
_MOST_NAMES = 5
_FUSED = "attn.c_attn"
_IN_BLOCK = re.compile(r"h\.(\d+)\.(.+)")

_LLAMA_NAMES = {
    "wte": "model.embed_tokens",
    "ln_f": "model.norm",
    "rms_1": "input_layernorm",
    "rms_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.up_proj",
    _FUSED: "attn.q_proj",  # one of three with the same input
}
_GPT2_NAMES = {
    "wte": "transformer.wte",
    "wpe": "transformer.wpe",
    "ln_f": "transformer.ln_f",
    "attn.q_proj": _FUSED,
    "attn.k_proj": _FUSED,
    "attn.v_proj": _FUSED,
    "attn.o_proj": "attn.c_proj",
    "mlp.down_proj": "mlp.c_proj",
}


@dataclass(frozen=True)
class SimpleTarget:
    """The sizes of a target of one of `SIMPLE_CLASSES`."""

    class_name: str
    fields: Mapping[str, Any]
    """Of its `model_config.yaml`."""

    where: str
    """The file of the fields, for messages."""

    def size(self, *names: str) -> int:
        """The first of these fields.

        Raises:
            ModelError: none is there, or it is no count.
        """
        found = next((self.fields[name] for name in names if name in self.fields), None)
        if not isinstance(found, int) or found < 1:
            raise ModelError(
                f"{self.where} says {names[0]}={found}; the target needs a positive integer there"
            )
        return found

    @property
    def head_width(self) -> int:
        """D."""
        return self.size("n_embd") // self.size("n_head")

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads; as many as query heads where the heads are not grouped."""
        grouped = self.fields.get("use_grouped_query_attention", True)
        return self.size("n_key_value_heads", "n_head") if grouped else self.size("n_head")

    def order(self, n_outputs: int) -> Tensor:
        """Which output of the target's q or k stands at each output of ours (int64)."""
        own = torch.arange(n_outputs)
        if not self.fields.get("rotary_adjacent_pairs", False):
            return own
        return own.view(-1, self.head_width // 2, 2).transpose(1, 2).flatten()

    def module(self, name: str) -> str:
        """The path in the model of the package transformers of a module of the target."""
        names = _GPT2_NAMES if self.class_name == _GPT2 else _LLAMA_NAMES
        found = _IN_BLOCK.fullmatch(name)
        if found is None:
            return names.get(name, name)
        inside = names.get(found[2], found[2])
        if self.class_name == _GPT2:
            return f"transformer.h.{found[1]}.{inside}"
        return f"model.layers.{found[1]}.{re.sub(r'^attn', 'self_attn', inside)}"


def load_simple(
    target: SimpleTarget, weights: Mapping[str, Tensor], *, init: str, folder: Path, file: Path
) -> ModelAdapter:
    """Make the model of the package transformers, with the target's weights.

    Args:
        target: its class and sizes.
        weights: its state dict.
        init: what the user called it.
        folder: where a tokenizer may lie.
        file: the file of the weights.

    Raises:
        ModelError: weights are missing, or do not fit the sizes.
    """
    net = _empty(target)
    mapped = _mapped(target, weights)
    _check_complete(net, mapped, file)
    net.load_state_dict(mapped, strict=False)
    return HuggingFaceTransformer(net.eval(), LoadedFiles(ModelSource(init, folder), file))


def _empty(target: SimpleTarget) -> nn.Module:
    """The model of these sizes, its weights still drawn at random."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        if target.class_name == _GPT2:
            gpt2: nn.Module = transformers.GPT2LMHeadModel(_gpt2_config(target))
            return gpt2
        config = _llama_config(target)
        if target.class_name == "LlamaSimple":
            llama: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
            return llama
        arcee: nn.Module = transformers.ArceeForCausalLM(
            transformers.ArceeConfig(**config | {"hidden_act": "gelu_new"})
        )
        return arcee


def _llama_config(target: SimpleTarget) -> dict[str, Any]:
    fields = target.fields
    return {
        "vocab_size": target.size("vocab_size"),
        "hidden_size": target.size("n_embd"),
        "intermediate_size": target.size("n_intermediate"),
        "num_hidden_layers": target.size("n_layer"),
        "num_attention_heads": target.size("n_head"),
        "num_key_value_heads": target.n_kv_heads,
        "head_dim": target.head_width,
        "max_position_embeddings": target.size("n_ctx", "block_size"),
        "rms_norm_eps": float(fields.get("rms_norm_eps", 1e-6)),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(fields.get("rotary_base", 10000)),
        },
        "attention_bias": bool(fields.get("attn_bias", False)),
        "mlp_bias": bool(fields.get("mlp_bias", False)),
        **_WITHOUT_SPECIAL_TOKENS,
        "tie_word_embeddings": False,
    }


def _gpt2_config(target: SimpleTarget) -> Any:
    import transformers

    return transformers.GPT2Config(
        vocab_size=target.size("vocab_size"),
        n_embd=target.size("n_embd"),
        n_layer=target.size("n_layer"),
        n_head=target.size("n_head"),
        n_positions=target.size("block_size", "n_ctx"),
        tie_word_embeddings=False,
        **_WITHOUT_SPECIAL_TOKENS,
    )


_WITHOUT_SPECIAL_TOKENS: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _mapped(target: SimpleTarget, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The target's weights under the names of the package transformers."""
    mapped: dict[str, Tensor] = {}
    for name, stored in _separate(weights).items():
        module, _dot, parameter = name.rpartition(".")
        ours, value = f"{target.module(module)}.{parameter}", stored
        if module.endswith((".q_proj", ".k_proj")):
            value = stored[target.order(len(stored))]
        if target.class_name == _GPT2 and _IN_BLOCK.match(module):
            value = value.t()  # Conv1D keeps (inputs, outputs); a vector stays as it is
        mapped[ours] = torch.cat([mapped[ours], value], dim=-1) if ours in mapped else value
    if "lm_head.weight" not in mapped:  # tied, and stored once
        embedding = target.module("wte") + ".weight"
        mapped |= {"lm_head.weight": mapped[embedding]} if embedding in mapped else {}
    return mapped


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with q, k and v apart, in this order; no tables of positions or masks."""
    separate: dict[str, Tensor] = {}
    for name, value in sorted(weights.items(), key=_qkv_order):
        module, _dot, parameter = name.rpartition(".")
        if parameter not in ("weight", "bias") or value.ndim > 2:
            continue
        if not module.endswith(_FUSED):
            separate[name] = value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            separate[f"{module.removesuffix('c_attn')}{part}_proj.{parameter}"] = rows
    return separate


def _qkv_order(item: tuple[str, Tensor]) -> tuple[bool, int, str]:
    """Queries before keys before values, as GPT-2 has them side by side."""
    for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if part in item[0]:
            return True, number, item[0]
    return False, 0, item[0]


def _check_complete(net: nn.Module, mapped: Mapping[str, Tensor], file: Path) -> None:
    expected = net.state_dict()
    for what, names in (
        ("lack", _without(expected, mapped)),
        ("have, beyond what its configuration says,", _without(mapped, expected)),
        (
            "have of another shape than its configuration says",
            [each for each in mapped if mapped[each].shape != expected[each].shape]
            if not _without(mapped, expected)
            else [],
        ),
    ):
        if names:
            raise ModelError(
                f"the target's weights in {file} {what} {', '.join(names[:_MOST_NAMES])}"
                f"{', ...' if names[_MOST_NAMES:] else ''} (named as {type(net).__name__} does)"
            )


def _without(names: Iterable[str], known: Mapping[str, Tensor]) -> list[str]:
    return sorted(name for name in names if name not in known)
