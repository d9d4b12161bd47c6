"""What a transformer does after its last block, found by a trace: final norm, head, transform.

Self-test: the formula that was found, applied to the output of the last block, must give the
model's own logits. Where it does not, the model's own tail is replayed; where that fails too
(streams that are not one vector per token), there is no lens, with a reason.

Tensor legend: B rows, T tokens, H hidden, V vocabulary, R = B*T.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actcli.models.block_trace import same_values
from actcli.models.norms import Norm, as_norm
from actcli.models.unembedding import (
    HeadFormula,
    HeadTransform,
    TailReplay,
    Unembedding,
    find_transform,
)

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Largest difference of the lens from the model's logits, relative to their standard deviation:
rounding of the model's dtype, in which its own logits are computed."""

_LARGE_LOGIT = 100.0  # at which a soft cap shows, whatever the cap


@dataclass(frozen=True)
class Tail:
    """The end of a model."""

    norm: Norm | None
    norm_path: str | None
    unembedding: Unembedding | None
    """None where the self-test failed."""

    error: float | None
    """Largest difference of the last layer's lens from the logits, in standard deviations."""

    why_not: str = ""
    """What the self-test found, where there is no unembedding."""

    head_path: str | None = None
    """The module that gives the logits before their transform."""

    transform: HeadTransform | None = None
    """What follows the head; None where it is none that we know."""


@dataclass
class _Seen:
    """What passed after the last block of one forward."""

    last: Tensor | None = None
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = field(default_factory=list)


def find_tail(net: nn.Module, blocks: nn.ModuleList, tokens_BT: Tensor) -> Tail:
    """Find the end of a model, and test it against the model's own logits.

    Args:
        net: the whole model, with its head.
        blocks: its blocks, in order.
        tokens_BT: token ids to try it on.
    """
    seen, logits = _trace(net, blocks, tokens_BT)
    norm, path = _final_norm(seen)
    head = _head(net)
    if logits is None or seen.last is None or head is None:
        return Tail(norm, path, None, None, "it has no head that gives logits for every token")
    if seen.last.ndim != logits.ndim:
        why = f"its last block gives {list(seen.last.shape)}: more than one vector per token"
        return Tail(norm, path, None, None, why, _path_of(net, head))
    transform = _traced_transform(net, head, tokens_BT)
    found = Tail(norm, path, None, None, "", _path_of(net, head), transform)
    formula = _formula(found, head, seen)
    failures = []
    for unembedding in (formula, _replay(net, blocks, tokens_BT, seen.last, logits)):
        if unembedding is not None:
            error = _self_test(unembedding, seen.last, logits)
            if error <= tolerance(logits.dtype):
                return replace(found, unembedding=unembedding, error=error)
            failures.append(f"{unembedding.describe()['method']}: off by {error:.3g}")
    after = ", ".join(name for name, *_rest in seen.calls) or "nothing"
    why_not = (
        f"the last layer's lens does not give the model's own logits "
        f"({'; '.join(failures) or 'no formula fits'}); after its last block come: {after}"
    )
    return replace(found, why_not=why_not)


def tolerance(dtype: torch.dtype) -> float:
    """How far the lens may be from the logits of a model of that dtype, in standard deviations."""
    return _TOLERANCE.get(dtype, 8e-2)


def _trace(net: nn.Module, blocks: nn.ModuleList, tokens_BT: Tensor) -> tuple[_Seen, Tensor | None]:
    """Run the model once, and note every call after its last block."""
    seen = _Seen()
    in_blocks = {id(each) for block in blocks for each in block.modules()}

    def note_last(_module: nn.Module, _args: object, output: object) -> None:
        seen.last = first_tensor(output)

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        given, out = first_tensor(args), first_tensor(output)
        if seen.last is not None and given is not None and out is not None:
            seen.calls.append((name, module, given, out))

    with ExitStack() as hooks, torch.inference_mode():
        hooks.enter_context(blocks[-1].register_forward_hook(note_last))
        for name, module in net.named_modules():
            holds_blocks = any(id(each) in in_blocks for each in module.modules())
            if not holds_blocks and not any(True for _child in module.children()):
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        output = net(input_ids=tokens_BT, use_cache=False)
    logits = getattr(output, "logits", None)
    return seen, logits if isinstance(logits, Tensor) and logits.ndim == 3 else None


def first_tensor(value: object) -> Tensor | None:
    """A tensor, or the first element of a tuple."""
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _final_norm(seen: _Seen) -> tuple[Norm | None, str | None]:
    """The norm that reads the output of the last block."""
    for name, module, given, _out in seen.calls:
        if same_values(given, seen.last):
            norm = as_norm(module, given.shape[-1])
            if norm is not None:
                return norm, name
    return None, None


def _formula(tail: Tail, head: nn.Module, seen: _Seen) -> Unembedding | None:
    """The tail as norm, linear maps, head and transform; None if something else is in it."""
    if tail.transform is None or not isinstance(getattr(head, "weight", None), Tensor):
        return None
    maps = [
        module
        for name, module, _given, _out in seen.calls
        if name not in (tail.head_path, tail.norm_path) and isinstance(module, nn.Linear)
    ]
    return HeadFormula(
        tail.norm,
        maps,
        head,
        tail.transform,
        names={"norm_path": tail.norm_path, "head_path": tail.head_path},
    )


def _path_of(net: nn.Module, module: nn.Module) -> str:
    names: dict[int, str] = {id(each): name for name, each in net.named_modules()}
    return names[id(module)]


def _head(net: nn.Module) -> nn.Module | None:
    find = getattr(net, "get_output_embeddings", None)
    head = find() if find is not None else None
    return head if isinstance(head, nn.Module) else None


def _traced_transform(net: nn.Module, head: nn.Module, tokens_BT: Tensor) -> HeadTransform | None:
    """Run the model with the head's output made large, so that a soft cap shows."""
    given: list[Tensor] = []

    def enlarge(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        large = output * (_LARGE_LOGIT / output.abs().max().clamp(min=1e-20))
        given.append(large)
        return large

    handle = head.register_forward_hook(enlarge)
    try:
        with torch.inference_mode():
            logits = net(input_ids=tokens_BT, use_cache=False).logits
    finally:
        handle.remove()
    config = getattr(net, "config", None)
    text = config.get_text_config() if config is not None else None
    numbers = [each for each in vars(text).values() if isinstance(each, float)] if text else []
    return find_transform(given[0], logits, numbers) if given else None


def _replay(
    net: nn.Module,
    blocks: nn.ModuleList,
    tokens_BT: Tensor,
    last: Tensor,
    logits: Tensor,
) -> Unembedding | None:
    if last.shape[:2] != logits.shape[:2] or last.ndim != 3:
        return None

    def run(n_tokens: int, stream_1TH: Tensor) -> Tensor:
        def replace(_module: nn.Module, _args: object, output: Any) -> Any:
            return (stream_1TH, *output[1:]) if isinstance(output, tuple) else stream_1TH

        handle = blocks[-1].register_forward_hook(replace)
        try:
            with torch.inference_mode():
                ids = tokens_BT[:1, :1].expand(1, n_tokens)
                found: Tensor = net(input_ids=ids, use_cache=False).logits
                return found
        finally:
            handle.remove()

    like = next(net.parameters())
    return TailReplay(run, d_model=last.shape[-1], vocab_size=logits.shape[-1], like=like)


def _self_test(unembedding: Unembedding, last_BTH: Tensor, logits_BTV: Tensor) -> float:
    """The largest difference from the model's logits, in their standard deviations."""
    expected_RV = logits_BTV.flatten(0, 1).float()
    found_RV = torch.empty_like(expected_RV)
    with torch.inference_mode():
        try:
            unembedding.logits_into(unembedding.normed(last_BTH.flatten(0, 1)), found_RV)
        except RuntimeError:
            return float("inf")  # shapes that do not fit together
    spread = max(float(expected_RV.std()), 1e-12)
    return float((found_RV - expected_RV).abs().max()) / spread
