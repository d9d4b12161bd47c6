"""The sites of a transformer block, resolved from a trace of what flowed through it.

Only one thing is told by name: which child is the attention, and which of its separate projections
are queries, keys and values. All else is told by values: a norm is what gives what attention reads,
an addend is what the stream grows by (see `residual`), a fused projection is split the way that
explains what the module did (see `attention_layout`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from actcli.models.adapter import HookPoint
from actcli.models.attention_layout import find_heads
from actcli.models.block_trace import BlockTrace, Call, same_values
from actcli.models.norms import Norm, as_norm
from actcli.models.residual import Addend, ResidualSums, find_sums

_ATTENTION = re.compile(r"(?:^|[._])(?:self_?)?(?:attn|attention)$", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """Where one block's sites are; the modules of its hook points are named below the block."""

    points: dict[str, HookPoint] = field(default_factory=dict)
    """By the name of the site; what is not there, the block does not have."""

    flat: frozenset[str] = frozenset()
    """Sites whose tensors have the tokens of all rows in one axis, (B*T, H)."""

    attn: str | None = None
    """The attention module."""

    kind: str = "unknown"
    """pre-norm, post-norm, parallel, or unknown."""

    n_kv_heads: int | None = None
    """Key/value heads, where the projections were understood."""


def resolve_block(trace: BlockTrace, *, n_heads: int) -> Block:
    """Find the sites of a block in its trace.

    Args:
        trace: all calls of one forward, with attention weights among the outputs where the model
            shows them.
        n_heads: query heads, of the model's configuration.
    """
    attn = _attention_call(trace)
    mlp = _mlp_calls(trace, attn)
    sums = find_sums(trace, attn, mlp)
    found = _Points({"layer_outputs": HookPoint("")})
    attn_norm = found.add_norm(trace, attn, "attn_norm") if attn else None
    if mlp:
        found.add("mlp_input", mlp[0], "input")
        found.add_norm(trace, mlp[0], "mlp_input", without_gain="mlp_input_normed")
        found.add_activations(mlp, sums.mlp)
    if sums.mid is not None:
        found.add("resid_mid", sums.mid.call, sums.mid.side)
    for name, addend in (("attn_out", sums.attn), ("mlp_out", sums.mlp)):
        if addend is not None:
            found.add(name, addend.call, "output", view=_scaled(addend.factor))
    heads = find_heads(trace, attn, n_heads=n_heads) if attn else None
    found.points |= heads.points if heads else {}
    found.add_pattern(trace, attn)
    return Block(
        found.points,
        frozenset(found.flat),
        attn.path if attn else None,
        _kind(sums, has_norms=attn_norm is not None or "mlp_input_normed" in found.points),
        heads.n_kv_heads if heads else None,
    )


@dataclass
class _Points:
    """Hook points while they are collected."""

    points: dict[str, HookPoint]
    flat: set[str] = field(default_factory=set)

    def add(
        self,
        site: str,
        call: Call,
        side: str,
        view: Callable[[Tensor], Tensor] | None = None,
        item: int | None = None,
    ) -> None:
        point = HookPoint(call.path, "input" if side == "input" else "output", item=item)
        self.points[site] = point if view is None else point._replace(view=view)
        if call.is_flat:
            self.flat.add(site)

    def add_norm(
        self, trace: BlockTrace, reader: Call, site: str, *, without_gain: str | None = None
    ) -> Norm | None:
        """What a module reads, if a norm of the block gives it, with and without the gain."""
        for call in trace.calls:
            if call.end < reader.begin and call.out is not None and not reader.holds(call):
                norm = as_norm(call.module, call.out.shape[-1])
                if norm is not None and same_values(call.out, reader.given):
                    self.add(site, call, "output")
                    if without_gain is not None:
                        self.add(without_gain, call, "input", view=norm.normalised)
                    return norm
        return None

    def add_activations(self, mlp: Sequence[Call], addend: Addend | None) -> None:
        """What the down-projection reads: the last product, if its output is the MLP's."""
        last = [each for each in mlp if each.has_matrix][-1:]
        outputs = [mlp[0].out] + ([addend.call.out] if addend else [])
        for call in last:
            weight = getattr(call.module, "weight", None)
            is_one_map = isinstance(weight, Tensor) and weight.ndim == 2  # experts have three axes
            if is_one_map and any(same_values(call.out, each) for each in outputs):
                self.add("mlp_act", call, "input")

    def add_pattern(self, trace: BlockTrace, attn: Call | None) -> None:
        for call in trace.inside(attn.path) if attn else []:
            if call.pattern_item is not None:
                self.add("attn_weights", call, "output", item=call.pattern_item)
                return


def _attention_call(trace: BlockTrace) -> Call | None:
    """The outermost module with the name of an attention and with weights to multiply by."""
    for call in trace.calls:
        is_named = call.path and _ATTENTION.search(call.path)
        if is_named and sum(each.has_matrix for each in trace.inside(call.path)) >= 2:
            return call
    return None


def _mlp_calls(trace: BlockTrace, attn: Call | None) -> list[Call]:
    """The module that holds all products outside attention, and what is in it, in order.

    Some blocks have no such module: then the products themselves, from the first one on.
    """
    if attn is None:
        return []
    products = [
        each for each in trace.calls if each.has_matrix and not attn.holds(each) and each.path
    ]
    if not products:
        return []
    for call in trace.calls:
        if call.path and all(call.holds(each) for each in products) and not call.holds(attn):
            return trace.inside(call.path)
    return [each for each in trace.calls if each.begin >= products[0].begin]


def _kind(sums: ResidualSums, *, has_norms: bool) -> str:
    if sums.attn is None or sums.mlp is None:
        return "unknown"
    if sums.mid is None:
        return "parallel"
    norms_the_sum = sums.mid.side == "output"
    return "post-norm" if norms_the_sum or not has_norms else "pre-norm"


def _scaled(factor: float) -> Callable[[Tensor], Tensor] | None:
    return None if factor == 1.0 else partial(_times, factor=factor)


def _times(acts: Tensor, factor: float) -> Tensor:
    return acts * factor
