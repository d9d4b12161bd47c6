"""What will be captured: the sites asked for, resolved against one model, with shapes and bytes.

Shapes come from one traced forward of a few samples, not from a table: on the meta device when
the model was loaded without weights, so that a plan costs nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actcli.capture.hooks import hooked
from actcli.errors import CaptureError, UsageError
from actcli.models.adapter import HookPoint, ModelAdapter
from actcli.samples.source import SampleSource
from actcli.sites import Site, find_site

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PROBE = 3  # copies of the first sample; few first axes but the batch's are 3 long
_SHORT_ENOUGH = 16  # tokens that samples of one length may have to be run as they are
_PROBE_TOKENS = 7  # of longer ones; few axes but that of the tokens are 7 long


@dataclass(frozen=True)
class SitePlan:
    """One activation site of one model, for the chosen layers and positions."""

    site: Site
    points: tuple[HookPoint, ...]
    """One per chosen layer, or a single one."""

    point_shape: tuple[int, ...]
    """Shape at one hook point for the longest sample, without the batch axis and after the choice
    of positions."""

    token_axes: tuple[int, ...]
    """Axes of that shape whose places are tokens."""

    dtype: torch.dtype
    """Storage dtype."""

    positions: tuple[int, ...] | None = None
    """Chosen tokens; None for all, or where the site has no token axis. Negative ones, which stand
    only where samples differ in length, count from each sample's own end."""

    @property
    def key(self) -> str:
        """The tensor's name in a dump."""
        return self.site.name

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sample in a dump: with the layer axis first, where the site has layers."""
        return self._with_layers(self.point_shape)

    def row_shape_at(self, n_tokens: int) -> tuple[int, ...]:
        """Shape of one sample in a batch whose longest sample has so many tokens."""
        chosen = self.position_axis - 1 if self.positions is not None else None
        grown = set(self.token_axes) - {chosen}
        return self._with_layers(
            tuple(n_tokens if axis in grown else n for axis, n in enumerate(self.point_shape))
        )

    @property
    def position_axis(self) -> int:
        """The axis of a hooked tensor (batch first) along which positions are chosen."""
        axes = [axis for axis in self.site.axes if axis != "L"]
        return axes.index("T") if "T" in axes else 1

    def _with_layers(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.points), *shape) if self.site.per_layer else shape


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
    """Storage dtype of what does not ask for another."""

    @property
    def row_bytes(self) -> int:
        """Bytes that one sample takes in storage."""
        return sum(math.prod(each.row_shape) * each.dtype.itemsize for each in self.sites)


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
        positions: tokens to keep, None for all; negative ones only where samples differ in length.
        dtype: storage dtype of the activations, where a site does not ask for another.

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
    probe = _probe_inputs(adapter, samples)
    shapes = _trace(adapter, points, probe) if points else {}
    chosen = None if positions is None else tuple(positions)
    lengths = _Lengths(probe["tokens"].shape[1], samples.n_tokens, chosen)
    plans = tuple(
        _site_plan(site, points[site.name], shapes[site.name], lengths, dtype)
        for site in activations
    )
    return CapturePlan(plans, parameters, tuple(layers), chosen, dtype)


class _Lengths(NamedTuple):
    """What token axes have."""

    probed: int
    """Tokens in the probe."""

    longest: int
    """Tokens of the longest sample."""

    positions: tuple[int, ...] | None
    """Chosen ones."""


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
    lengths: _Lengths,
    dtype: torch.dtype,
) -> SitePlan:
    if len(shapes) != 1:
        raise CaptureError(f"{site.name} has different shapes in different layers: {shapes}")
    (probed,) = shapes
    token_axes = _token_axes(site, probed, lengths.probed)
    shape = [lengths.longest if axis in token_axes else n for axis, n in enumerate(probed)]
    plan = SitePlan(site, points, tuple(shape), token_axes, points[0].dtype or dtype)
    if lengths.positions is None or "T" not in site.axes:
        return plan
    shape[plan.position_axis - 1] = len(lengths.positions)
    return replace(plan, point_shape=tuple(shape), positions=lengths.positions)


def _token_axes(site: Site, shape: tuple[int, ...], n_tokens: int) -> tuple[int, ...]:
    """The axes of a probed shape, without the batch's, that are as long as the sample.

    Raises:
        CaptureError: an axis that the site says is of tokens is not.
    """
    if not site.axes:
        return (0,) if shape[:1] == (n_tokens,) else ()
    named = [axis for axis in site.axes if axis not in ("N", "L")]
    axes = tuple(place for place, axis in enumerate(named) if axis in ("T", "S"))
    if any(axis >= len(shape) or shape[axis] != n_tokens for axis in axes):
        raise CaptureError(
            f"{site.name} is {list(shape)} for a sample of {n_tokens} tokens, expected the axes "
            f"{', '.join(named)}"
        )
    return axes


def _probe_inputs(adapter: ModelAdapter, samples: SampleSource) -> dict[str, Tensor]:
    """Copies of the first sample; of long ones a few tokens, since only shapes are of interest."""
    inputs = dict(samples.batch(range(1)).inputs)
    is_long = samples.lengths is not None or samples.n_tokens > _SHORT_ENOUGH
    if is_long and set(inputs) == {"tokens"}:
        n_tokens = min(_PROBE_TOKENS, adapter.max_tokens)
        inputs["tokens"] = np.resize(inputs["tokens"], (1, n_tokens))
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
