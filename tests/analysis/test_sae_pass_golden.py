"""Every checkpoint of the other libraries, against their figures and their definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.saes import OpenOptions, open_dictionary
from tests.analysis.test_sae_pass import evaluate

DATA = Path(__file__).parent.parent / "data" / "sae-eval"
GEMMA = "gemma_scope/gemma-scope-2"
FILES = {
    "gemma_scope_2_transcoder": f"{GEMMA}-1b-pt/transcoder/layer_12_width_16k_l0_medium",
    "gemma_scope_2_transcoder_affine": (
        f"{GEMMA}-1b-pt/transcoder/layer_12_width_16k_l0_medium_affine"
    ),
    "gemma_scope_sae_res": f"{GEMMA}b-pt-res/layer_20/width_16k/average_l0_71",
    "gemma_scope_transcoder": f"{GEMMA}b-pt-transcoders/layer_8/width_16k/average_l0_52",
    "openai_relu": "openai/relu.pt",
    "transcoder_circuits": "transcoder_circuits/tiny.pt",
    "sparsify_topk_sae": "sparsify/topk_sae/layers.8",
    "sparsify_topk_transcoder_skip": "sparsify/topk_transcoder_skip/layers.8.mlp",
}
FAMILIES = {
    "saelens_": "sae_lens/",
    "dictlearn_": "dictionary_learning/",
    "circuit_tracer_": "circuit_tracer/",
    "upstream_": "upstream/",
}
CASES = sorted(
    path.stem for path in (DATA / "golden").glob("*.json") if "ref" in json.loads(path.read_text())
)
READ_OTHERS = ("transcoder", "upstream", "circuit_tracer")
NAMES = {
    "mse": "mse_per_element",
    "explained_variance_centered": "frac_variance_explained_centered_residual",
    "explained_variance_legacy": "explained_variance_legacy_mean_of_ratios",
    "cosine_similarity": "cosine_mean_per_token",
    **{
        name: name
        for name in (
            *("fvu", "explained_variance", "mse_per_token", "mae", "fvu_scalar_mean"),
            *("fvu_about_zero", "cosine_flat", "l2_ratio", "relative_reconstruction_bias"),
        )
    },
}


def golden(case):
    return json.loads((DATA / "golden" / f"{case}.json").read_text())


def xy():
    found = np.load(DATA / "data" / "xy.npz")
    return torch.from_numpy(found["x"]), torch.from_numpy(found["y"])


def of_golden(case):
    path = FILES.get(case)
    for prefix, folder in FAMILIES.items():
        if path is None and case.startswith(prefix):
            path = folder + case.removeprefix(prefix)
    options = OpenOptions(layer=0) if case.startswith("circuit_tracer") else OpenOptions()
    return open_dictionary(str(DATA / "ckpt" / path), options, name=case)


@pytest.mark.parametrize("case", CASES)
def test_golden_figures(case):
    """Every figure of every checkpoint; l0 and fire counts exactly."""
    x_NI, y_NO = xy()
    if not any(word in case for word in READ_OTHERS):
        y_NO = x_NI
    expected, arrays = golden(case)["ref"], np.load(DATA / "golden" / f"{case}.npz")
    close = 2e-2 if case == "upstream_bf16" else 1e-5
    found = evaluate(of_golden(case), x_NI, y_NO, batch=200)
    for name, other in NAMES.items():
        value = getattr(found.reconstruction, name)
        assert value == pytest.approx(expected[other], rel=close, abs=close), name
    sparsity, used = found.sparsity, found.utilization
    if close == 1e-5:
        assert (np.round(found.density_D * 1600) == arrays["fire_count"]).all()
        assert sparsity.median_l0 == expected["l0_median"]
        assert (sparsity.min_l0, sparsity.max_l0) == (expected["l0_min"], expected["l0_max"])
        assert sparsity.l0_std == pytest.approx(expected["l0_std_unbiased"], rel=1e-12)
        assert used.dead_count == expected["dead_count"]
        assert used.dense_1_percentage == pytest.approx(100 * expected["dense_gt_1pct"])
        assert used.dense_10_percentage == pytest.approx(100 * expected["dense_gt_10pct"])
    assert sparsity.mean_l0 == pytest.approx(expected["l0_mean"], rel=close)
    assert sparsity.mean_l1 == pytest.approx(expected["l1_mean"], rel=close)
    stats = found.activation_stats
    assert stats.max_activation == pytest.approx(expected["max_activation"], rel=close)
    assert stats.mean_activation == pytest.approx(expected["mean_nonzero_activation"], rel=close)


@pytest.mark.parametrize("case", [case for case in CASES if "per_prefix" in golden(case)])
def test_golden_prefixes(case):
    """FVU of each nested part."""
    expected = golden(case)
    close = 2e-2 if "bf16" in case else 1e-5
    found = evaluate(of_golden(case), *xy(), batch=300)
    assert [each.n_features for each in found.prefixes] == expected["cumulative_prefix_sizes"]
    for own, other in zip(found.prefixes, expected["per_prefix"], strict=True):
        assert own.fvu == pytest.approx(other["fvu"], rel=close)
    assert found.prefixes[-1].fvu == pytest.approx(found.reconstruction.fvu, rel=1e-12)
    assert sum(each.dead_count for each in found.prefixes) == found.utilization.dead_count


@pytest.mark.parametrize(
    "case", [case for case in CASES if "saelens_evals_8batches_20x10" in golden(case)]
)
def test_saelens_own_figures(case):
    """What SAELens says of its own, where it is defined as here and not averaged over batches."""
    expected = golden(case)["saelens_evals_8batches_20x10"]
    x_NI, _y_NO = xy()
    found = evaluate(of_golden(case), x_NI, x_NI)
    ours, sparsity = found.reconstruction, found.sparsity
    pairs = {
        "l2_norm_in": ours.l2_norm_in,
        "l2_norm_out": ours.l2_norm_out,
        "l2_ratio": ours.l2_ratio,
        "l0": sparsity.mean_l0,
        "l1": sparsity.mean_l1,
        "mse": ours.mse_per_token,
        "cossim": ours.cosine_similarity,
        "explained_variance": ours.explained_variance,
    }
    for name, value in pairs.items():
        assert value == pytest.approx(expected[name], rel=2e-6, abs=2e-6), name


def test_saebench_own_figures():
    """SAEBench on one batch; its explained variance and mse are known to be wrong."""
    expected = json.loads((DATA / "golden" / "saebench_core.json").read_text())["core_1_batches"]
    x_NI, _y_NO = xy()
    found = evaluate(of_golden("saelens_standard"), x_NI, x_NI)
    ours = found.reconstruction
    assert ours.explained_variance_legacy == pytest.approx(
        expected["metrics"]["explained_variance_legacy"], rel=1e-6
    )
    assert ours.relative_reconstruction_bias == pytest.approx(
        expected["metrics"]["relative_reconstruction_bias"], rel=1e-6
    )
    alive = 1 - found.utilization.dead_count / 80
    assert alive == pytest.approx(expected["misc"]["frac_alive"])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("dictlearn")])
def test_dictionary_learning_own_figures(case):
    """dictionary_learning on one batch; its explained variance leaves a constant error out."""
    expected = golden(case)["evaluate_1x1600"]
    x_NI, _y_NO = xy()
    found = evaluate(of_golden(case), x_NI, x_NI)
    ours = found.reconstruction
    assert ours.explained_variance_centered == pytest.approx(
        expected["frac_variance_explained"], rel=3e-6
    )
    assert ours.cosine_similarity == pytest.approx(expected["cossim"], rel=1e-6)
    assert ours.l2_ratio == pytest.approx(expected["l2_ratio"], rel=1e-6)
    assert found.sparsity.mean_l0 == pytest.approx(expected["l0"], rel=1e-6)


def test_left_out_tokens():
    """Without the outliers, and batches of any size: sums are global."""
    expected = json.loads((DATA / "golden" / "masked_and_batching.json").read_text())
    x_NI, _y_NO = xy()
    kept = np.setdiff1d(np.arange(1600), expected["excluded_rows"])
    found = evaluate(
        of_golden("saelens_standard"), x_NI[kept], x_NI[kept], batch=137, samples_N=kept // 10
    )
    for name, other in NAMES.items():
        value = getattr(found.reconstruction, name)
        assert value == pytest.approx(expected["rows_without_outliers"][other], rel=1e-5), name
    assert found.sparsity.median_l0 == expected["rows_without_outliers"]["l0_median"]
