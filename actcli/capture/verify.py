"""A dump that proves itself: some samples again, alone, through the plain model.

No buffers, no early stop, no batch, no explicit attention unless a site exists only there: the
model as anybody would call it, with a list that collects what passes. Each value is cast to the
storage dtype and compared with the bytes in the file; beyond a sample's end these must be 0.

Tensor legend: as in `actcli.sites`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.engine import to_device
from actcli.capture.hooks import hooked
from actcli.capture.plan import CapturePlan, SitePlan, flatten
from actcli.models.adapter import ModelAdapter
from actcli.samples.source import SampleSource
from actcli.store.writer import DumpWriter

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest difference that batching may cause, relative to the largest value of the site: some
units in the last place of the storage dtype, or of the model's if that is coarser, and for float32
room for TF32-free GPU kernels."""

SAME_IDS = 0.9
"""Share of ids that must be the same: of two that are nearly equal, rounding tells the first."""


@dataclass(frozen=True)
class Verification:
    """How far a dump is from the plain model."""

    samples: tuple[int, ...]
    """The samples of the dump that were run again."""

    max_abs_difference: Mapping[str, float]
    """By key, over those samples, between the stored value and the plain one cast alike."""

    agrees: bool
    """Whether every difference is within the tolerance of the storage dtype."""


def verify(
    adapter: ModelAdapter,
    plan: CapturePlan,
    samples: SampleSource,
    writer: DumpWriter,
    *,
    n_samples: int,
    seed: int,
) -> Verification:
    """Run random samples again, one at a time, and compare them with what is in the file.

    Args:
        adapter: the model.
        plan: what was captured.
        samples: what the model read.
        writer: the dump, written and not yet committed.
        n_samples: how many to run again, at most all.
        seed: seed of the draw.
    """
    rng = np.random.default_rng(seed)
    count = min(n_samples, len(samples))
    chosen: NDArray[np.int64] = np.sort(rng.choice(len(samples), size=count, replace=False))
    largest = dict.fromkeys((each.key for each in plan.sites), 0.0)
    agrees = True
    for row in map(int, chosen):
        plain = plain_values(adapter, plan, samples, row)
        for site in plan.sites:
            difference, fits = _compare(site, plain[site.key], writer, row, adapter)
            largest[site.key] = max(largest[site.key], difference)
            agrees &= fits
    return Verification(tuple(map(int, chosen)), largest, agrees)


def plain_values(
    adapter: ModelAdapter, plan: CapturePlan, samples: SampleSource, row: int
) -> dict[str, Tensor]:
    """Return one sample's activations by key, shaped and cast as a dump stores them."""
    inputs = to_device(samples.batch(range(row, row + 1)).inputs, adapter.device)
    adapter.prepare(())
    seen = _run_plainly(adapter, plan.sites, inputs)
    hidden = [site for site in plan.sites if len(seen[site.key]) < len(site.points)]
    if hidden:
        adapter.prepare(site.key for site in hidden)
        seen |= _run_plainly(adapter, hidden, inputs)
    n_tokens = inputs["tokens"].shape[1]
    return {site.key: _as_stored(site, seen[site.key], n_tokens) for site in plan.sites}


def _compare(
    site: SitePlan, plain: Tensor, writer: DumpWriter, row: int, adapter: ModelAdapter
) -> tuple[float, bool]:
    """The largest absolute difference in one row, and whether rounding explains it.

    A value that is not finite agrees with the same value, and differs infinitely from any other.
    """
    raw = bytearray(writer.read_row(site.key, row))
    stored = torch.frombuffer(raw, dtype=plain.dtype).view(plain.shape).double()
    expected = plain.double()
    same = (stored == expected) | (stored.isnan() & expected.isnan())
    differences = (
        (stored - expected).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    )
    largest = float(differences.max())
    if not plain.is_floating_point():
        return largest, float(same.double().mean()) >= SAME_IDS
    finite = expected[expected.isfinite()]
    scale = max(1.0, float(finite.abs().max()) if finite.numel() else 0.0)
    return largest, largest <= _tolerance(plain.dtype, adapter) * scale


def _tolerance(stored: torch.dtype, adapter: ModelAdapter) -> float:
    of_model = next(adapter.net.parameters()).dtype
    return max(TOLERANCE[stored], TOLERANCE.get(of_model, TOLERANCE[stored]))


def _run_plainly(
    adapter: ModelAdapter, sites: Sequence[SitePlan], inputs: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    seen: dict[str, dict[int, Tensor]] = {site.key: {} for site in sites}

    def keep(key: str, place: int, acts: Tensor) -> None:
        seen[key][place] = acts.clone()

    with ExitStack() as hooks, torch.inference_mode():
        for key, place, point in flatten({site.key: site.points for site in sites}):
            hooks.enter_context(hooked(adapter, point, partial(keep, key, place)))
        adapter.forward(inputs)
    return seen


def _as_stored(site: SitePlan, by_place: Mapping[int, Tensor], n_tokens: int) -> Tensor:
    """One sample as a dump has it: chosen positions, layers together, zeros beyond its end."""
    places = range(len(site.points))
    rows = [_chosen_positions(site, by_place[place][0], n_tokens) for place in places]
    values = torch.stack(rows) if site.site.per_layer else rows[0]
    stored = torch.zeros(site.row_shape, dtype=site.dtype)
    stored[tuple(map(slice, values.shape))] = values.to(site.dtype).cpu()
    return stored


def _chosen_positions(site: SitePlan, acts: Tensor, n_tokens: int) -> Tensor:
    if site.positions is None:
        return acts
    axis = site.position_axis - 1
    tokens = [each if each >= 0 else each + n_tokens for each in site.positions]
    nothing = torch.zeros_like(acts.select(axis, 0))
    there = [acts.select(axis, t) if 0 <= t < n_tokens else nothing for t in tokens]
    return torch.stack(there, dim=axis)
