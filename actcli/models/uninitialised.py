"""Build a network without drawing its initial weights, since a checkpoint will replace them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class Uninitialised(TorchFunctionMode):
    """Within it the functions of `torch.nn.init` leave their tensor as it is.

    On the meta device there is nothing to draw, yet drawing there imports torch's compiler: a
    second of time and 70 MiB of memory.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip the initialisers, pass everything else on."""
        del types
        given = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)
