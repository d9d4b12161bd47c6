"""Outliers against loops over single elements, and against the existing program's numbers."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from actcli.analysis import order_statistics, outliers
from actcli.analysis.outlier_statistics import Sampling
from actcli.analysis.outliers import Work, count_outliers
from actcli.errors import DumpError
from actcli.store.reader import in_memory, open_dump
from tests.analysis.slow_outliers import five_numbers, quartiles, slow_outliers
from tests.golden import DUMPS, GOLDEN

CASES = json.loads((GOLDEN / "outliers.json").read_text())
ROUNDS_THE_THRESHOLD = [
    case for case in CASES if "bf16" in case["dump"] and case["params"]["threshold"] == 6.03
]
"""The existing program compares with 6.03125 here."""


def golden_report(case):
    params = case["params"]
    rule = params["require_layer_fraction"]
    everything = params["iqr_samples"] >= case["result"]["total_elements"]
    with open_dump(GOLDEN / case["dump"]) as dump:
        return count_outliers(
            dump.tensor(case["result"]["key"]),
            threshold=params["threshold"],
            min_layer_fraction=params["min_layer_fraction"] if rule else None,
            sampling=Sampling(
                elements=None if everything else params["iqr_samples"],
                outliers=params["outlier_samples"],
                seed=params["iqr_seed"],
            ),
        )


@pytest.mark.parametrize(
    "case",
    [each for each in CASES if each not in ROUNDS_THE_THRESHOLD],
    ids=lambda case: f"{case['dump'][6:]}-{case['result']['key']}-{case['params']['threshold']}",
)
def test_golden(case):
    report, expected = golden_report(case).model_dump(), dict(case["result"])
    words = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    assert report["dtype"] == words[expected.pop("dtype")]
    if case["params"]["iqr_samples"] == 0:
        assert report["iqr_stats"] is None
        assert set(expected.pop("iqr_stats").values()) == {0.0}
    for name in ("outlier_mag_stats", "iqr_stats"):
        assert report[name] == pytest.approx(expected.pop(name, report[name]), abs=1e-6)
    for name, value in expected.items():
        if isinstance(value, float):
            assert report[name] == pytest.approx(value, abs=1e-6), name
        else:
            assert report[name] == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize("case", ROUNDS_THE_THRESHOLD)
def test_a_threshold_that_the_dtype_cannot_hold(case):
    with open_dump(GOLDEN / case["dump"]) as dump:
        codes = dump.tensor(case["result"]["key"]).read()
    values = (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    report = golden_report(case)
    assert report.element_hits == np.count_nonzero(np.abs(values) > 6.03)
    assert report.element_hits == case["result"]["element_hits"] + np.count_nonzero(
        np.abs(values) == 6.03125
    )
    assert report.dim_counts == tuple((np.abs(values) > 6.03).sum(axis=(0, 1, 2)))


def check(acts, threshold, fraction, **options):
    dtype = options.pop("dtype", None)
    stored = options.pop("stored", acts)
    tensor = in_memory("acts", stored, dtype=dtype)
    report = count_outliers(tensor, threshold=threshold, min_layer_fraction=fraction, **options)
    found, expected = report.model_dump(), slow_outliers(acts, threshold, fraction)
    stats = report.outlier_mag_stats
    magnitudes = [stats.min, stats.q1, stats.median, stats.q3, stats.max]
    assert magnitudes == pytest.approx(expected.pop("magnitudes"), rel=1e-12, nan_ok=True)
    signed = expected.pop("quartiles")
    if signed is None:
        assert report.iqr_stats is None
    else:
        q = report.iqr_stats
        assert [q.q1, q.median, q.q3] == pytest.approx(signed, rel=1e-12, abs=1e-300, nan_ok=True)
    for name, value in expected.items():
        close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert found[name] == close, name
    finite = [abs(x) for x in acts.reshape(-1).tolist() if math.isfinite(x)]
    assert sum(report.magnitude_histogram.counts) <= len(finite)
    return report


def shapes():
    return st.tuples(*(st.integers(1, side) for side in (4, 4, 3, 4)))


def numbers(width):
    interesting = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -6.0, 6.0, math.nan, math.inf])
    return interesting | st.floats(-10, 10, width=width) | st.floats(width=width)


@pytest.mark.parametrize("width", [16, 32, 64])
@settings(max_examples=60)
@given(data=st.data())
def test_equal_to_loops_however_it_is_cut(width, data):
    acts = data.draw(arrays.arrays(f"f{width // 8}", shapes(), elements=numbers(width)))
    threshold = data.draw(
        st.sampled_from([0.0, 1.0, 2.5, 6.0, 0.3, -1.0, 1e9]) | st.floats(0, 20, allow_nan=False)
    )
    fraction = data.draw(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1))
    elements, n_threads = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3))
    check(acts, threshold, fraction, work=Work(chunk_elements=elements, n_threads=n_threads))


@settings(max_examples=40)
@given(data=st.data())
def test_bf16_equals_its_values(data):
    codes = data.draw(arrays.arrays("u2", shapes()))
    values = (codes.astype(np.uint32) << 16).view(np.float32)
    threshold = data.draw(st.sampled_from([0.0, 6.03, 1e-39, 1e38]) | st.floats(0, 20))
    with np.errstate(invalid="ignore"):
        check(values, threshold, 0.25, stored=codes, dtype="BF16")


@pytest.fixture(params=["brackets", "radix"])
def as_if_large(request, monkeypatch):
    """Let small tensors take the ways of large ones: brackets from a sample, radix selection."""
    monkeypatch.setattr(outliers, "_SAMPLE_ELEMENTS", 8)
    if request.param == "radix":
        monkeypatch.setattr(order_statistics, "MOST_KEPT_BYTES", 0)
    monkeypatch.setattr(outliers, "MOST_KEPT_BYTES", 0)


DISTRIBUTIONS = {
    "normal": lambda rng, shape: 3 * rng.standard_normal(shape),
    "zeros and some": lambda rng, shape: np.maximum(rng.standard_normal(shape) * 4, 0),
    "constant": lambda rng, shape: np.full(shape, -7.0),
    "sorted": lambda rng, shape: np.sort(3 * rng.standard_normal(math.prod(shape))).reshape(shape),
    "infinities": lambda rng, shape: rng.choice([-np.inf, 1.0, np.inf, 7.0], shape),
    "nearly all nan": lambda rng, shape: np.where(rng.random(shape) < 0.9, -np.nan, 7.0),
    "one layer differs": lambda rng, shape: (
        rng.standard_normal(shape) + np.array([0, 40, 0]).reshape(1, 3, 1, 1)
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
@pytest.mark.parametrize("threshold", [0.5, 6.0])
@pytest.mark.usefixtures("as_if_large")
def test_equal_to_loops_by_every_way(name, dtype, threshold):
    acts = DISTRIBUTIONS[name](np.random.default_rng(1), (9, 3, 4, 5)).astype(dtype)
    check(acts, threshold, 0.5, work=Work(chunk_elements=70, n_threads=2))


def test_the_layers_asked_for():
    acts = np.random.default_rng(0).standard_normal((3, 5, 4, 6)).astype(np.float32)
    tensor = in_memory("acts", acts)
    chosen = [0, 1, 4]
    for elements in (7, 1000):
        report = count_outliers(
            tensor,
            threshold=0.7,
            layers=chosen,
            layer_names=[0, 3, 6, 9, 12],
            work=Work(chunk_elements=elements),
        )
        expected = count_outliers(in_memory("acts", acts[:, chosen]), threshold=0.7)
        assert report.layers == (0, 3, 12)
        assert report.shape == acts.shape
        assert report.size_mib == acts[:, chosen].nbytes / 2**20
        others = {"layers", "shape"}
        assert report.model_dump(exclude=others) == expected.model_dump(exclude=others)


def test_three_axes_count_as_one_layer():
    acts = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    report = check(acts[:, None], 1.0, 0.25, stored=acts)
    assert (report.shape, report.layers) == ((3, 4, 6), (0,))


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0), (0, 3, 4)]
)
def test_nothing_to_count(shape):
    report = count_outliers(in_memory("acts", np.empty(shape, np.float32)))
    assert (report.total_elements, report.element_hits, report.outlier_occurrences) == (0, 0, 0)
    assert (report.outlier_occurrence_rate, report.mean_layer_hit) == (0.0, 0.0)
    assert report.iqr_stats is None
    assert set(report.outlier_mag_stats.model_dump().values()) == {0.0}
    sampled = count_outliers(
        in_memory("acts", np.empty(shape, np.float32)), sampling=Sampling(elements=5, outliers=5)
    )
    assert (sampled.iqr_stats, sampled.iqr_used) == (None, 0)


@pytest.mark.parametrize("array", [np.ones((2, 3), np.float32), np.ones((1,) * 5, np.float32)])
def test_a_wrong_shape(array):
    with pytest.raises(
        DumpError, match=r"'x' has the shape .*, expected \(samples, layers, tokens"
    ):
        count_outliers(in_memory("x", array))


@pytest.mark.parametrize("dtype", ["i8", "u1", "?"])
def test_a_wrong_dtype(dtype):
    with pytest.raises(DumpError, match=r"'x' holds .* values, expected activations of dtype F64"):
        count_outliers(in_memory("x", np.ones((1, 1, 1, 1), dtype)))


def test_samples_that_ask_for_more_than_there_is_take_all():
    acts = np.random.default_rng(0).standard_normal((2, 2, 2, 2))
    exact = count_outliers(in_memory("x", acts), threshold=0.5)
    found = count_outliers(
        in_memory("x", acts), threshold=0.5, sampling=Sampling(elements=99, outliers=99, seed=4)
    )
    assert found.model_copy(update={"sampling_seed": None}) == exact


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_sampled_outliers_do_not_depend_on_the_cut(tokens, monkeypatch):
    acts = np.random.default_rng(0).standard_normal((5, 3, 8, 4)).astype(np.float32)
    kept = np.abs(acts[np.abs(acts) > 0.5])
    import torch

    generator = torch.Generator().manual_seed(2)
    drawn = kept[torch.randint(0, kept.size, (40,), generator=generator).numpy()].astype(float)
    monkeypatch.setattr("actcli.analysis.activation_chunks.CHUNK_ELEMENTS", 12 * tokens)
    monkeypatch.setattr(
        "actcli.analysis.activation_chunks.ActivationChunks.plan.__defaults__", (12 * tokens,)
    )
    report = count_outliers(
        in_memory("x", acts),
        threshold=0.5,
        min_layer_fraction=None,
        sampling=Sampling(outliers=40, seed=2),
    )
    stats = report.outlier_mag_stats
    assert not report.outlier_mag_exact
    found = [stats.min, stats.q1, stats.median, stats.q3, stats.max]
    assert found == pytest.approx(five_numbers(drawn.tolist()))


def test_sampled_quartiles_leave_nans_out():
    acts = np.full((1, 2, 2, 50), np.nan)
    acts[0, 0, 0, ::2] = np.arange(25)
    report = count_outliers(in_memory("x", acts), sampling=Sampling(elements=100))
    assert report.iqr_used < 100
    q = report.iqr_stats
    assert q is not None
    assert q.q1 < q.median < q.q3
    assert quartiles(list(range(25)))[0] - 12 < q.q1 < 24


def test_progress_tells_all_samples():
    told = []
    acts = np.ones((10, 2, 6, 4), np.float32)
    for elements in (8, 48, 1000):
        told.clear()
        count_outliers(in_memory("x", acts), work=Work(elements, advance=told.append))
        assert sum(told) == 10


def test_a_failure_in_a_thread_is_not_lost(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"acts": np.ones((64, 2, 8, 16), np.float32)}, path)
    with open_dump(path) as dump:
        with path.open("r+b") as file:
            file.truncate(30_000)
        with pytest.raises(DumpError, match="was cut at byte"):
            count_outliers(dump.tensor("acts"), layers=[1])


MEMORY = """
import sys
from pathlib import Path
from actcli.analysis.outliers import count_outliers
from actcli.store.reader import open_dump
with open_dump(Path(sys.argv[1])) as dump:
    report = count_outliers(dump.tensor("acts"), threshold=float(sys.argv[2]))
status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak
print(report.total_elements, status.split("VmHWM:")[1].split()[0], "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("threshold", [6.0, 0.0])
def test_memory_is_bounded_and_torch_left_out(tmp_path, threshold):
    path = tmp_path / "sparse.safetensors"
    shape = [2048, 8, 16, 512]
    n_bytes = math.prod(shape) * 4
    header = {"acts": {"dtype": "F32", "shape": shape, "data_offsets": [0, n_bytes]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.random.default_rng(0).standard_normal(10_000_000, dtype=np.float32))
        file.truncate(8 + len(text) + n_bytes)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), str(threshold)],
        capture_output=True,
        text=True,
        check=True,
    )
    total, peak_kib, has_torch = done.stdout.split()
    assert (int(total), has_torch) == (math.prod(shape), "False")
    assert int(peak_kib) < 256 * 1024 < n_bytes / 1024


def test_golden_dumps_of_all_formats_agree():
    found = []
    for suffix in ("safetensors", "npz", "pt"):
        with open_dump(DUMPS / f"d_fp16.{suffix}") as dump:
            found.append(count_outliers(dump.tensor("mlp_input"), threshold=2.0))
    assert found[0] == found[1] == found[2]
