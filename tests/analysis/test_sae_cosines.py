"""Cosines of features against float64, pair by pair, and the published libraries' values.

Tensor legend: D features, I input width, O output width, P pairs.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from actcli.analysis import sae_cosine_maxima, sae_cosine_pairs, sae_cosine_rows
from actcli.analysis.sae_cosine_maxima import row_maxima
from actcli.analysis.sae_cosine_rows import Directions, RoundedRows, fast_dtype
from actcli.analysis.sae_cosines import (
    cosine_features,
    cosine_report,
    decoder_redundancy,
    nearest_features,
    percentiles,
)
from actcli.errors import UsageError
from actcli.saes.activations import Threshold
from actcli.saes.dictionary import Dictionary, Origin
from tests.golden import GOLDEN

SAES = GOLDEN.parent / "sae-eval"
REFERENCES = sorted(
    path
    for path in (SAES / "golden").glob("*.json")
    if "ref_absorption" in json.loads(path.read_text())
)
WAYS = [
    {},
    {"dtype": torch.bfloat16, "pruned": 0},
    {"dtype": torch.bfloat16, "pruned": 9},
    {"dtype": torch.float32, "pruned": 0},
    {"dtype": torch.float32, "pruned": 9},
]


def slow_cosines(W_DO: torch.Tensor) -> NDArray[np.float64]:
    """All cosines (D, D) in float64; NaN at the diagonal and for rows of 0."""
    W = W_DO.double().numpy()
    norms = np.sqrt((W * W).sum(1))
    unit = np.divide(W, norms[:, None], out=np.full_like(W, np.nan), where=norms[:, None] > 0)
    cosines = np.empty((len(W), len(W)))
    for i in range(len(W)):
        cosines[i] = np.clip((unit * unit[i]).sum(1), -1, 1)
    np.fill_diagonal(cosines, np.nan)
    return cosines


def rows(n: int, width: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def beside(row_O: torch.Tensor, cosine: float, *, seed: int) -> torch.Tensor:
    """A row that has this cosine with another, in float64."""
    row_O = row_O.double() / row_O.double().norm()
    other_O = rows(1, len(row_O), seed=seed)[0].double()
    other_O -= (other_O @ row_O) * row_O
    return cosine * row_O + (1 - cosine**2) ** 0.5 * other_O / other_O.norm()


def dictionary(W_enc_ID: torch.Tensor, W_dec_DO: torch.Tensor) -> Dictionary:
    n = W_enc_ID.shape[1]
    return Dictionary(
        origin=Origin("made", Path("made"), "raw", "relu", "float32"),
        W_enc_ID=W_enc_ID,
        b_enc_D=torch.arange(n).float(),
        W_dec_DO=W_dec_DO,
        b_dec_O=torch.zeros(W_dec_DO.shape[1]),
        activation=Threshold(),
    )


def check(W_DO: torch.Tensor, threshold: float, **way: object) -> None:
    """Compare everything that a report says with all cosines."""
    n, prefixes = len(W_DO), (1, len(W_DO) // 3, len(W_DO) // 2, len(W_DO))
    cosines = slow_cosines(W_DO)
    above = np.triu(np.abs(cosines) > threshold, 1)
    found = decoder_redundancy(W_DO, threshold=threshold, prefixes=prefixes, most=20, **way)
    report = found.report
    assert report.unordered_pairs == above.sum()
    assert report.pairs_above_threshold == 2 * above.sum()
    assert report.unordered_pairs_positive == (above & (cosines > 0)).sum()
    assert report.score == above.sum() / (n * (n - 1) / 2)
    assert report.n_zero_rows == int((W_DO == 0).all(1).sum())
    within = [above[:p, :p].sum() / (p * (p - 1) / 2) if p > 1 else None for p in prefixes]
    assert found.by_prefix == tuple(within)
    strength = [
        (-np.round(abs(cosines[i, j]), 12), i, j) for i, j in zip(*above.nonzero(), strict=True)
    ]
    expected = [(i, j) for _, i, j in sorted(strength)[:20]]
    assert [(pair.first, pair.second) for pair in report.pairs] == expected
    for pair in report.pairs:
        assert pair.cosine == pytest.approx(cosines[pair.first, pair.second], abs=1e-14)
        parts = tuple(sum(p <= end for p in prefixes) for end in (pair.first, pair.second))
        assert pair.prefixes == parts


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.25, 0.6, 0.9, 1.0])
def test_every_pair_counts_at_any_threshold(
    way: dict[str, object], threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_cosine_pairs, "_CPU_BLOCK", 64)
    W_DO = rows(200, 40)
    W_DO[150:170] = W_DO[:20] * 3 + 0.5 * rows(20, 40, seed=1)
    W_DO[190:195] = -W_DO[:5]
    check(W_DO, threshold, **way)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pairs_a_hair_from_the_threshold(
    way: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_cosine_pairs, "_CPU_BLOCK", 64)
    W_DO = rows(160, 96)
    for k in range(40):
        sign = -1 if k % 2 else 1
        W_DO[80 + k] = beside(W_DO[k], sign * (0.9 + (k - 20) * 1e-8), seed=k).float()
    cosines = np.abs(slow_cosines(W_DO))
    assert (np.abs(cosines - 0.9) < 1e-7).sum() > 20
    check(W_DO, 0.9, **way)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_duplicates_opposites_zeros_and_any_length(
    way: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_cosine_pairs, "_CPU_BLOCK", 64)
    W_DO = rows(180, 24)
    W_DO[20:80] = W_DO[19]
    W_DO[80:110] = -W_DO[18]
    W_DO[[0, 120, 179]] = 0
    W_DO[30] *= 1e18
    W_DO[31:34] *= 1e-18
    W_DO[140:150] *= 1e12
    check(W_DO, 0.9, **way)
    check(W_DO, 0.999999999, **way)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exact_neighbours_of_a_threshold_that_a_row_reaches(dtype: torch.dtype) -> None:
    """At the threshold is not above it: cosines that float64 holds exactly."""
    W_DO = torch.tensor([[1.0, 0, 0, 0], [3.0, 4, 0, 0], [0.6, 0, 0.8, 0], [-3, 0, 0, 4]])
    report = decoder_redundancy(W_DO, threshold=0.6, dtype=dtype).report
    exact = np.array([[0.6, 0.6, 0.6], [0.36, 0.36, 0], [0.36, 0, 0]])
    assert report.unordered_pairs == (slow_cosines(W_DO)[np.triu_indices(4, 1)] > 0.6).sum()
    assert (exact > 0.6).sum() == 0
    assert decoder_redundancy(W_DO, threshold=0.59, dtype=dtype).report.unordered_pairs == 3


def test_all_rows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae_cosine_pairs, "_CPU_BLOCK", 64)
    W_DO = torch.ones(150, 8) * torch.arange(1, 151)[:, None]
    found = decoder_redundancy(W_DO, prefixes=(10, 150), most=5)
    assert found.report.score == 1
    assert found.by_prefix == (1, 1)
    listed = [(pair.first, pair.second) for pair in found.report.pairs]
    assert listed == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    assert [pair.prefixes for pair in found.report.pairs] == [(0, 0)] * 5


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_features_of_few_coordinates(way: dict[str, object]) -> None:
    """Pruning meets rows that lie altogether outside its coordinates."""
    W_DO = rows(120, 40) * torch.linspace(3, 0.01, 40)
    W_DO[60:] = 0
    W_DO[60:, 30:] = rows(60, 10, seed=3)
    check(W_DO, 0.7, **way)


def test_a_single_feature_has_no_pairs() -> None:
    found = decoder_redundancy(torch.ones(1, 4), prefixes=(1,))
    assert found.report.score is None
    assert found.by_prefix == (None,)
    assert found.report.total_unordered_pairs == 0
    zeros = decoder_redundancy(torch.zeros(3, 4)).report
    assert (zeros.score, zeros.n_zero_rows) == (0, 3)


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        decoder_redundancy(torch.ones(2, 4), threshold=1.5)


def test_pruning_is_tried_where_it_pays() -> None:
    directions = Directions(rows(600, 512))
    columns_O = torch.arange(512)
    chosen = sae_cosine_pairs._best_prefix(directions, columns_O, 0.9)
    assert 0 < chosen <= 256
    assert sae_cosine_pairs._best_prefix(directions, columns_O, 0.1) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pruned", [None, 64])
def test_no_product_is_further_off_than_its_bound(dtype: torch.dtype, pruned: int | None) -> None:
    W_DO = rows(256, 512) * torch.linspace(4, 0.1, 512)
    W_DO[:64] = W_DO[64:128] + 0.2 * rows(64, 512, seed=2)
    W_DO[128:160] = W_DO[128:160].abs()
    directions = Directions(W_DO)
    columns_C = None if pruned is None else torch.arange(pruned)
    rounded = RoundedRows.of(directions, columns_C=columns_C, dtype=dtype)
    exact = np.nan_to_num(slow_cosines(W_DO), nan=1.0)
    product = rounded.product(slice(0, 256), slice(0, 256)).double().numpy()
    off = np.abs(product - exact).max()
    slack = rounded.slack(slice(0, 256), slice(0, 256))
    assert off <= slack
    if pruned is None:  # and the bound is of use
        assert slack < (0.008 if dtype == torch.bfloat16 else 1e-4)
    assert rounded.slack(slice(0, 256), slice(0, 256), stored=False) <= slack


UP, DOWN = (1 + 2.0**-8 + 2.0**-12) / 32, (1 + 2.0**-8 - 2.0**-12) / 32
"""Just beside the middle of two bfloat16 values: rounded up by 2^-8 of itself, and down."""


def filled_up(parts: list[torch.Tensor], width: int) -> torch.Tensor:
    """Rows of length 1: each gets what it lacks in a coordinate of its own."""
    W_DO = torch.zeros(len(parts), width, dtype=torch.float64)
    for row, part in enumerate(parts):
        W_DO[row, : len(part)] = part
        W_DO[row, -1 - row] = (1 - part.double().square().sum()).sqrt()
    return W_DO.float()


def off_and_slack(W_DO: torch.Tensor) -> tuple[float, float]:
    rounded = RoundedRows.of(Directions(W_DO), dtype=torch.bfloat16)
    product = rounded.product(slice(0, 1), slice(1, 2)).item()
    slack = rounded.slack(slice(0, 1), slice(1, 2))
    return abs(product - slow_cosines(W_DO)[0, 1]), slack


def test_the_bound_holds_where_all_numbers_are_rounded_up() -> None:
    off, slack = off_and_slack(filled_up([torch.full((1008,), UP, dtype=torch.float64)] * 2, 1020))
    assert 0.006 < off <= slack


def test_the_bound_holds_where_only_the_product_is_rounded() -> None:
    W_DO = torch.ones(2, 1024)
    W_DO[1, :255] = -1  # the cosine is 257 / 512, of nine binary digits
    off, slack = off_and_slack(W_DO)
    assert 0.0009 < off <= slack


def test_a_nearest_feature_that_bfloat16_puts_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sae_cosine_maxima, "_CROWDED", 1.0)
    half = torch.full((508,), UP, dtype=torch.float64), torch.full((508,), DOWN).double()
    first, second = torch.cat(half), torch.cat([half[0], -half[1]])
    third = torch.tensor([0.004 / UP], dtype=torch.float64)
    W_DO = filled_up([first, second, third], 1024)
    nearer_to_third = torch.zeros(1, 1024)
    nearer_to_third[0, -3] = 1
    W_DO = torch.cat([W_DO, nearer_to_third])
    rounded = RoundedRows.of(Directions(W_DO), dtype=torch.bfloat16)
    product = rounded.product(slice(0, 1), slice(0, 3))[0]
    cosines = slow_cosines(W_DO)
    assert product[1] > product[2] + 0.003
    assert cosines[0, 1] < cosines[0, 2] - 0.003
    found = row_maxima(Directions(W_DO), dtype=torch.bfloat16)
    np.testing.assert_allclose(found.signed_R, np.nanmax(cosines, 1), atol=1e-6)
    np.testing.assert_allclose(found.absolute_R, np.nanmax(np.abs(cosines), 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("crowded", [0.0, 1 / 64, 1.0])
def test_the_nearest_of_every_feature(
    dtype: torch.dtype, crowded: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_cosine_maxima, "_BLOCK", 64)
    monkeypatch.setattr(sae_cosine_maxima, "_CROWDED", crowded)
    W_DO = rows(210, 48)
    W_DO[100:140] = -W_DO[:40] + 0.3 * rows(40, 48, seed=5)
    W_DO[140:160] = W_DO[40:60] * 1e10
    W_DO[200:205] = W_DO[0].abs()
    cosines = slow_cosines(W_DO)
    found = row_maxima(Directions(W_DO), dtype=dtype)
    np.testing.assert_allclose(found.signed_R, np.nanmax(cosines, 1), atol=1e-6)
    np.testing.assert_allclose(found.absolute_R, np.nanmax(np.abs(cosines), 1), atol=1e-6)
    with_mean = row_maxima(Directions(W_DO), dtype=dtype, mean=True)
    mean = np.nanmean(np.abs(cosines))
    assert with_mean.mean_absolute == pytest.approx(mean, rel=1e-6)
    np.testing.assert_allclose(with_mean.signed_R, np.nanmax(cosines, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_that_are_far_from_all_others(dtype: torch.dtype) -> None:
    """The largest cosine may be negative."""
    W_DO = torch.eye(4)[:3] - 1 / 3 * torch.tensor([[1.0, 1, 1, 0]])
    cosines = slow_cosines(W_DO)
    found = row_maxima(Directions(W_DO), dtype=dtype)
    np.testing.assert_allclose(found.signed_R, np.nanmax(cosines, 1), atol=1e-6)
    assert found.signed_R.max() < -0.4


def test_undefined_cosines_are_left_out() -> None:
    W_enc_ID, W_dec_DO = rows(16, 12), rows(12, 16, seed=1)
    W_dec_DO[3] = 0
    found = cosine_features(dictionary(W_enc_ID, W_dec_DO))
    cosines = slow_cosines(W_dec_DO)
    assert np.isnan(found.max_decoder_cosine[3])
    assert np.isnan(found.encoder_decoder_cosine[3])
    kept = np.arange(12) != 3
    np.testing.assert_allclose(
        found.max_decoder_cosine[kept], np.nanmax(cosines[kept], 1), atol=1e-6
    )
    own = torch.nn.functional.cosine_similarity(W_enc_ID.T.double(), W_dec_DO.double(), dim=1)
    np.testing.assert_allclose(found.encoder_decoder_cosine[kept], own[kept], atol=1e-12)
    report = cosine_report(dictionary(W_enc_ID, W_dec_DO), pair_statistics=True)
    assert report.max_decoder_cosine is not None
    assert report.max_decoder_cosine.mean == pytest.approx(found.max_decoder_cosine[kept].mean())
    assert report.mean_abs_decoder_cosine == pytest.approx(np.nanmean(np.abs(cosines)), rel=1e-6)
    assert report.decoder_norm.min == 0


def test_a_transcoder_of_two_widths_and_a_single_feature() -> None:
    report = cosine_report(dictionary(rows(8, 6), rows(6, 10)))
    assert report.encoder_decoder_cosine is None
    assert report.mean_abs_decoder_cosine is None
    single = cosine_report(dictionary(rows(8, 1), rows(1, 8)), pair_statistics=True)
    assert single.max_decoder_cosine is None
    assert single.max_encoder_cosine is None
    assert single.mean_abs_decoder_cosine is None
    assert single.encoder_decoder_cosine is not None


def test_percentiles_are_those_of_the_values() -> None:
    values = np.append(np.arange(101.0), np.nan)
    found = percentiles(values)
    assert found is not None
    assert found.model_dump() == {
        "mean": 50, "min": 0, "p01": 1, "p10": 10, "median": 50, "p90": 90, "p99": 99, "max": 100
    }  # fmt: skip
    assert percentiles(np.array([np.nan])) is None


def test_the_most_similar_features() -> None:
    W_DO = rows(50, 16)
    W_DO[10] = W_DO[20] = W_DO[30] = 5 * W_DO[0]
    W_DO[40] = 0
    cosines = slow_cosines(W_DO)
    for feature, near in zip((0, 7, 49), nearest_features(W_DO, (0, 7, 49), n=4), strict=True):
        order = sorted(
            (-round(cosines[feature, other], 6), other)
            for other in range(50)
            if other not in (feature, 40)
        )
        assert [other for other, _ in near] == [other for _, other in order[:4]]
        for other, cosine in near:
            assert cosine == pytest.approx(cosines[feature, other], abs=1e-6)
    assert [other for other, _ in nearest_features(W_DO, [0], n=2)[0]] == [10, 20]
    assert len(nearest_features(W_DO, [0], n=100)[0]) == 48
    assert nearest_features(W_DO, [40], n=3) == [[]]
    assert nearest_features(W_DO, [], n=3) == []


def test_many_features_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    W_DO = rows(30, 8)
    whole = nearest_features(W_DO, range(30), n=3)
    monkeypatch.setattr("actcli.analysis.sae_cosines._ELEMENTS", 60)
    monkeypatch.setattr(sae_cosine_rows, "_CHUNK", 40)
    pieces = nearest_features(W_DO, range(30), n=3)
    assert [[other for other, _ in near] for near in pieces] == [
        [other for other, _ in near] for near in whole
    ]
    check(W_DO, 0.3)


def test_the_faster_type_is_one_of_two() -> None:
    assert fast_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert fast_dtype(torch.device("meta")) == torch.float32


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_golden_redundancy(path: Path) -> None:
    """The planted pairs of every checkpoint, in whatever form its weights are."""
    reference = json.loads(path.read_text())["ref_absorption"]
    W_DO = golden_decoder(path.stem)
    report = decoder_redundancy(W_DO, threshold=reference["threshold"]).report
    assert report.unordered_pairs == reference["unordered_pairs_abs"]
    assert report.unordered_pairs_positive == reference["unordered_pairs_signed"]
    assert report.total_unordered_pairs == reference["total_unordered_pairs"]
    assert report.score == pytest.approx(reference["score_abs"], rel=1e-12)
    listed = [(pair.first, pair.second, pair.cosine) for pair in report.pairs]
    expected = sorted(reference["pairs"], key=lambda pair: -abs(pair[2]))
    assert [pair[:2] for pair in listed] == [tuple(pair[:2]) for pair in expected]
    np.testing.assert_allclose([p[2] for p in listed], [p[2] for p in expected], atol=1e-7)
    found = row_maxima(Directions(W_DO), mean=True)
    assert found.mean_absolute == pytest.approx(reference["mean_abs"], rel=1e-6)
    assert found.signed_R.mean().item() == pytest.approx(reference["mean_max_signed_cos"], rel=1e-6)
    assert found.absolute_R.mean().item() == pytest.approx(reference["mean_max_abs_cos"], rel=1e-6)


def golden_decoder(name: str) -> torch.Tensor:
    """Return the decoder (D, O) of a golden checkpoint, by nothing but its name and shape."""
    family, case = next(
        (family, name.removeprefix(prefix))
        for prefix, family in FAMILIES.items()
        if name.startswith(prefix)
    )
    files = [path for path in (SAES / "ckpt" / family).rglob("*") if path.suffix in READERS]
    path = next((path for path in files if SPELLED.get(name, case) in path.parts), files[0])
    weights = READERS[path.suffix](path)
    W = next(
        torch.as_tensor(each).float()
        for key, each in weights.items()
        if key.split(".")[0] in ("W_dec", "w_dec", "decoder")
    )
    return W if len(W) == 80 else W.T


def read_pt(path: Path) -> dict[str, torch.Tensor]:
    found = torch.load(path, weights_only=True, map_location="cpu")
    return found.get("state_dict", found.get("model_state_dict", found))


FAMILIES = {
    "upstream_": "upstream",
    "saelens_": "sae_lens",
    "dictlearn_": "dictionary_learning",
    "sparsify_": "sparsify",
    "openai_": "openai",
    "circuit_tracer_": "circuit_tracer",
    "gemma_scope_": "gemma_scope",
    "transcoder_circuits": "transcoder_circuits",
}
SPELLED = {
    "gemma_scope_sae_res": "gemma-scope-2b-pt-res",
    "gemma_scope_transcoder": "gemma-scope-2b-pt-transcoders",
    "gemma_scope_2_transcoder": "layer_12_width_16k_l0_medium",
    "gemma_scope_2_transcoder_affine": "layer_12_width_16k_l0_medium_affine",
}
READERS: dict[str, Callable[[Path], Mapping[str, object]]] = {
    ".safetensors": load_file,
    ".npz": np.load,
    ".pt": read_pt,
}


def test_saebench_features() -> None:
    folder = SAES / "ckpt" / "sae_lens" / "standard"
    weights = load_file(next(folder.glob("*.safetensors")))
    made = dictionary(weights["W_enc"], weights["W_dec"])
    theirs = np.load(SAES / "golden" / "saebench_core_features.npz")
    found = cosine_features(made)
    np.testing.assert_allclose(
        found.max_decoder_cosine, theirs["max_decoder_cosine_sim"], atol=1e-6
    )
    np.testing.assert_allclose(
        found.max_encoder_cosine, theirs["max_encoder_cosine_sim"], atol=1e-6
    )
    np.testing.assert_allclose(
        found.encoder_decoder_cosine, theirs["encoder_decoder_cosine_sim"], atol=1e-6
    )
    np.testing.assert_allclose(found.encoder_norm, theirs["encoder_norm"], rtol=1e-6)
    np.testing.assert_allclose(weights["b_enc"], theirs["encoder_bias"], rtol=1e-6)
