"""How much memory a capture will take."""

import resource
import sys

import torch

from actcli.capture.engine import ring_bytes
from actcli.capture.plan import CapturePlan
from actcli.models.adapter import ModelAdapter
from actcli.samples.source import SampleSource


def peak_memory(
    adapter: ModelAdapter,
    plan: CapturePlan,
    samples: SampleSource,
    batch_size: int,
    *,
    device: torch.device,
) -> int:
    """Estimate the peak host memory of a capture, in bytes.

    This process as it is now (Python and PyTorch), plus the ring of buffers, plus on the CPU the
    weights and the intermediate values of one batch.
    """
    total = _resident_bytes() + ring_bytes(plan, batch_size, device)
    if device.type == "cpu":
        total += adapter.n_bytes + adapter.working_bytes(batch_size * samples.n_tokens)
    return total


def _resident_bytes() -> int:
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return in_kib if sys.platform == "darwin" else in_kib * 1024
