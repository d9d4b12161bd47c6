"""What a transformer is made of, found by running it once on a few tokens.

One short forward is traced (`block_trace`), each block is resolved from what flowed through it
(`blocks`), and the end of the model is found and tested against its own logits (`tail`).

Tensor legend: B rows, T tokens, H hidden.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actcli.models.block_trace import BlockTrace, traced_blocks
from actcli.models.blocks import Block, resolve_block
from actcli.models.network import Network
from actcli.models.tail import Tail, find_tail, first_tensor
from actcli.models.widened import widened

_PROBE_TOKENS = 7  # a length that no head count or head width is likely to have
_ROUNDINGS = 1000.0  # between two implementations of attention, after all layers
_LARGEST_ROUNDING = 0.1  # of the largest activation, however coarse the dtype
_ORDINARY = 1000  # token ids to choose the probe from


@dataclass(frozen=True)
class Resolution:
    """The sites of a model."""

    blocks: tuple[Block, ...]
    """By layer."""

    tail: Tail


def resolve(network: Network) -> Resolution:
    """Find the sites of a model with weights; sets what `network` must know to run it.

    Raises:
        RuntimeError, TypeError, ValueError, IndexError: it does not run on plain token ids.
    """
    tokens_BT = _probe_tokens(network.config, network.vocab_size)
    tokens_BT = tokens_BT.to(next(network.net.parameters()).device)
    network.show_attention(shown=True)
    try:
        blocks, shown_BTH = _traced(network, tokens_BT)
        if not any("attn_weights" in block.points for block in blocks):
            network.asks_for_weights = True
            blocks, shown_BTH = _traced(network, tokens_BT)
    finally:
        network.show_attention(shown=False)
    network.needs_mask = not _same_prefix(shown_BTH)
    if not _agree(shown_BTH, _last_outputs(network, tokens_BT)):
        blocks = [_without_weights(block) for block in blocks]
    return Resolution(tuple(blocks), find_tail(network.net, network.blocks, tokens_BT))


def _traced(network: Network, tokens_BT: Tensor) -> tuple[list[Block], Tensor]:
    """The blocks, and what the last one gives."""
    blocks: list[Block] = []
    outputs: list[Tensor] = []

    def note(_number: int, trace: BlockTrace) -> None:
        blocks.append(resolve_block(trace, n_heads=network.n_heads))
        outputs[:] = [each for each in [trace.whole.out] if each is not None]

    shape = (tokens_BT.shape[0], tokens_BT.shape[1])
    tracing = traced_blocks(network.blocks, shape, note)
    with tracing, widened(network.blocks), torch.inference_mode():
        network.run(tokens_BT)
    if len(blocks) != network.n_layers or not outputs:
        raise ValueError(
            f"{len(blocks)} of its {network.n_layers} blocks ran and gave one vector per token"
        )
    return blocks, outputs[0]


def _last_outputs(network: Network, tokens_BT: Tensor) -> Tensor | None:
    seen: list[Any] = []
    handle = network.blocks[-1].register_forward_hook(
        lambda _module, _args, output: seen.append(first_tensor(output))
    )
    try:
        with torch.inference_mode():
            network.run(tokens_BT)
    finally:
        handle.remove()
    return seen[0] if seen else None


def _agree(shown_BTH: Tensor, fast_BTH: Tensor | None) -> bool:
    """Whether the attention that shows its weights is the attention that the model uses."""
    if fast_BTH is None or fast_BTH.shape != shown_BTH.shape:
        return False
    limit = min(_ROUNDINGS * torch.finfo(fast_BTH.dtype).eps, _LARGEST_ROUNDING)
    error = float((fast_BTH.float() - shown_BTH.float()).abs().max())
    return error <= limit * float(fast_BTH.float().abs().max())


def _without_weights(block: Block) -> Block:
    points = {name: point for name, point in block.points.items() if name != "attn_weights"}
    return replace(block, points=points)


def _probe_tokens(config: Any, vocab_size: int) -> Tensor:
    """Two rows (2, T) of ordinary tokens that differ in the last one alone."""
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    ordinary = [each for each in range(min(vocab_size, _ORDINARY)) if each not in special]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(ordinary), generator=generator)[: _PROBE_TOKENS + 1].tolist()
    *shared, first, second = (ordinary[each] for each in chosen)
    return torch.tensor([[*shared, first], [*shared, second]])


def _same_prefix(acts_BTH: Tensor) -> bool:
    """Whether what comes before the last token is the same in both rows: no look ahead."""
    left, right = acts_BTH[:, :-1].double()
    limit = 100 * torch.finfo(acts_BTH.dtype).eps * float(left.abs().max())
    return bool((left - right).abs().max() <= limit)
