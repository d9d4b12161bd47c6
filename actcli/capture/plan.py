"""What will be captured: the sites asked for, resolved against one model, with shapes and bytes.

Shapes come from one traced forward of a few samples, not from a table: on the meta device when
the model was loaded without weights, so that a plan costs nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from actcli.errors import CaptureError, UsageError
from actcli.models.adapter import HookPoint, ModelAdapter
from actcli.samples.source import SampleSource
from actcli.sites import Site, find_site

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PROBE = 3  # copies of the first sample; few first axes but the batch's are 3 long


@dataclass(frozen=True)
class SitePlan:
    """One activation site of one model, for the chosen layers and positions."""

    site: Site
    points: tuple[HookPoint, ...]
    """One per chosen layer, or a single one."""

    point_shape: tuple[int, ...]
    """Shape at one hook point, without the batch axis and after the choice of positions."""

    positions: tuple[int, ...] | None
    """Chosen tokens; None for all, or where the site has no token axis."""

    @property
    def key(self) -> str:
        """The tensor's name in a dump."""
        return self.site.name

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sample: with the layer axis first, where the site has layers."""
        layers = (len(self.points),) if self.site.per_layer else ()
        return layers + self.point_shape

    @property
    def position_axis(self) -> int:
        """The axis of a hooked tensor (batch first) along which positions are chosen."""
        axes = [axis for axis in self.site.axes if axis != "L"]
        return axes.index("T") if "T" in axes else 1


@dataclass(frozen=True)
class CapturePlan:
    """All that a run will capture."""

    sites: tuple[SitePlan, ...]
    parameters: dict[str, Tensor]
    """Tensors of parameter sites by their key; the same for every sample."""

    layers: tuple[int, ...]
    """The model layers that the layer axis stands for."""

    positions: tuple[int, ...] | None
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes that one sample takes in storage."""
        return sum(math.prod(each.row_shape) for each in self.sites) * self.dtype.itemsize


def make_plan(
    adapter: ModelAdapter,
    samples: SampleSource,
    outputs: Sequence[str],
    *,
    layers: Sequence[int],
    positions: Sequence[int] | None,
    dtype: torch.dtype,
) -> CapturePlan:
    """Resolve sites against a model and learn their shapes from a traced forward.

    Args:
        adapter: the model; its computation is prepared for these sites.
        samples: what it will read; the first ones are run to learn the shapes.
        outputs: site names, checked (`actcli.sites.check_outputs`).
        layers: layers to keep of the per-layer sites.
        positions: tokens to keep, None for all.
        dtype: storage dtype of the activations.

    Raises:
        CaptureError: the model lacks a site, or it cannot be captured.
        UsageError: positions are asked for of a site whose axes are not known.
    """
    parameters: dict[str, Tensor] = {}
    activations: list[Site] = []
    for site in map(find_site, outputs):
        if site.is_parameter:
            parameters |= _parameters(adapter, site)
        else:
            activations.append(site)
    _check_positions(activations, positions)
    adapter.prepare(outputs)
    points = {site.name: adapter.points(site.name, layers) for site in activations}
    shapes = _trace(adapter, points, _probe_inputs(adapter, samples)) if points else {}
    chosen = None if positions is None else tuple(positions)
    plans = tuple(
        _site_plan(site, points[site.name], shapes[site.name], chosen) for site in activations
    )
    return CapturePlan(plans, parameters, tuple(layers), chosen, dtype)


def _check_positions(activations: Sequence[Site], positions: Sequence[int] | None) -> None:
    unknown = [site.name for site in activations if not site.axes]
    if positions is not None and unknown:
        raise UsageError(
            f"--positions: {unknown[0]} has no known token axis; leave out the one or the other"
        )


def _parameters(adapter: ModelAdapter, site: Site) -> dict[str, Tensor]:
    found = adapter.parameters(site.name)
    if found is None:
        raise CaptureError(
            f"this model ({adapter.family}) has no {site.name}; drop it from --outputs"
        )
    return found


def _site_plan(
    site: Site,
    points: tuple[HookPoint, ...],
    shapes: set[tuple[int, ...]],
    positions: tuple[int, ...] | None,
) -> SitePlan:
    if len(shapes) != 1:
        raise CaptureError(f"{site.name} has different shapes in different layers: {shapes}")
    (shape,) = shapes
    has_tokens = "T" in site.axes
    plan = SitePlan(site, points, shape, positions if has_tokens else None)
    if plan.positions is None:
        return plan
    axis = plan.position_axis - 1
    kept = (*shape[:axis], len(plan.positions), *shape[axis + 1 :])
    return SitePlan(site, points, kept, plan.positions)


def _probe_inputs(adapter: ModelAdapter, samples: SampleSource) -> dict[str, Tensor]:
    inputs = samples.batch(0, 1).inputs
    return {
        name: torch.from_numpy(array).repeat(_PROBE, *[1] * (array.ndim - 1)).to(adapter.device)
        for name, array in inputs.items()
    }


def _trace(
    adapter: ModelAdapter, points: dict[str, tuple[HookPoint, ...]], inputs: Mapping[str, Tensor]
) -> dict[str, set[tuple[int, ...]]]:
    """Run the probe and note what shapes appear at each site."""
    seen: dict[tuple[str, int], list[tuple[int, ...]]] = {}

    def note(site: str, index: int, acts: Tensor) -> None:
        seen.setdefault((site, index), []).append(tuple(acts.shape))

    with ExitStack() as stack, torch.inference_mode():
        for site, index, point in flatten(points):
            stack.enter_context(hooked(adapter, point, partial(note, site, index)))
        adapter.forward(inputs)
    for site, index, point in flatten(points):
        _check_fired_once(site, point, seen.get((site, index), []))
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for (site, _index), each in seen.items():
        shapes.setdefault(site, set()).add(each[0][1:])
    return shapes


def _check_fired_once(site: str, point: HookPoint, shapes: list[tuple[int, ...]]) -> None:
    where = f"{site} (module {point.module})"
    if not shapes:
        raise CaptureError(f"{where} did not run in a forward pass, so it cannot be captured")
    if len(shapes) > 1:
        raise CaptureError(
            f"{where} ran {len(shapes)} times in one forward pass: name its callers instead"
        )
    if shapes[0][:1] != (_PROBE,):
        raise CaptureError(f"{where} has no batch axis: its output is {list(shapes[0])}")


def flatten(
    points: dict[str, tuple[HookPoint, ...]],
) -> Iterator[tuple[str, int, HookPoint]]:
    """Go through the points as (site, place on the layer axis, point)."""
    for site, each in points.items():
        for index, point in enumerate(each):
            yield site, index, point


def hooked(adapter: ModelAdapter, point: HookPoint, read: Any) -> RemovableHandle:
    """Have `read(activation)` called whenever the point's module runs, until the handle closes.

    Raises:
        CaptureError: from within the forward, when the hooked value is not a tensor.
    """
    module = adapter.net.get_submodule(point.module)

    def on_output(_module: object, _args: object, output: object) -> None:
        read(point.view(_tensor(point, output)))

    def on_input(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        value = args[0] if args else next(iter(kwargs.values()), None)
        read(point.view(_tensor(point, value)))

    if point.side == "input":
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def _tensor(point: HookPoint, value: object) -> Tensor:
    """The activation itself: blocks of some families return it first in a tuple."""
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise CaptureError(
            f"module {point.module} gives {type(value).__name__}, not a tensor: "
            f"it cannot be captured"
        )
    return value
