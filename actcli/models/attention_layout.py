"""Queries, keys and values of an attention module: its projections, and how they are split.

A split is believed only if it explains what the module did: with the traced attention weights P,
the values v must give what the output projection read,

    z[t, a] = sum over s of P[a, t, s] * v[s, kv head of a]

so a wrong order of heads, or of queries, keys and values in a fused projection, is refused. Query
head a reads key/value head a div (A/K) or a mod K; the former is tried first.

Tensor legend: B rows, T tokens, S keys, H hidden, A heads, K key/value heads, D head width,
G = A/K query heads per key/value head.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from actcli.models.adapter import HookPoint
from actcli.models.block_trace import BlockTrace, Call

_NAMES = {
    "q": re.compile(r"(^|[._])(q|query|wq|q_lin)(_proj|_lin)?$", re.IGNORECASE),
    "k": re.compile(r"(^|[._])(k|key|wk|k_lin)(_proj|_lin)?$", re.IGNORECASE),
    "v": re.compile(r"(^|[._])(v|value|wv|v_lin)(_proj|_lin)?$", re.IGNORECASE),
}
_NORMS = {"q": re.compile(r"q\w*norm$"), "k": re.compile(r"k\w*norm$")}
_TOLERANCE = 100.0  # roundings of the dtype; sums over all keys, in another order

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Heads:
    """Where queries, keys and values of an attention module are read."""

    points: dict[str, HookPoint]
    """`q` (B, T, A, D), `k` and `v` (B, T, K, D), after the norms of queries and keys if any."""

    n_kv_heads: int
    head_width: int


def find_heads(trace: BlockTrace, attn: Call, *, n_heads: int) -> Heads | None:
    """Find the projections of an attention module and how they are split into heads.

    Args:
        trace: the calls of its block.
        attn: its call, with attention weights among the calls inside it.
        n_heads: query heads A.

    Returns:
        None where no split explains the module's own values.
    """
    calls = [each for each in trace.inside(attn.path) if not each.is_flat]
    pattern = next((each.pattern for each in calls if each.pattern is not None), None)
    mixed = next((each for each in reversed(calls) if each.has_matrix), None)
    if pattern is None or mixed is None or mixed.given is None:
        return None
    width, rest = divmod(mixed.given.shape[-1], n_heads)
    if rest or pattern.shape[1] != n_heads:
        return None
    for points, n_kv_heads in _candidates(calls, mixed, n_heads=n_heads, width=width):
        values = next(each for each in calls if each.path == points["v"].module)
        assert values.out is not None
        if _explains(pattern, points["v"].view(values.out), mixed.given):
            counts = {"q": n_heads, "k": n_kv_heads}
            return Heads(_after_norms(points, calls, counts), n_kv_heads, width)
    return None


def _candidates(
    calls: list[Call], mixed: Call, *, n_heads: int, width: int
) -> Iterator[tuple[dict[str, HookPoint], int]]:
    """Every way to read queries, keys and values, with its number of key/value heads."""
    projections = [
        each for each in calls if each.has_matrix and each is not mixed and each.out is not None
    ]
    named = {
        name: next((each for each in projections if pattern.search(each.path)), None)
        for name, pattern in _NAMES.items()
    }
    if named["q"] is not None and named["k"] is not None and named["v"] is not None:
        n_kv_heads = _width(named["v"]) // width
        views = {"q": n_heads, "k": n_kv_heads, "v": n_kv_heads}
        points = {
            name: HookPoint(call.path, view=partial(_split_heads, count=views[name]))
            for name, call in named.items()
            if call is not None
        }
        yield points, n_kv_heads
    for call in projections:
        n_kv_heads, rest = divmod(_width(call) - n_heads * width, 2 * width)
        if not rest and n_kv_heads > 0 and not n_heads % n_kv_heads:
            for split in (_from_blocks, _from_groups):
                yield _fused(call, split, n_heads, n_kv_heads), n_kv_heads


def _fused(
    call: Call, split: Callable[..., Tensor], n_heads: int, n_kv_heads: int
) -> dict[str, HookPoint]:
    return {
        name: HookPoint(
            call.path, view=partial(split, name=name, n_heads=n_heads, n_kv_heads=n_kv_heads)
        )
        for name in ("q", "k", "v")
    }


def _width(call: Call) -> int:
    assert call.out is not None
    return call.out.shape[-1]


def _split_heads(acts: Tensor, count: int) -> Tensor:
    """(B, T, count*D) or (B, T, count, D) as (B, T, count, D)."""
    return acts if acts.ndim == 4 else _unfolded(acts, count)


def _from_blocks(acts: Tensor, *, name: str, n_heads: int, n_kv_heads: int) -> Tensor:
    """All queries, then all keys, then all values."""
    heads = _unfolded(acts, n_heads + 2 * n_kv_heads)
    start = {"q": 0, "k": n_heads, "v": n_heads + n_kv_heads}[name]
    return heads[..., start : start + (n_heads if name == "q" else n_kv_heads), :]


def _from_groups(acts: Tensor, *, name: str, n_heads: int, n_kv_heads: int) -> Tensor:
    """For each key/value head: its G queries, its key, its value."""
    per_group = n_heads // n_kv_heads
    groups = _unfolded(acts, n_kv_heads, per_group + 2)
    if name == "q":
        return groups[..., :per_group, :].flatten(-3, -2)
    return groups[..., per_group + "kv".index(name), :]


def _unfolded(acts: Tensor, *counts: int) -> Tensor:
    return acts.reshape(*acts.shape[:-1], *counts, -1)


def _explains(pattern_BATS: Tensor, values_BSKD: Tensor, mixed_BTH: Tensor) -> bool:
    """Whether these values, mixed by these weights, are what the output projection read."""
    n_heads = pattern_BATS.shape[1]
    values_BASD = values_BSKD.double().movedim(2, 1)
    per_group, rest = divmod(n_heads, values_BASD.shape[1])
    if rest:
        return False
    values_BASD = values_BASD.repeat_interleave(per_group, dim=1)
    found_BTAD = (pattern_BATS.double() @ values_BASD).movedim(1, 2)
    error = (found_BTAD.flatten(-2) - mixed_BTH.double()).abs().max()
    scale = max(float(values_BSKD.abs().max()), 1e-30)
    return float(error) <= _TOLERANCE * torch.finfo(mixed_BTH.dtype).eps * scale


def _after_norms(
    points: dict[str, HookPoint], calls: list[Call], counts: dict[str, int]
) -> dict[str, HookPoint]:
    """Read queries and keys behind their own norms, where the module has some.

    Norms whose output we cannot read take their site with them.
    """
    after = dict(points)
    for name, pattern in _NORMS.items():
        for call in calls:
            if not pattern.search(call.path):
                continue
            if call.out is not None:
                view: View = partial(_as_heads, like=points[name].view)
            elif len(call.shape) == 4 and call.shape[1] == counts[name]:
                view = _heads_second  # (B, A, T, D)
            else:
                after.pop(name, None)
                continue
            after[name] = HookPoint(call.path, view=view)
    return after


def _heads_second(acts: Tensor) -> Tensor:
    return acts.movedim(1, 2)


def _as_heads(acts: Tensor, like: View) -> Tensor:
    """Split what a norm gave as what it read was split, unless it already is."""
    return acts if acts.ndim == 4 else like(acts)
