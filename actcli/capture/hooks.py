"""Read one activation of a model while it runs, or put another in its place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from actcli.errors import CaptureError
from actcli.models.adapter import HookPoint, ModelAdapter

_ROUNDINGS = 8.0
"""How many roundings of the dtype a product may be off."""


def hooked(
    adapter: ModelAdapter, point: HookPoint, read: Callable[[Tensor], None]
) -> RemovableHandle:
    """Have `read(activation)` called whenever the point's module runs, until the handle closes.

    Raises:
        CaptureError: from within the forward, when the hooked value is not a tensor.
    """
    module = adapter.net.get_submodule(point.module)

    def on_output(_module: object, _args: object, output: object) -> None:
        if not _is_withheld(point, output):
            read(point.view(_tensor(point, output)))

    def on_input(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        value = args[0] if args else next(iter(kwargs.values()), None)
        read(point.view(_tensor(point, value)))

    if point.side == "input":
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def rewritten(
    adapter: ModelAdapter,
    point: HookPoint,
    rewrite: Callable[[Tensor], Tensor],
    *,
    in_place: bool = False,
) -> RemovableHandle:
    """Put `rewrite(activation)` in the place of the activation, until the handle closes.

    What is written at a module's output, all see who read that. What is written at its input, this
    module alone sees, unless it is written in place: then all see it who hold the same tensor, such
    as the residual stream that a norm reads from and the block goes on with.

    Args:
        adapter: the model.
        point: where; its view must be a part of the hooked tensor, or that times a factor.
        rewrite: takes the activation, gives another of that shape.
        in_place: whether the hooked tensor itself is written into.

    Raises:
        CaptureError: from within the forward, when nothing can be written there.
    """
    module = adapter.net.get_submodule(point.module)

    def changed(value: object) -> object:
        return _changed(point, value, rewrite, in_place=in_place)

    def on_output(_module: object, _args: object, output: object) -> object:
        return output if _is_withheld(point, output) else changed(output)

    def on_input(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, kwargs | {name: changed(kwargs[name])}

    if point.side == "input":
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def _changed(
    point: HookPoint, value: object, rewrite: Callable[[Tensor], Tensor], *, in_place: bool
) -> object:
    """A module's input or output with the new activation in it."""
    tensor = _tensor(point, value)
    acts = point.view(tensor)
    new = put_back(point, tensor, acts, rewrite(acts))
    if in_place:
        tensor.copy_(new)
        return value
    if not isinstance(value, tuple):
        return new
    item = point.item or 0
    return (*value[:item], new, *value[item + 1 :])


def put_back(point: HookPoint, tensor: Tensor, acts: Tensor, new: Tensor) -> Tensor:
    """Return the hooked tensor whose view is `new`.

    Args:
        point: whose view it is.
        tensor: the hooked tensor, which is left as it is.
        acts: its view.
        new: another activation of that shape; where it equals `acts`, nothing changes.

    Raises:
        CaptureError: the view is computed in a way that cannot be undone.
    """
    new = new.to(acts.dtype)
    if acts is tensor:
        return new
    copy = tensor.clone()
    view = point.view(copy)
    if view.untyped_storage().data_ptr() == copy.untyped_storage().data_ptr():
        view.copy_(new)
        return copy
    factor = _factor(point, tensor, acts)
    if factor is None:
        raise CaptureError(
            f"what is read at module {point.module} is computed from its {point.side}, so nothing "
            f"can be written in its place: choose another site"
        )
    scaled = torch.where(new == acts, tensor.reshape(acts.shape), (new / factor).to(tensor.dtype))
    return scaled.reshape(tensor.shape)


def _factor(point: HookPoint, tensor: Tensor, acts: Tensor) -> float | None:
    """The r of view(tensor) = r * tensor; None if the view is something else."""
    if acts.numel() != tensor.numel():
        return None
    of_ones = point.view(torch.ones_like(tensor)).double()
    factor = float(of_ones.flatten()[0])
    limit = _ROUNDINGS * torch.finfo(tensor.dtype).eps
    difference = acts.double() - factor * tensor.reshape(acts.shape).double()
    is_factor = (of_ones == factor).all() and (difference.abs() <= limit * acts.abs()).all()
    return factor if factor and bool(is_factor) else None


def _is_withheld(point: HookPoint, output: object) -> bool:
    """Whether a module leaves out an element that it only gives when it is asked for."""
    if point.item is None or not isinstance(output, tuple):
        return False
    return point.item >= len(output) or output[point.item] is None


def _tensor(point: HookPoint, value: object) -> Tensor:
    """The activation itself: many modules return it in a tuple, mostly as the first."""
    item = point.item or 0
    if isinstance(value, tuple):
        value = value[item] if item < len(value) else None
    elif item:
        value = None
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"module {point.module} gives {type(value).__name__}, not a tensor: "
            f"it cannot be captured"
        )
    return value
