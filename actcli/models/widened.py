"""Blocks with weights in half precision, run in float32 while they are resolved.

Sums and splits are found by arithmetic. In bfloat16 that is blind: next to a large stream, what
attention adds drowns in rounding, and any module explains the rest. Widening is exact, so a block
that computes in float32 has the same sites, and shows them. One block is widened at a time.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def widened(blocks: nn.ModuleList) -> Iterator[None]:
    """Have each block compute in float32, and give what it gives in the dtype that it was given.

    Enter it after the hooks that should see float32. Blocks whose weights are not simply there
    (quantised, or kept elsewhere by accelerate) run as they are.
    """
    with ExitStack() as hooks:
        for block in blocks:
            if _can_widen(block):
                widening = _Widening(block)
                hooks.callback(widening.restore)
                hooks.enter_context(
                    block.register_forward_pre_hook(widening.begin, with_kwargs=True, prepend=True)
                )
                hooks.enter_context(block.register_forward_hook(widening.end))
        yield


class _Widening:
    """One block's weights, in the one dtype or the other."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._dtype = torch.float32

    def begin(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in _tensors(self._block):
            if tensor.dtype in _HALF:
                self._dtype = tensor.dtype
                with torch.inference_mode(False):
                    self._kept.append((tensor, tensor.data))
                    tensor.data = tensor.data.float()
        return _cast(args, _HALF, torch.float32), _cast(kwargs, _HALF, torch.float32)

    def end(self, _module: object, _args: object, output: Any) -> Any:
        self.restore()
        return _cast(output, (torch.float32,), self._dtype)

    def restore(self) -> None:
        """Put the weights back: the very same memory."""
        with torch.inference_mode(False):
            for tensor, data in self._kept:
                tensor.data = data
        self._kept.clear()


def _can_widen(block: nn.Module) -> bool:
    tensors = list(_tensors(block))
    is_plain = all(not each.is_meta for each in tensors) and all(
        each.is_floating_point() for each in block.parameters()
    )
    return is_plain and any(each.dtype in _HALF for each in tensors)


def _tensors(block: nn.Module) -> Iterator[Tensor]:
    return chain(block.parameters(), block.buffers())


def _cast(value: Any, from_dtypes: tuple[torch.dtype, ...], to_dtype: torch.dtype) -> Any:
    """The same tensors, tuples and dictionaries with tensors of some dtypes in another one."""
    if isinstance(value, Tensor):
        return value.to(to_dtype) if value.dtype in from_dtypes else value
    if type(value) in (tuple, list):
        return type(value)(_cast(each, from_dtypes, to_dtype) for each in value)
    if type(value) is dict:
        return {name: _cast(each, from_dtypes, to_dtype) for name, each in value.items()}
    return value
