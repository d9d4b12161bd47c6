"""The 2048 board encoder: a small bidirectional transformer that reads the 16 cells of a board.

Tokens are tile exponents (0 = empty, 1 = tile 2, ... 16 = tile 65536). Blocks are pre-norm, with
RMSNorm, grouped-query attention (optional q/k norm and attention sinks) and a SwiGLU MLP; the
final norm is mean-pooled over the cells and read by one head per move.

Tensor legend: B batch, T tokens (16 cells), H hidden, A query heads, K key/value heads,
G groups (A = G * K), D head width, I intermediate, V vocabulary, O outputs of a head.
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

MOVES = ("up", "down", "left", "right")


class EncoderConfig(BaseModel):
    """`config.json` of a 2048 encoder; fields that we do not use are ignored, as in training."""

    model_config = ConfigDict(extra="ignore")

    input_vocab_size: PositiveInt = 16
    output_n_bins: PositiveInt | None = None
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    layer_norm_eps: PositiveFloat
    num_key_value_heads: PositiveInt | None = None
    use_attention_sinks: bool = False
    use_qk_norm: bool = False
    max_position_embeddings: PositiveInt = 16
    head_type: Literal["binned_ev", "action_policy"] = "binned_ev"

    def model_post_init(self, _context: Any) -> None:
        """Refuse head counts that do not divide."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.n_kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.n_kv_heads}"
            )

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads; as many as query heads unless the config says otherwise."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


class Attention(nn.Module):
    """Bidirectional grouped-query attention, with optional q/k norm and attention sinks.

    Query head `a` reads key/value head `a % K` (the family's own order, not the more usual
    `a // G`). The sink parameter is stored kv-major: query head `a` owns entry
    `(a % K) * G + a // K`; `sinks_A` puts it into head order.

    The `Identity` children are named places where activations can be read. `scores` and `weights`
    exist only in the explicit computation, which `explicit = True` chooses; the fused kernel is
    used otherwise.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, d_head, eps = config.hidden_size, config.d_head, config.layer_norm_eps
        self.n_heads, self.n_kv_heads, self.d_head = (
            config.num_attention_heads,
            config.n_kv_heads,
            d_head,
        )
        self.explicit = False
        self.wq = nn.Linear(hidden, self.n_heads * d_head, bias=False)
        self.wk = nn.Linear(hidden, self.n_kv_heads * d_head, bias=False)
        self.wv = nn.Linear(hidden, self.n_kv_heads * d_head, bias=False)
        self.wo = nn.Linear(self.n_heads * d_head, hidden, bias=False)
        self.q_norm = nn.RMSNorm(d_head, eps=eps) if config.use_qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(d_head, eps=eps) if config.use_qk_norm else nn.Identity()
        self.sinks = nn.Parameter(torch.zeros(self.n_heads)) if config.use_attention_sinks else None
        self.v_heads, self.scores, self.weights = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Return what attention adds to the residual stream, (B, T, H)."""
        q_BATD, k_BKTD, v_BKTD = self.project(x_BTH)
        k_BATD, v_BATD = self.for_each_query_head(k_BKTD), self.for_each_query_head(v_BKTD)
        if self.explicit:
            mixed_BATD = self.weights(self.pattern(q_BATD, k_BATD)) @ v_BATD
        else:
            mixed_BATD = self._fused(q_BATD, k_BATD, v_BATD)
        out_BTH: Tensor = self.wo(mixed_BATD.transpose(1, 2).flatten(2))
        return out_BTH

    def project(self, x_BTH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, A, T, D), k and v (B, K, T, D), after the q/k norm where there is one."""
        q_BTAD = self.q_norm(self.wq(x_BTH).unflatten(-1, (self.n_heads, self.d_head)))
        k_BTKD = self.k_norm(self.wk(x_BTH).unflatten(-1, (self.n_kv_heads, self.d_head)))
        v_BTKD = self.v_heads(self.wv(x_BTH).unflatten(-1, (self.n_kv_heads, self.d_head)))
        return q_BTAD.transpose(1, 2), k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2)

    def for_each_query_head(self, kv_BKTD: Tensor) -> Tensor:
        """Repeat key/value heads so that query head `a` finds head `a % K` at place `a`."""
        groups = self.n_heads // self.n_kv_heads
        return kv_BKTD if groups == 1 else kv_BKTD.repeat(1, groups, 1, 1)

    @property
    def sinks_A(self) -> Tensor | None:
        """The sink logits in query-head order, or None."""
        if self.sinks is None:
            return None
        return self.sinks.view(self.n_kv_heads, -1).T.flatten()

    def pattern(self, q_BATD: Tensor, k_BATD: Tensor) -> Tensor:
        """Return softmax(q·k / √D) over keys and the sink, without the sink's column: (B, A, T, T).

        A row sums to 1 minus the mass that its sink took.
        """
        scores_BATT: Tensor = self.scores(q_BATD @ k_BATD.transpose(-1, -2) * self.d_head**-0.5)
        sinks_A = self.sinks_A
        if sinks_A is None:
            return scores_BATT.softmax(dim=-1)
        sink_BAT1 = sinks_A[:, None, None].expand(*scores_BATT.shape[:-1], 1)
        return torch.cat([scores_BATT, sink_BAT1], dim=-1).softmax(dim=-1)[..., :-1]

    def _fused(self, q_BATD: Tensor, k_BATD: Tensor, v_BATD: Tensor) -> Tensor:
        """Attend with torch's fused kernel.

        A sink is one more key of zero length, whose score is put in by the additive mask and whose
        value is zero: the same sum as the explicit way, without the (T, T) matrix in memory.
        """
        sinks_A = self.sinks_A
        if sinks_A is None:
            return F.scaled_dot_product_attention(q_BATD, k_BATD, v_BATD)
        n_keys = k_BATD.shape[-2]
        bias_ATS = sinks_A.new_zeros(self.n_heads, q_BATD.shape[-2], n_keys + 1)
        bias_ATS[..., -1] = sinks_A[:, None]
        one_more_key = (0, 0, 0, 1)
        return F.scaled_dot_product_attention(
            q_BATD, F.pad(k_BATD, one_more_key), F.pad(v_BATD, one_more_key), attn_mask=bias_ATS
        )


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); `act` is the product, what `w_down` reads."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w_gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w_up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w_down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = nn.Identity()

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Return what the MLP adds to the residual stream, (B, T, H)."""
        out_BTH: Tensor = self.w_down(self.act(_gated(self.w_gate(x_BTH), self.w_up(x_BTH))))
        return out_BTH


def _gated(gate_BTI: Tensor, up_BTI: Tensor) -> Tensor:
    """silu(gate) * up; in place where no gradient needs the factors.

    These are the largest values of a forward pass: in place they take a third less memory at once.
    """
    if torch.is_grad_enabled():
        return F.silu(gate_BTI) * up_BTI
    return F.silu(gate_BTI, inplace=True).mul_(up_BTI)


class Block(nn.Module):
    """x += attn(attn_norm(x)); x += mlp(mlp_norm(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Return the residual stream after the block, (B, T, H)."""
        middle_BTH: Tensor = x_BTH + self.attn(self.attn_norm(x_BTH))
        out_BTH: Tensor = middle_BTH + self.mlp(self.mlp_norm(middle_BTH))
        return out_BTH


class PositionEmbedding(nn.Module):
    """A learned vector per cell; the nesting is that of the checkpoints' parameter names."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pos_emb = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, n_tokens: int) -> Tensor:
        """Return the first `n_tokens` vectors, (T, H)."""
        return self.pos_emb.weight[:n_tokens]


class Encoder2048(nn.Module):
    """The whole encoder; `forward` returns the logits of all heads."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.input_vocab_size, config.hidden_size)
        self.pos_emb = PositionEmbedding(config)
        self.embeddings = nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_ln = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooled, self.head_logits = nn.Identity(), nn.Identity()
        if config.head_type == "action_policy":
            self.policy_head = nn.Linear(config.hidden_size, len(MOVES))
        elif config.output_n_bins is None:
            raise ValueError("a binned_ev head needs output_n_bins")
        else:
            n_bins = config.output_n_bins
            self.ev_heads = nn.ModuleList(nn.Linear(config.hidden_size, n_bins) for _ in MOVES)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return (B, 4, n_bins) for a binned-EV head, (B, 4) for a policy; moves as in `MOVES`."""
        x_BTH: Tensor = self.embeddings(self.tok_emb(tokens_BT) + self.pos_emb(tokens_BT.shape[1]))
        for block in self.blocks:
            x_BTH = block(x_BTH)
        pooled_BH = self.pooled(self.final_ln(x_BTH).mean(dim=1))
        logits: Tensor = self.head_logits(self._read_heads(pooled_BH))
        return logits

    def _read_heads(self, pooled_BH: Tensor) -> Tensor:
        if self.config.head_type == "action_policy":
            policy_BO: Tensor = self.policy_head(pooled_BH)
            return policy_BO
        return torch.stack([head(pooled_BH) for head in self.ev_heads], dim=1)
