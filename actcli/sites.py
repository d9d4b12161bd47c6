"""The sites: named places in a model whose activations can be captured.

One table, from which come the checks of `--outputs`, its help and completion, the keys of a dump,
and the page `docs/reference/sites.md`. Names are those of the dumps that our users already have.

Axis letters, as in the tensors' names throughout the code:
    N samples, L layers, T tokens (for attention: queries), S keys of attention, H hidden,
    A attention heads, K key/value heads, D head width, I MLP intermediate, O outputs of a head,
    V vocabulary, C the largest logits of a token
"""

from collections.abc import Iterable
from dataclasses import dataclass

from actcli.errors import UsageError, nearest

MODULE_PREFIX = "module:"
GAMMAS_PREFIX = "rmsnorm_gammas/"


@dataclass(frozen=True)
class Site:
    """A named place in a model."""

    name: str
    """Its name, everywhere: `--outputs`, the key in a dump, the documentation."""

    axes: tuple[str, ...]
    """The axes of the stored tensor, with N and L where it has them; empty if they vary."""

    meaning: str
    """What is read there, in one sentence."""

    transformer_lens: str = ""
    """The TransformerLens hook that reads the same numbers, where there is one."""

    is_parameter: bool = False
    """Whether it is part of the weights, the same for every sample."""

    @property
    def per_layer(self) -> bool:
        """Whether each layer has its own."""
        return "L" in self.axes


_NLTH = ("N", "L", "T", "H")
_NTH = ("N", "T", "H")

SITES: tuple[Site, ...] = (
    Site("final_hidden", _NTH, "Residual stream after the final norm.", "ln_final.hook_out"),
    Site("pooled", ("N", "H"), "Mean of final_hidden over the tokens."),
    Site(
        "head_logits",
        ("N", "O", "..."),
        "Output of the model's heads: (N, 4, n_bins) for binned EV, (N, 4) for a policy; "
        "moves in the order up, down, left, right.",
    ),
    Site("head_probs", ("N", "O", "..."), "Softmax of head_logits over the last axis, in float32."),
    Site(
        "layer_outputs",
        _NLTH,
        "Residual stream after each block; the last one is before the final norm.",
        "blocks.{l}.hook_resid_post",
    ),
    Site(
        "attn_norm",
        _NLTH,
        "What attention reads: the residual stream after the block's attention norm, with gain.",
        "blocks.{l}.ln1.hook_out",
    ),
    Site(
        "mlp_input",
        _NLTH,
        "What the MLP reads: the residual stream after the block's MLP norm, with gain (blocks "
        "without such a norm: the stream itself).",
        "blocks.{l}.ln2.hook_out",
    ),
    Site(
        "mlp_input_normed",
        _NLTH,
        "The same before gain and bias, which some published transcoders read: mean square 1 "
        "(LayerNorm: variance 1), computed in float32.",
        "blocks.{l}.ln2.hook_normalized",
    ),
    Site(
        "resid_mid",
        _NLTH,
        "Residual stream between attention and MLP; parallel blocks have none.",
        "blocks.{l}.hook_resid_mid",
    ),
    Site(
        "rmsnorm_gammas",
        ("H",),
        "The gain of every RMSNorm (and LayerNorm, in transformers models), one tensor each: "
        "rmsnorm_gammas/<module name>; what the norm multiplies by, 1 + weight for Gemma.",
        is_parameter=True,
    ),
    Site(
        "attn_sinks",
        ("L", "A"),
        "Attention-sink logits as the checkpoint stores them (float32, kv-major: head a owns entry "
        "(a mod K) * A/K + a div K).",
        is_parameter=True,
    ),
    Site(
        "attn_weights",
        ("N", "L", "A", "T", "S"),
        "Attention pattern after softmax; a row sums to 1 minus the mass of its sink.",
        "blocks.{l}.attn.hook_pattern",
    ),
    Site(
        "attn_scores",
        ("N", "L", "A", "T", "S"),
        "Scaled scores q·k/√D before softmax.",
        "blocks.{l}.attn.hook_attn_scores",
    ),
    Site(
        "embeddings",
        _NTH,
        "Residual stream that enters the first block.",
        "blocks.0.hook_resid_pre",
    ),
    Site(
        "attn_out",
        _NLTH,
        "What attention adds to the residual stream, after a post-norm or factor if it has one.",
        "blocks.{l}.hook_attn_out",
    ),
    Site(
        "mlp_out",
        _NLTH,
        "What the MLP adds to the residual stream, after a post-norm or factor if it has one.",
        "blocks.{l}.hook_mlp_out",
    ),
    Site(
        "mlp_act",
        ("N", "L", "T", "I"),
        "MLP activations that the down-projection reads (SwiGLU: silu(gate) * up).",
        "blocks.{l}.mlp.hook_post",
    ),
    Site(
        "q",
        ("N", "L", "T", "A", "D"),
        "Queries, after q norm and before rotary positions.",
        "blocks.{l}.attn.hook_q",
    ),
    Site(
        "k",
        ("N", "L", "T", "K", "D"),
        "Keys, after k norm and before rotary positions.",
        "blocks.{l}.attn.hook_k",
    ),
    Site("v", ("N", "L", "T", "K", "D"), "Values.", "blocks.{l}.attn.hook_v"),
    Site(
        "logits",
        ("N", "T", "V"),
        "The model's logits, after scale or soft cap. Asked for by this name, a dump holds the "
        "largest of them, logits_top and logits_top_ids; --full-logits stores all.",
    ),
    Site("logits_top", ("N", "T", "C"), "The largest logits of each token, falling."),
    Site("logits_top_ids", ("N", "T", "C"), "The token ids of logits_top, int32."),
)

_BY_NAME = {site.name: site for site in SITES}


def find_site(name: str) -> Site:
    """Return the site of that name; `module:<dotted.path>` is the output of any module.

    Raises:
        UsageError: no such site; the message offers the nearest name.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    path = name.removeprefix(MODULE_PREFIX)
    if path and path != name:
        return Site(name, (), f"Output of the module {path}.")
    raise UsageError(f"there is no site {name!r}; {nearest(name, _BY_NAME)}")


def check_outputs(names: Iterable[str]) -> tuple[str, ...]:
    """Return the site names without blanks and repetitions; refuse unknown ones and none at all.

    Raises:
        UsageError: an unknown name, or no name.
    """
    wanted = dict.fromkeys(name.strip() for name in names if name.strip())
    if not wanted:
        raise UsageError(f"no outputs were asked for; known are: {', '.join(_BY_NAME)}")
    return tuple(find_site(name).name for name in wanted)
