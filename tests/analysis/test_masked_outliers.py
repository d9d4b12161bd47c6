"""With a mask the answer is that of the real tokens alone, computed without the others."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actcli.analysis import order_statistics, outliers, token_mask
from actcli.analysis.outlier_statistics import Sampling
from actcli.analysis.outliers import Work, count_outliers
from actcli.errors import DumpError
from actcli.store.reader import in_memory
from tests.analysis.slow_outliers import five_numbers, quartiles, slow_outliers


def check(acts, mask, threshold, fraction, **options):
    """Compare with loops over an array that holds the real (sample, token) places alone."""
    report = count_outliers(
        in_memory("x", acts),
        threshold=threshold,
        min_layer_fraction=fraction,
        mask=in_memory("mask", mask),
        **options,
    )
    rows, tokens = mask.nonzero()
    real = acts[rows, :, tokens][:, :, None]
    expected, found = slow_outliers(real, threshold, fraction), report.model_dump()
    stats = report.outlier_mag_stats
    magnitudes = [stats.min, stats.q1, stats.median, stats.q3, stats.max]
    assert magnitudes == pytest.approx(expected.pop("magnitudes"), rel=1e-12, nan_ok=True)
    signed = expected.pop("quartiles")
    if signed is None:
        assert report.iqr_stats is None
    else:
        q = report.iqr_stats
        assert [q.q1, q.median, q.q3] == pytest.approx(signed, rel=1e-12, abs=1e-300, nan_ok=True)
    del expected["token_counts"]
    for name, value in expected.items():
        close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert found[name] == close, name
    for token in range(mask.shape[1]):
        there = real[tokens == token]
        alone = (
            slow_outliers(there, threshold, fraction)["outlier_occurrences"] if len(there) else 0
        )
        assert report.token_counts[token] == alone
    assert report.masked_positions == mask.size - np.count_nonzero(mask)
    assert report.shape == acts.shape
    return report


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equal_to_loops_over_the_real_tokens(data):
    n, n_layers, n_tokens, n_dims = data.draw(st.tuples(*(st.integers(1, k) for k in (5, 3, 4, 3))))
    few = st.sampled_from([0.0, -1.0, 2.5, 7.0, -7.0, np.nan, np.inf])
    numbers = few | st.floats(-10, 10, width=32)
    acts = data.draw(arrays.arrays("f4", (n, n_layers, n_tokens, n_dims), elements=numbers))
    mask = data.draw(arrays.arrays(st.sampled_from(["u1", "?"]), (n, n_tokens)))
    assume(mask.any())
    threshold = data.draw(st.sampled_from([0.0, 2.5, -1.0, 6.0]))
    fraction = data.draw(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]))
    work = Work(data.draw(st.integers(1, 60)), n_threads=data.draw(st.integers(1, 2)))
    check(acts, mask, threshold, fraction, work=work)


def padded(n=40, n_layers=3, n_tokens=7, n_dims=4, dtype="f4"):
    """Activations with right padding that would show in every statistic."""
    rng = np.random.default_rng(3)
    acts = (3 * rng.standard_normal((n, n_layers, n_tokens, n_dims))).astype(dtype)
    lengths = rng.integers(0, n_tokens + 1, n)
    mask = (np.arange(n_tokens) < lengths[:, None]).astype("u1")
    acts[~mask.astype(bool)[:, None, :, None] & np.ones(acts.shape, bool)] = 99.0
    return acts, mask


@pytest.mark.parametrize("way", ["brackets", "radix"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
@pytest.mark.parametrize("elements", [11, 30, 200, 10**6])
def test_equal_to_loops_by_every_way(way, dtype, elements, monkeypatch):
    """Small tensors take the ways of large ones: brackets from a sample, radix selection."""
    monkeypatch.setattr(outliers, "_SAMPLE_ELEMENTS", 8)
    monkeypatch.setattr(outliers, "MOST_KEPT_BYTES", 0)
    monkeypatch.setattr(token_mask, "_BLOCK_ELEMENTS", 15)
    if way == "radix":
        monkeypatch.setattr(order_statistics, "MOST_KEPT_BYTES", 0)
    acts, mask = padded(dtype=dtype)
    report = check(acts, mask, 2.5, 0.5, work=Work(elements, n_threads=2))
    assert report.outlier_mag_stats.max < 99


def test_the_layers_asked_for_and_three_axes():
    acts, mask = padded()
    stored = in_memory("mask", mask)
    some = count_outliers(in_memory("x", acts), threshold=2, mask=stored, layers=[0, 2])
    same = count_outliers(in_memory("x", acts[:, [0, 2]]), threshold=2, mask=stored)
    others = {"shape", "layers"}
    assert some.model_dump(exclude=others) == same.model_dump(exclude=others)
    flat = count_outliers(in_memory("x", acts[:, 0].copy()), threshold=2, mask=stored)
    one = count_outliers(in_memory("x", acts), threshold=2, mask=stored, layers=[0])
    assert flat.model_dump(exclude=others) == one.model_dump(exclude=others)


@pytest.mark.parametrize("block", [5, 1 << 20])
def test_samples_are_drawn_from_the_real_tokens_in_their_order(block, monkeypatch):
    import torch

    monkeypatch.setattr(token_mask, "_BLOCK_ELEMENTS", block)
    acts, mask = padded(n_tokens=40)
    mask &= np.random.default_rng(4).integers(0, 4, mask.shape) > 0  # holes, not padding alone
    real = np.concatenate(
        [x[:, m.astype(bool)].reshape(-1) for x, m in zip(acts, mask, strict=True)]
    )
    report = count_outliers(
        in_memory("x", acts),
        threshold=2.5,
        min_layer_fraction=None,
        mask=in_memory("mask", mask),
        sampling=Sampling(elements=50, outliers=20, seed=2),
        work=Work(90),
    )
    draw = torch.randint(0, real.size, (50,), generator=torch.Generator().manual_seed(2)).numpy()
    q = report.iqr_stats
    assert [q.q1, q.median, q.q3] == pytest.approx(quartiles(real[draw].astype(float).tolist()))
    kept = np.abs(real[np.abs(real) > 2.5])
    draw = torch.randint(0, kept.size, (20,), generator=torch.Generator().manual_seed(2)).numpy()
    stats = report.outlier_mag_stats
    found = [stats.min, stats.q1, stats.median, stats.q3, stats.max]
    assert found == pytest.approx(five_numbers(kept[draw].astype(float).tolist()))


def test_a_mask_of_ones_changes_nothing():
    acts, mask = padded()
    found = count_outliers(in_memory("x", acts), mask=in_memory("mask", np.ones_like(mask)))
    assert found == count_outliers(in_memory("x", acts))


def test_nothing_is_real():
    acts, mask = padded()
    report = count_outliers(
        in_memory("x", acts),
        mask=in_memory("mask", np.zeros_like(mask)),
        sampling=Sampling(elements=3, outliers=3),
    )
    assert (report.total_elements, report.location_total, report.outlier_occurrences) == (0, 0, 0)
    assert (report.masked_positions, report.iqr_stats) == (mask.size, None)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.ones((40, 6), "u1"), r"'x' is \[40, 3, 7, 4\] and the dump's mask \[40, 6\], expected"),
        (np.ones((39, 7), "u1"), r"the dump's mask \[39, 7\], expected \[40, 7\]"),
        (np.ones((40, 7), "f4"), r"'mask' holds F32 \[40, 7\], expected \(samples, tokens\)"),
        (np.ones((40, 7, 1), "u1"), r"'mask' holds U8 \[40, 7, 1\], expected"),
    ],
)
def test_a_mask_that_does_not_fit(mask, says):
    acts, _mask = padded()
    with pytest.raises(DumpError, match=says):
        count_outliers(in_memory("x", acts), mask=in_memory("mask", mask))
