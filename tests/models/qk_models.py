"""Models for the tests of queries and keys, beside those of `architectures`.

Options that the latter leave at their defaults are set to what shows: angles that are scaled, soft
caps low enough to bend, scales by layer, clips.
"""

import transformers as hf

from actcli.models import load_model
from actcli.models.source import LoadOptions
from tests.models import architectures

_SMALL = {
    "vocab_size": architectures.VOCAB,
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
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_GPT = {"vocab_size": architectures.VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 6}

VARIANTS = {
    "llama3_rope": ("llama", lambda: hf.LlamaConfig(**_GROUPED, rope_parameters=_LLAMA3)),
    "yarn": ("llama", lambda: hf.LlamaConfig(**_GROUPED, rope_parameters=_YARN)),
    "gemma2_bent": (
        "gemma2",
        lambda: hf.Gemma2Config(
            **_GROUPED,
            head_dim=12,
            query_pre_attn_scalar=3,
            attn_logit_softcapping=0.5,
            sliding_window=4,
        ),
    ),
    "gpt2_by_layer": (
        "gpt2",
        lambda: hf.GPT2Config(**_GPT, n_positions=64, scale_attn_by_inverse_layer_idx=True),
    ),
    "phi_half": (
        "phi",
        lambda: hf.PhiConfig(**_SMALL, rope_parameters=_LLAMA3 | {"partial_rotary_factor": 0.5}),
    ),
    "phi_normed": ("phi", lambda: hf.PhiConfig(**_SMALL, qk_layernorm=True)),
    "cohere_normed": ("cohere", lambda: hf.CohereConfig(**_GROUPED, use_qk_norm=True)),
    "cohere2": (
        "cohere",
        lambda: hf.Cohere2Config(
            **_GROUPED,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "gpt_neo": (
        "gpt2",
        lambda: hf.GPTNeoConfig(
            vocab_size=architectures.VOCAB,
            hidden_size=48,
            num_layers=2,
            num_heads=6,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            window_size=4,
        ),
    ),
    "llama4": (
        "llama",
        lambda: hf.Llama4TextConfig(
            **_GROUPED, head_dim=8, num_local_experts=2, intermediate_size_mlp=64, use_qk_norm=False
        ),
    ),
    "clipped": ("olmo", lambda: hf.OlmoConfig(**_GROUPED, clip_qkv=0.05)),
    "falcon_alibi": (
        "falcon",
        lambda: hf.FalconConfig(
            vocab_size=architectures.VOCAB,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            alibi=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
}
"""By name: the architecture whose loader and random numbers it takes, and its configuration."""


def load(name, root, dtype=None):
    """The adapter of a variant, or of an architecture, saved into a folder of its own."""
    folder = root / name
    if name in VARIANTS:
        base, config = VARIANTS[name]
        architectures.save_config(base, config(), folder)
    else:
        architectures.save(name, folder)
    return load_model(str(folder), options=LoadOptions(dtype=dtype))
