"""The encoder against a slow float64 version in numpy, written from the family's definition."""

import numpy as np
import pytest
import torch

from actcli.models.encoder2048 import Encoder2048, EncoderConfig

KINDS = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "gqa with sinks": {"num_key_value_heads": 2, "use_attention_sinks": True},
    "q/k norm": {"num_key_value_heads": 4, "use_qk_norm": True},
    "policy": {"head_type": "action_policy"},
}


def make_encoder(**changes):
    fields = {
        "input_vocab_size": 17,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "intermediate_size": 20,
        "layer_norm_eps": 1e-6,
        "output_n_bins": 5,
    }
    torch.manual_seed(0)
    encoder = Encoder2048(EncoderConfig(**fields | changes)).eval()
    for name, parameter in encoder.named_parameters():
        spread = 1.0 if "norm" in name or "sinks" in name or "ln" in name else 0.3
        torch.nn.init.normal_(parameter, std=spread)
    return encoder


def rms_norm(x, gamma, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gamma


def attention_of_one_board(weights, x_TH, config):
    """Head by head, query by query, with the sink as one more entry of the softmax."""
    d, k_heads = config.d_head, config.n_kv_heads
    groups = config.num_attention_heads // k_heads
    mixed_TH = np.zeros_like(x_TH)
    for head in range(config.num_attention_heads):
        kv = head % k_heads
        q = x_TH @ weights["wq.weight"][head * d : (head + 1) * d].T
        k = x_TH @ weights["wk.weight"][kv * d : (kv + 1) * d].T
        v = x_TH @ weights["wv.weight"][kv * d : (kv + 1) * d].T
        if config.use_qk_norm:
            q = rms_norm(q, weights["q_norm.weight"], config.layer_norm_eps)
            k = rms_norm(k, weights["k_norm.weight"], config.layer_norm_eps)
        for query in range(len(x_TH)):
            scores = k @ q[query] / np.sqrt(d)
            if config.use_attention_sinks:
                scores = np.append(scores, weights["sinks"][kv * groups + head // k_heads])
            masses = np.exp(scores - scores.max())
            masses /= masses.sum()
            mixed_TH[query, head * d : (head + 1) * d] = masses[: len(x_TH)] @ v
    return mixed_TH @ weights["wo.weight"].T


def slow_logits(encoder, tokens_T):
    config = encoder.config
    p = {name: each.double().numpy() for name, each in encoder.state_dict().items()}
    x = p["tok_emb.weight"][tokens_T] + p["pos_emb.pos_emb.weight"]
    for layer in range(config.num_hidden_layers):
        prefix = f"blocks.{layer}."
        b = {name.removeprefix(prefix): each for name, each in p.items() if name.startswith(prefix)}
        attn = {name.removeprefix("attn."): each for name, each in b.items()}
        normed = rms_norm(x, b["attn_norm.weight"], config.layer_norm_eps)
        x = x + attention_of_one_board(attn, normed, config)
        normed = rms_norm(x, b["mlp_norm.weight"], config.layer_norm_eps)
        gate = normed @ b["mlp.w_gate.weight"].T
        hidden = gate / (1 + np.exp(-gate)) * (normed @ b["mlp.w_up.weight"].T)
        x = x + hidden @ b["mlp.w_down.weight"].T
    pooled = rms_norm(x, p["final_ln.weight"], config.layer_norm_eps).mean(0)
    if config.head_type == "action_policy":
        return pooled @ p["policy_head.weight"].T + p["policy_head.bias"]
    heads = [(p[f"ev_heads.{move}.weight"], p[f"ev_heads.{move}.bias"]) for move in range(4)]
    return np.stack([weight @ pooled + bias for weight, bias in heads])


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_logits_equal_the_slow_version(changes, explicit):
    encoder = make_encoder(**changes)
    for block in encoder.blocks:
        block.attn.explicit = explicit
    tokens_BT = torch.randint(0, 17, (3, 16))
    with torch.inference_mode():
        logits = encoder(tokens_BT).numpy()
    for tokens_T, found in zip(tokens_BT.numpy(), logits, strict=True):
        np.testing.assert_allclose(found, slow_logits(encoder, tokens_T), rtol=1e-4, atol=2e-5)


def test_weights_and_sink_sum_to_one_in_head_order():
    encoder = make_encoder(num_key_value_heads=2, use_attention_sinks=True)
    attn = encoder.blocks[0].attn
    x_BTH = torch.randn(2, 16, 24)
    q, k, _v = attn.project(x_BTH)
    k = attn.for_each_query_head(k)
    weights_BATT = attn.pattern(q, k)
    scores = q @ k.transpose(-1, -2) / 3**0.5
    masses = scores.exp().sum(-1)
    for head in range(8):
        sink = attn.sinks[(head % 2) * 4 + head // 2].exp()
        taken = sink / (masses[:, head] + sink)
        torch.testing.assert_close(weights_BATT[:, head].sum(-1) + taken, torch.ones(2, 16))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"output_n_bins": None}, "output_n_bins"),
    ],
)
def test_impossible_configurations_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        make_encoder(**changes)
