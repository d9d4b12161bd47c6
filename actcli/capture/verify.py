"""A dump that proves itself: some samples again, alone, through the plain model.

No buffers, no early stop, no batch, no explicit attention unless a site exists only there: the
model as anybody would call it, with a list that collects what passes. Each value is cast to the
storage dtype and compared with the bytes in the file.

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
from actcli.capture.plan import CapturePlan, SitePlan, flatten, hooked
from actcli.models.adapter import ModelAdapter
from actcli.samples.source import SampleSource
from actcli.store.writer import DumpWriter

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest difference that batching may cause, relative to the largest value of the site: some
units in the last place of the storage dtype, and for float32 room for TF32-free GPU kernels."""


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
            difference, scale = _compare(site, plain[site.key], writer, row)
            largest[site.key] = max(largest[site.key], difference)
            agrees &= difference <= TOLERANCE[plan.dtype] * max(1.0, scale)
    return Verification(tuple(map(int, chosen)), largest, agrees)


def plain_values(
    adapter: ModelAdapter, plan: CapturePlan, samples: SampleSource, row: int
) -> dict[str, Tensor]:
    """Return one sample's activations by key, shaped and cast as a dump stores them."""
    inputs = to_device(samples.batch(row, row + 1).inputs, adapter.device)
    adapter.prepare(())
    seen = _run_plainly(adapter, plan.sites, inputs)
    hidden = [site for site in plan.sites if len(seen[site.key]) < len(site.points)]
    if hidden:
        adapter.prepare(site.key for site in hidden)
        seen |= _run_plainly(adapter, hidden, inputs)
    return {site.key: _as_stored(site, seen[site.key], plan.dtype) for site in plan.sites}


def _compare(site: SitePlan, plain: Tensor, writer: DumpWriter, row: int) -> tuple[float, float]:
    """The largest absolute difference in one row, and the largest plain magnitude.

    A value that is not finite agrees with the same value, and differs infinitely from any other.
    """
    raw = bytearray(writer.read_row(site.key, row))
    stored = torch.frombuffer(raw, dtype=plain.dtype).view(plain.shape).double()
    expected = plain.double()
    same = (stored == expected) | (stored.isnan() & expected.isnan())
    differences = (
        (stored - expected).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    )
    finite = expected[expected.isfinite()]
    return float(differences.max()), float(finite.abs().max()) if finite.numel() else 0.0


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


def _as_stored(site: SitePlan, by_place: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
    values = [by_place[place] for place in range(len(site.points))]
    if site.positions is not None:
        chosen = torch.tensor(site.positions, device=values[0].device)
        values = [each.index_select(site.position_axis, chosen) for each in values]
    rows = [each[0] for each in values]
    return (torch.stack(rows) if site.site.per_layer else rows[0]).to(dtype).cpu()
