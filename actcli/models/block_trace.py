"""What happens inside the blocks of a transformer in one forward pass: every module call, in order.

The trace is how sites are found without a table per architecture: a module is told by what flows
through it, not by its name. Values are copied when they pass, since some models add in place.

Tensor legend: B rows, T tokens, H hidden, A heads, S keys.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_BEYOND_ALL = 1 << 30


@dataclass
class Call:
    """One module call inside a block."""

    path: str
    """Below the block; empty for the block itself."""

    module: nn.Module
    begin: int
    """When it was called, counted over all calls and returns of the block."""

    end: int = _BEYOND_ALL
    """When it returned."""

    given: Tensor | None = None
    """Its first argument, as (B, T, ...)."""

    out: Tensor | None = None
    """What it gave, or the first element of that, as (B, T, ...)."""

    shape: tuple[int, ...] = ()
    """Of what it gave, as it gave it."""

    is_flat: bool = False
    """Whether it reads tokens of all rows in one axis, (B*T, H)."""

    pattern_item: int | None = None
    """Which element of its output has the shape of attention weights (B, A, T, T)."""

    pattern: Tensor | None = None
    """That element."""

    def holds(self, other: "Call") -> bool:
        """Whether the other module is this one or inside it."""
        return self.path in ("", other.path) or other.path.startswith(self.path + ".")

    @property
    def has_matrix(self) -> bool:
        """Whether it multiplies by weights of its own (and is no table of embeddings)."""
        own = self.module.parameters(recurse=False)
        return not isinstance(self.module, nn.Embedding) and any(each.ndim >= 2 for each in own)


@dataclass
class BlockTrace:
    """The calls of one block, in the order in which they began; each module runs once."""

    block: nn.Module
    shape: tuple[int, int]
    """(B, T) of the traced tokens."""

    calls: list[Call] = field(default_factory=list)

    @property
    def whole(self) -> Call:
        """The block's own call."""
        return self.calls[0]

    def inside(self, path: str) -> list[Call]:
        """The calls of a module and of what is in it."""
        below = path + "."
        return [each for each in self.calls if each.path == path or each.path.startswith(below)]


Resolve = Callable[[int, BlockTrace], None]


@contextmanager
def traced_blocks(
    blocks: nn.ModuleList, shape: tuple[int, int], resolve: Resolve
) -> Iterator[None]:
    """Have `resolve(number, trace)` called at the end of each block; its trace is then dropped."""
    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            recorder = _Recorder(BlockTrace(block, shape), partial(resolve, number))
            for path, module in block.named_modules():
                hooks.enter_context(
                    module.register_forward_pre_hook(
                        partial(recorder.begin, path), with_kwargs=True, prepend=True
                    )
                )
                hooks.enter_context(module.register_forward_hook(partial(recorder.end, path)))
        yield


class _Recorder:
    """Notes the calls of one block."""

    def __init__(self, trace: BlockTrace, done: Callable[[BlockTrace], None]) -> None:
        self._trace, self._done = trace, done
        self._clock = 0
        self._repeated: set[str] = set()
        self._is_done = False  # then modules run only because somebody asks them what they do

    def begin(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._is_done:
            return
        if any(each.path == path for each in self._trace.calls):
            self._repeated.add(path)  # an expert, or a shared module: no single place
        call = Call(path, module, self._tick())
        value = args[0] if args else next(iter(kwargs.values()), None)
        call.given = self._by_token(value)
        if isinstance(value, Tensor) and call.given is not None:
            call.is_flat = value.shape[:2] != self._trace.shape
        self._trace.calls.append(call)

    def end(self, path: str, _module: nn.Module, _args: object, output: Any) -> None:
        if self._is_done:
            return
        call = next(each for each in reversed(self._trace.calls) if each.path == path)
        items = output if isinstance(output, tuple) else (output,)
        call.end = self._tick()
        call.out = self._by_token(items[0]) if items else None
        call.shape = tuple(items[0].shape) if items and isinstance(items[0], Tensor) else ()
        n_tokens = self._trace.shape[1]
        for number, item in enumerate(items):
            if isinstance(item, Tensor) and item.ndim == 4 and item.shape[2:] == (n_tokens,) * 2:
                call.pattern_item, call.pattern = number, item.detach().clone()
        if not path:
            self._finish()

    def _finish(self) -> None:
        self._is_done, trace = True, self._trace
        trace.calls = [each for each in trace.calls if each.path not in self._repeated]
        self._done(trace)
        trace.calls = []

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _by_token(self, value: object) -> Tensor | None:
        """A copy as (B, T, ...), or None for what is not one vector per token."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return None
        rows, tokens = self._trace.shape
        if value.shape[:2] == (rows, tokens):
            return value.detach().clone()
        if value.ndim == 2 and value.shape[0] == rows * tokens:
            return value.detach().clone().view(rows, tokens, -1)
        return None


def same_values(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether two traced tensors hold the same numbers, whatever their shape."""
    if left is None or right is None or left.numel() != right.numel():
        return False
    return torch.equal(left.reshape(-1), right.reshape(-1))
