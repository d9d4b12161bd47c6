"""Whether an activation can be replaced: tried on the model before anything is reported.

1. What was read and is written back leaves the logits as they are.
2. Half of it, written, is read there, and changes the logits.
3. The stream between attention and MLP is read by a norm and by the addition behind the MLP. The
   norm's input is written in place; that both see it shows in what the block gives, less what its
   MLP adds: it must be what was written.

Tensor legend: B samples, T tokens, H hidden, V vocabulary.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from actcli.capture.engine import to_device
from actcli.capture.hooks import hooked, rewritten
from actcli.capture.splice_forward import Forward, Target
from actcli.errors import CaptureError
from actcli.models.adapter import HookPoint, ModelAdapter
from actcli.models.tail import tolerance
from actcli.samples.source import SampleSource

_MOST_TRIED = 2
_ROUNDINGS = 32.0
"""How many roundings of the dtype a sum or product may be off, relative to its largest term."""

_SHARED = {"mlp_input": "attn_norm", "attn_norm": "mlp_input"}


def refuse_shared(adapter: ModelAdapter, target: Target) -> None:
    """Refuse a norm that attention and MLP both read: to replace it would change both.

    Raises:
        CaptureError: it is one.
    """
    other = _SHARED.get(target.site)
    if other is None or target.layer is None:
        return
    point = adapter.layer_points(other, target.layer)
    if point is not None and (point.module, point.side) == (target.point.module, target.point.side):
        raise CaptureError(
            f"{target.place} cannot be replaced: attention and MLP both read it, as these run at "
            f"once in this model; evaluate the dictionary without cross-entropy and KL"
        )


def check_target(forward: Forward, target: Target, samples: SampleSource) -> None:
    """Try to replace an activation.

    Raises:
        CaptureError: it cannot be done right; says why.
    """
    rows = range(min(_MOST_TRIED, len(samples)))
    inputs = to_device(samples.batch(rows).inputs, forward.device)
    own: list[Tensor] = []
    with hooked(forward.adapter, target.point, lambda acts: own.append(acts.clone())):
        plain_BTV = forward.head_output(inputs)
    if not own:
        raise CaptureError(f"{target.place} did not run before the head, so it cannot be replaced")
    if own[0].ndim != 3 or own[0].shape[:2] != inputs["tokens"].shape:
        raise CaptureError(
            f"{target.place} is {list(own[0].shape)} for tokens {list(inputs['tokens'].shape)}, "
            f"expected one vector per token: it cannot be replaced"
        )

    written = partial(_run, forward, target, inputs)
    back_BTV, _seen, _block = written(lambda acts: acts.clone())
    if _distance(back_BTV, plain_BTV) > tolerance(plain_BTV.dtype):
        raise CaptureError(
            f"{target.place} cannot be replaced: what was read there (module "
            f"{target.point.module}), written back, changes the logits"
        )
    half_BTV, seen, block = written(lambda acts: acts / 2)
    if not seen or not _is_near(seen[0], own[0] / 2):
        raise CaptureError(
            f"{target.place} cannot be replaced: what is written there (module "
            f"{target.point.module}) is not what is read there"
        )
    changes = not torch.equal(half_BTV, plain_BTV) or not bool(own[0].any())
    if not changes or (block and not _is_sum(block, own[0] / 2)):
        raise CaptureError(
            f"{target.place} cannot be replaced: what is written there (module "
            f"{target.point.module}) is not seen by all that read it"
        )


def _run(
    forward: Forward,
    target: Target,
    inputs: dict[str, Tensor],
    write: Callable[[Tensor], Tensor],
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Logits with an activation changed, what is then read there, and the sum it is a term of."""
    seen: list[Tensor] = []
    block: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        hooks.enter_context(
            rewritten(forward.adapter, target.point, write, in_place=target.is_stream_input)
        )
        hooks.enter_context(
            hooked(forward.adapter, target.point, lambda acts: seen.append(acts.clone()))
        )
        for site in ("layer_outputs", "mlp_out") if target.is_stream_input else ():
            (point,) = forward.adapter.points(site, (target.layer or 0,))
            hooks.enter_context(_noted(forward.adapter, point, block, site))
        logits_BTV = forward.head_output(inputs)
    return logits_BTV, seen, block


def _noted(
    adapter: ModelAdapter, point: HookPoint, found: dict[str, Tensor], name: str
) -> torch.utils.hooks.RemovableHandle:
    def note(acts: Tensor) -> None:
        found[name] = acts.clone()

    return hooked(adapter, point, note)


def _distance(left: Tensor, right: Tensor) -> float:
    """The largest difference, in standard deviations of the right one."""
    spread = max(float(right.float().std()), 1e-12)
    return float((left.float() - right.float()).abs().max()) / spread


def _is_near(found: Tensor, expected: Tensor) -> bool:
    return _negligible(found.double() - expected.double(), expected)


def _is_sum(block: dict[str, Tensor], stream: Tensor) -> bool:
    """Whether a block gives the stream and what its MLP adds to it."""
    out, mlp = block["layer_outputs"], block["mlp_out"]
    return _negligible(out.double() - mlp.double() - stream.double(), out, mlp, stream)


def _negligible(error: Tensor, *terms: Tensor) -> bool:
    scale = max(float(each.abs().max()) for each in terms)
    return float(error.abs().max()) <= _ROUNDINGS * torch.finfo(terms[0].dtype).eps * scale
