"""How much memory a capture will take."""

import resource
import sys
from collections.abc import Sequence

import torch

from actcli.capture.plan import CapturePlan
from actcli.capture.ring import ring_bytes
from actcli.models.adapter import ModelAdapter
from actcli.samples.batching import measure_batches
from actcli.samples.source import Rows, SampleSource


def peak_memory(
    adapter: ModelAdapter,
    plan: CapturePlan,
    samples: SampleSource,
    batches: Sequence[Rows],
    *,
    device: torch.device,
) -> int:
    """Estimate the peak host memory of a capture, in bytes.

    This process as it is now (Python and PyTorch), plus the ring of buffers, plus on the CPU the
    weights and the intermediate values of the largest of the batches.
    """
    sizes = measure_batches(samples, batches)
    total = _resident_bytes() + ring_bytes(plan, sizes, device)
    if device.type == "cpu":
        most_tokens = max((count * n_tokens for count, n_tokens in sizes), default=0)
        total += adapter.n_bytes + adapter.working_bytes(most_tokens)
    return total


def _resident_bytes() -> int:
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return in_kib if sys.platform == "darwin" else in_kib * 1024
