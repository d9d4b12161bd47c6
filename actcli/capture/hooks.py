"""Read one activation of a model while it runs."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from actcli.errors import CaptureError
from actcli.models.adapter import HookPoint, ModelAdapter


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
