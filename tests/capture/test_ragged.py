"""Samples of different lengths: what a dump holds is what each sample gives alone."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from actcli.capture.dumping import prepare, run_without_writing, write_dump
from actcli.capture.engine import CaptureEngine
from actcli.capture.estimate import peak_memory
from actcli.capture.plan import make_plan
from actcli.capture.ring import RING_SLOTS, ring_bytes
from actcli.capture.verify import verify
from actcli.errors import CaptureError, UsageError
from actcli.models.adapter import HookPoint
from actcli.samples.batching import measure_batches, plan_batches
from actcli.store.writer import DumpWriter
from actcli.terminal.fields import IntRanges
from tests.capture.tiny_causal import LAYERS, WIDTH, Texts, TinyCausal

LENGTHS = [5, 17, 1, 9, 9, 30, 2, 17, 16, 3, 12]
OUTPUTS = (
    "attn_norm", "attn_weights", "layer_outputs", "mlp_out", "q", "final_hidden", "pooled",
    "module:final",
)  # fmt: skip
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def prepared(samples, *, outputs=OUTPUTS, positions=None, device="cpu", dtype="fp32", **options):
    adapter = TinyCausal(device=device)
    return prepare(
        adapter,
        samples,
        outputs=outputs,
        layers=None,
        positions=IntRanges.parse(positions) if positions else None,
        dtype=dtype,
        device=torch.device(device),
        **{"batch_tokens": 40} | options,
    )


def make_dump(path, samples, **options):
    run = prepared(samples, **options)
    config = {"seed": 0, "dtype": "fp32", "outputs": ["attn_norm"]}
    report = write_dump(run, path, config=config, n_verified=0, advance=lambda _n: None, force=True)
    return load_file(path), report


def alone(samples):
    """Every site of every sample, from the plain model, without batch, hook or padding."""
    net = TinyCausal().net
    with torch.no_grad():
        return [
            {
                name: value[0]
                for name, value in net(tokens[None], torch.ones_like(tokens[None]) > 0).items()
            }
            for tokens in map(torch.from_numpy, samples.tokens)
        ]


TOKEN_AXES = {
    "attn_norm": (1,), "attn_weights": (2, 3), "layer_outputs": (1,), "mlp_out": (1,), "q": (1,),
    "final_hidden": (0,), "pooled": (), "module:final": (0,),
}  # fmt: skip


def padded(value, axes, width):
    """The value with zeros after it along the token axes."""
    for axis in axes:
        missing = list(value.shape)
        missing[axis] = width - missing[axis]
        value = torch.cat([value, torch.zeros(missing, dtype=value.dtype)], dim=axis)
    return value


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batching", [{}, {"batch_tokens": 1}, {"batch_size": 3}])
def test_a_dump_holds_what_each_sample_gives_alone(tmp_path, batching, device):
    samples = Texts(LENGTHS)
    found, report = make_dump(tmp_path / "a.safetensors", samples, device=device, **batching)
    for row, plain in enumerate(alone(samples)):
        for name, axes in TOKEN_AXES.items():
            expected = padded(plain[name], axes, 30)
            torch.testing.assert_close(
                found[name][row], expected, rtol=1e-4, atol=1e-5, check_dtype=False
            )
            end = LENGTHS[row]
            beyond = [found[name][row].narrow(axis, end, 30 - end) for axis in axes]
            assert not any(each.any() for each in beyond), name
        ids = samples.tokens[row].tolist()
        assert found["token_ids"][row].tolist() == ids + [-1] * (30 - len(ids))
        assert found["mask"][row].tolist() == [1] * len(ids) + [0] * (30 - len(ids))
    assert found["q"].dtype == torch.int32
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        batches = json.loads(file.metadata()["manifest"])["batches"]
    assert (batches["count"], batches["order"]) == (report.n_batches, "longest first")
    assert report.non_finite == {}
    assert report.tokens_per_s == pytest.approx(sum(LENGTHS) * report.samples_per_s / len(LENGTHS))


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_other_formats_hold_the_same(tmp_path, suffix):
    samples = Texts(LENGTHS)
    golden, _report = make_dump(tmp_path / "a.safetensors", samples)
    run, path = prepared(samples), tmp_path / f"a.{suffix}"
    config = {"seed": 0, "dtype": "fp32", "outputs": ["attn_norm"]}
    write_dump(run, path, config=config, n_verified=0, advance=lambda _n: None, force=True)
    found = torch.load(path, weights_only=True) if suffix == "pt" else np.load(path)
    for key, expected in golden.items():
        np.testing.assert_array_equal(np.asarray(found[key]), expected.numpy())


def test_batches_are_of_similar_length_and_the_probe_is_short():
    run = prepared(Texts(LENGTHS))
    (probe,) = run.adapter.n_tokens_seen
    assert probe[1] < 10
    run_without_writing(run, advance=lambda _n: None)
    widths = run.adapter.n_tokens_seen[1:]
    assert widths == [(1, 30), (2, 17), (2, 16), (4, 9), (2, 2)]


def test_samples_of_one_length_need_no_mask(tmp_path):
    samples = Texts([8] * 5)
    found, _report = make_dump(tmp_path / "a.safetensors", samples, batch_size=2)
    assert samples.lengths is None
    for row, plain in enumerate(alone(samples)):
        for name in TOKEN_AXES:
            torch.testing.assert_close(
                found[name][row], plain[name], rtol=1e-4, atol=1e-5, check_dtype=False
            )


def test_long_samples_of_one_length_are_probed_with_few_tokens(tmp_path):
    found, _report = make_dump(tmp_path / "a.safetensors", Texts([50] * 3), batch_tokens=100)
    assert found["attn_weights"].shape == (3, LAYERS, 1, 50, 50)
    assert found["module:final"].shape == (3, 50, WIDTH)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("positions", "wanted"),
    [("-1", [-1]), ("0,-1,-3", [0, -1, -3]), ("20,2-3", [20, 2, 3]), ("-3--2", [-3, -2])],
)
def test_positions_count_from_the_end_of_each_sample(tmp_path, positions, wanted, device):
    samples, outputs = Texts(LENGTHS), [each for each in OUTPUTS if each != "module:final"]
    found, _report = make_dump(
        tmp_path / "a.safetensors", samples, outputs=outputs, positions=positions, device=device
    )
    for row, plain in enumerate(alone(samples)):
        n = LENGTHS[row]
        there = [0 <= (at if at >= 0 else n + at) < n for at in wanted]
        assert found["mask"][row].tolist() == there
        for name in set(outputs) - {"pooled"}:
            axis = TOKEN_AXES[name][0]
            value = padded(plain[name], TOKEN_AXES[name][1:], 30)
            rows = [
                value.select(axis, at) if real else torch.zeros_like(value.select(axis, 0))
                for at, real in zip(wanted, there, strict=True)
            ]
            torch.testing.assert_close(
                found[name][row], torch.stack(rows, axis), rtol=1e-4, atol=1e-5, check_dtype=False
            )
        torch.testing.assert_close(found["pooled"][row], plain["pooled"], rtol=1e-4, atol=1e-5)
    assert found["token_ids"].shape == (len(LENGTHS), 30)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["manifest"])["positions"] == wanted


def test_the_mask_follows_positions_where_nothing_is_padded(tmp_path):
    found, _report = make_dump(
        tmp_path / "a.safetensors", Texts([8] * 3), outputs=["attn_norm"], positions="0,-1"
    )
    assert found["mask"].tolist() == [[1, 1]] * 3


@pytest.mark.parametrize(
    ("positions", "says"),
    [("30", "position 30 was asked for"), ("-31", "position -31"), ("3--1", "count both ends")],
)
def test_positions_that_no_sample_has(positions, says):
    with pytest.raises(UsageError, match=says):
        prepared(Texts(LENGTHS), outputs=["attn_norm"], positions=positions)


def capture(samples, adapter, outputs, *, layers=(0, 1)):
    plan = make_plan(adapter, samples, outputs, layers=layers, positions=None, dtype=torch.float32)
    batches = plan_batches(samples, batch_size=4, batch_tokens=0)
    return CaptureEngine(adapter, plan, samples, batches=batches)


def test_only_real_tokens_count_as_not_finite():
    samples, adapter = Texts(LENGTHS), TinyCausal()
    for batch in capture(samples, adapter, ("mlp_out", "layer_outputs")).run():
        assert batch.non_finite() == {}
        batch.release()
    with torch.no_grad():
        adapter.net.positions.weight[8:] = math.inf  # of the ninth token and all after it
    for batch in capture(samples, adapter, ("attn_norm",), layers=(0,)).run():
        count = sum(WIDTH * max(0, LENGTHS[row] - 8) for row in batch.rows_of_samples)
        assert batch.non_finite().get("attn_norm", 0) == count
        batch.release()


@pytest.mark.parametrize("name", ["layer_outputs", "q"])
def test_what_nothing_wrote_is_counted_at_real_tokens_alone(name, monkeypatch):
    samples, adapter = Texts(LENGTHS), TinyCausal()
    engine, real = capture(samples, adapter, (name,)), CaptureEngine._read

    def skip_the_first_layer(self, plan, place, acts):
        if place == 0:
            self._unread -= 1
        else:
            real(self, plan, place, acts)

    monkeypatch.setattr(CaptureEngine, "_read", skip_the_first_layer)
    values = {"layer_outputs": WIDTH, "q": 2}[name]
    for batch in engine.run():
        n_tokens = sum(LENGTHS[row] for row in batch.rows_of_samples)
        assert batch.non_finite() == {name: values * n_tokens}
        batch.release()


def test_memory_is_that_of_the_largest_batch():
    """One long sample among short ones does not make the buffers long for all."""
    samples, adapter = Texts([60] + [4] * 100), TinyCausal()
    run = prepared(samples, outputs=["layer_outputs"], batch_tokens=64)
    sizes = measure_batches(samples, run.batches)
    assert {tuple(each) for each in sizes} == {(1, 60), (16, 4), (4, 4)}
    a_token = LAYERS * WIDTH * 4
    assert ring_bytes(run.plan, sizes, run.device) == RING_SLOTS["cpu"] * 64 * a_token
    engine = CaptureEngine(adapter, run.plan, samples, batches=run.batches)
    slot = engine._ring.take()
    assert slot.host_buffers["layer_outputs"].nbytes == 64 * a_token
    small = peak_memory(adapter, run.plan, samples, run.batches, device=run.device)
    large = peak_memory(adapter, run.plan, samples, [range(101)], device=run.device)
    assert large - small > RING_SLOTS["cpu"] * (101 * 60 - 64) * a_token


def test_rows_are_written_whole_and_on_pages(tmp_path):
    """Rows of whole pages go past the page cache, short samples' too."""
    samples, addresses = Texts([64, 40, 7, 7, 64, 3]), []
    run = prepared(samples, outputs=["attn_weights"], batch_tokens=80)
    assert math.prod(run.plan.sites[0].row_shape) * 4 % 4096 == 0

    def write_rows(key, start, rows):
        if key == "attn_weights":
            assert rows.nbytes % (LAYERS * 64 * 64 * 4) == 0
            addresses.append((start, np.frombuffer(rows.cast("B"), np.uint8).ctypes.data % 4096))

    run.record(write_rows, lambda _n: None)
    assert sorted(addresses) == [(row, 0) for row in range(6)]


@pytest.fixture
def verified(tmp_path):
    """A function that dumps texts, changes a value of one sample, and verifies them all."""

    def run(key, row, place, *, add, positions=None):
        samples = Texts(LENGTHS)
        outputs = [each for each in OUTPUTS if positions is None or each != "module:final"]
        made = prepared(samples, outputs=outputs, positions=positions)
        with DumpWriter(tmp_path / "a.safetensors", made.tensors) as writer:
            made.record(writer.write_rows, lambda _n: None)
            dtype = torch.int32 if key == "q" else torch.float32
            values = torch.frombuffer(bytearray(writer.read_row(key, row)), dtype=dtype)
            values[place] += add
            writer.write_rows(key, row, memoryview(values.numpy()))
            return verify(made.adapter, made.plan, samples, writer, n_samples=11, seed=0)

    return run


@pytest.mark.parametrize("positions", [None, "0,-2,25"])
def test_a_true_dump_agrees(verified, positions):
    found = verified("layer_outputs", 0, 0, add=0, positions=positions)
    assert found.agrees
    assert max(found.max_abs_difference.values()) < 1e-4


@pytest.mark.parametrize("place", [0, -1], ids=["a real token", "padding"])
def test_a_changed_value_is_seen(verified, place):
    found = verified("layer_outputs", 2, place, add=0.5)
    assert not found.agrees
    assert found.max_abs_difference["layer_outputs"] == pytest.approx(0.5, abs=1e-3)


def test_most_ids_must_agree(verified):
    assert verified("q", 5, 0, add=1).agrees  # of two that are nearly equal
    assert not verified("q", 5, slice(0, 40), add=1).agrees


def test_a_module_without_tokens_first_is_refused_where_lengths_differ():
    run = prepared(Texts(LENGTHS), outputs=["module:blocks.0.weights"])
    with pytest.raises(CaptureError, match=r"changed its shape"):
        run_without_writing(run, advance=lambda _n: None)


def test_an_element_of_what_is_no_tuple_is_refused(monkeypatch):
    point = HookPoint("blocks.0.norm", item=1)
    monkeypatch.setattr(TinyCausal, "layer_points", lambda _self, _site, _layer: point)
    with pytest.raises(CaptureError, match=r"module blocks.0.norm gives NoneType, not a tensor"):
        prepared(Texts(LENGTHS), outputs=["attn_norm"])


def test_a_token_axis_of_another_length_is_refused(monkeypatch):
    point = HookPoint("blocks.0.norm", view=lambda acts: acts[:, 1:])
    monkeypatch.setattr(TinyCausal, "layer_points", lambda _self, _site, _layer: point)
    with pytest.raises(CaptureError, match=r"attn_norm is \[6, 6\] for a sample of 7 tokens"):
        prepared(Texts(LENGTHS), outputs=["attn_norm"])
