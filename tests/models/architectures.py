"""Tiny random models of every architecture that the family promises, made from their configs.

Norm gains, biases and eps are far from their defaults, so that a forgotten one shows.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from torch import nn

VOCAB = 101
_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
_RMS = _GROUPED | {"rms_norm_eps": 1e-3}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 48,
}
_GPT = {
    "vocab_size": VOCAB,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "layer_norm_epsilon": 1e-3,
}
_GEMMA = _RMS | {"head_dim": 12, "query_pre_attn_scalar": 24}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

DECODERS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "gpt2": lambda: hf.GPT2Config(**_GPT),
    "llama": lambda: hf.LlamaConfig(**_RMS),
    "mistral": lambda: hf.MistralConfig(**_RMS, sliding_window=4),
    "qwen2": lambda: hf.Qwen2Config(**_RMS),
    "qwen3": lambda: hf.Qwen3Config(**_RMS, head_dim=12),
    "gemma": lambda: hf.GemmaConfig(**_RMS, head_dim=12),
    "gemma2": lambda: hf.Gemma2Config(**_GEMMA, final_logit_softcapping=3.0, sliding_window=4),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GEMMA, sliding_window=4),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_SMALL, layer_norm_eps=1e-3),
    "gpt_neox_sequential": lambda: hf.GPTNeoXConfig(**_SMALL, use_parallel_residual=False),
    "opt": lambda: hf.OPTConfig(**_OPT),
    "opt_350m": lambda: hf.OPTConfig(
        **_OPT | {"word_embed_proj_dim": 24, "do_layer_norm_before": False}
    ),
    "phi": lambda: hf.PhiConfig(**_SMALL, partial_rotary_factor=0.5, layer_norm_eps=1e-3),
    "phi3": lambda: hf.Phi3Config(**_RMS),
    "olmo": lambda: hf.OlmoConfig(**_GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**_RMS),
    "cohere": lambda: hf.CohereConfig(**_GROUPED, layer_norm_eps=1e-3, logit_scale=0.25),
    "granite": lambda: hf.GraniteConfig(
        **_RMS,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        attention_multiplier=0.3,
    ),
    "falcon": lambda: hf.FalconConfig(
        **_SMALL, multi_query=True, parallel_attn=True, new_decoder_architecture=False
    ),
    "falcon_new": lambda: hf.FalconConfig(
        **_SMALL, num_kv_heads=2, new_decoder_architecture=True, alibi=False
    ),
    "bloom": lambda: hf.BloomConfig(
        vocab_size=VOCAB, hidden_size=48, n_layer=3, n_head=6, layer_norm_epsilon=1e-3
    ),
    "mpt": lambda: hf.MptConfig(
        vocab_size=VOCAB, d_model=48, n_layers=3, n_heads=6, max_seq_len=64, expansion_ratio=2
    ),
    "gptj": lambda: hf.GPTJConfig(**_GPT, rotary_dim=4),
    "starcoder2": lambda: hf.Starcoder2Config(**_GROUPED, norm_epsilon=1e-3),
    "mixtral": lambda: hf.MixtralConfig(**_RMS, **_EXPERTS),
    "gpt_oss": lambda: hf.GptOssConfig(**_RMS, **_EXPERTS, head_dim=12, sliding_window=4),
}
"""Causal language models."""

_ENCODER = _SMALL | {"layer_norm_eps": 1e-3}
ENCODERS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "bert": lambda: hf.BertConfig(**_ENCODER),
    "roberta": lambda: hf.RobertaConfig(**_ENCODER),
    "modernbert": lambda: hf.ModernBertConfig(
        **_SMALL, norm_eps=1e-3, local_attention=8, cls_token_id=1, sep_token_id=2
    ),
}
"""Bidirectional encoders, with their head for masked tokens."""

ALL = DECODERS | ENCODERS


@functools.cache
def build(name: str) -> nn.Module:
    """The model, in eval mode; the same numbers at every call."""
    return _made(name, ALL[name]())


def save(name: str, folder: Path) -> str:
    """Write the model into a folder, as users have it."""
    build(name).save_pretrained(folder)
    return str(folder)


def save_config(name: str, config: hf.PreTrainedConfig, folder: Path) -> str:
    """Write a model of the architecture with another configuration."""
    _made(name, config).save_pretrained(folder)
    return str(folder)


def _made(name: str, config: hf.PreTrainedConfig) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(sorted(ALL).index(name))
        loader = hf.AutoModelForCausalLM if name in DECODERS else hf.AutoModelForMaskedLM
        net = loader.from_config(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise if parameter.ndim == 1 else 0.1 * noise)
    return net.eval()
