"""`--verify` sees a wrong value in the file, and no difference where there is none."""

import numpy as np
import pytest
import torch

from actcli.capture.engine import CaptureEngine
from actcli.capture.plan import make_plan
from actcli.capture.record import dump_tensors, record
from actcli.capture.verify import verify
from actcli.samples.batching import plan_batches
from actcli.store.writer import DumpWriter
from tests.capture.helpers import board_samples, make_adapter

OUTPUTS = ("layer_outputs", "attn_weights", "final_hidden", "pooled")


@pytest.fixture
def verified(tmp_path):
    """A function that dumps, changes one value in the file, and verifies all samples."""
    adapter, samples = make_adapter(tmp_path / "model"), board_samples(5)

    def run(*, add, dtype=torch.float32, n_samples=5, key="layer_outputs"):
        plan = make_plan(adapter, samples, OUTPUTS, layers=(0, 2), positions=(2, 7), dtype=dtype)
        path = tmp_path / "a.safetensors"
        with DumpWriter(path, dump_tensors(plan, samples)) as writer:
            batches = plan_batches(samples, batch_size=2, batch_tokens=0)
            engine = CaptureEngine(adapter, plan, samples, batches=batches)
            record(engine, writer.write_rows, advance=lambda _: None)
            row = torch.frombuffer(bytearray(writer.read_row(key, 3)), dtype=dtype)
            row[5] += add
            writer.write_rows(key, 3, memoryview(row.view(torch.uint8).numpy()))
            return verify(adapter, plan, samples, writer, n_samples=n_samples, seed=0)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_true_dump_agrees(verified, dtype):
    found = verified(add=0.0, dtype=dtype)
    assert found.agrees
    assert found.samples == (0, 1, 2, 3, 4)
    assert set(found.max_abs_difference) == set(OUTPUTS)
    assert found.max_abs_difference["layer_outputs"] < 0.1


@pytest.mark.parametrize("key", OUTPUTS)
def test_one_changed_value_is_seen_and_measured(verified, key):
    found = verified(add=0.5, key=key)
    assert not found.agrees
    assert found.max_abs_difference[key] == pytest.approx(0.5, abs=1e-3)
    others = [difference for name, difference in found.max_abs_difference.items() if name != key]
    assert max(others) < 1e-3


@pytest.mark.parametrize("add", [np.inf, np.nan])
def test_a_value_that_is_not_finite_differs_infinitely(verified, add):
    found = verified(add=add)
    assert not found.agrees
    assert found.max_abs_difference["layer_outputs"] == np.inf


def test_as_many_samples_as_asked_for(verified):
    assert len(verified(add=0.0, n_samples=2).samples) == 2
