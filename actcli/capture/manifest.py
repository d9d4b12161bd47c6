"""What made a dump: the metadata that goes into it.

Nine keys are those that dumps of the 2048 encoder have always had, so that old readers go on
working. Everything else is one JSON text under `manifest`.
"""

import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from actcli import __version__
from actcli.capture.plan import CapturePlan
from actcli.capture.record import Recording
from actcli.capture.verify import Verification
from actcli.models.adapter import ModelAdapter
from actcli.samples.batching import measure_batches
from actcli.samples.source import Rows, SampleSource

SCHEMA_VERSION = 1


def describe_run(
    config: Mapping[str, Any],
    adapter: ModelAdapter,
    plan: CapturePlan,
    samples: SampleSource,
    batches: Sequence[Rows],
) -> dict[str, Any]:
    """What is known before the run: configuration, versions, fingerprints of model and data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "actcli": __version__,
        "config": dict(config),
        "argv": sys.argv[1:],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "model": {
            "family": adapter.family,
            "path": str(adapter.files.source.path.absolute()),
            **adapter.fingerprint(),
            "has_sinks": adapter.parameters("attn_sinks") is not None,
        },
        "data": samples.manifest(),
        "device": device_name(adapter.device),
        "layers": list(plan.layers),
        "positions": None if plan.positions is None else list(plan.positions),
        "batches": _describe_batches(samples, batches),
    }


def _describe_batches(samples: SampleSource, batches: Sequence[Rows]) -> dict[str, Any]:
    """What ran together: on some devices results depend on it in their last bits."""
    sizes = measure_batches(samples, batches)
    return {
        "count": len(sizes),
        "order": "as given" if samples.lengths is None else "longest first",
        "most_samples": max((each.n_samples for each in sizes), default=0),
        "most_tokens": max((each.n_samples * each.n_tokens for each in sizes), default=0),
    }


def describe_results(recording: Recording, verification: Verification | None) -> dict[str, Any]:
    """What is known after the run: time, values that are not finite, the verification."""
    return {
        "elapsed_s": round(recording.elapsed_s, 3),
        "non_finite": dict(recording.non_finite),
        "verification": verification
        and {
            "n_samples": len(verification.samples),
            "max_abs_difference": {
                key: each if math.isfinite(each) else None  # JSON has no infinity
                for key, each in verification.max_abs_difference.items()
            },
            "agrees": verification.agrees,
        },
    }


def dump_metadata(
    adapter: ModelAdapter, manifest: Mapping[str, Any], *, n_samples: int
) -> dict[str, str]:
    """All metadata of a dump, as the strings that safetensors stores."""
    config = manifest["config"]
    return {
        "checkpoint": adapter.files.source.init,
        **adapter.metadata(),
        "n_samples": str(n_samples),
        "seed": str(config["seed"]),
        "dtype": config["dtype"],
        "outputs": ",".join(sorted(config["outputs"])),
        "manifest": json.dumps(manifest),
    }


def device_name(device: torch.device) -> str:
    """The device with the name of its GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
