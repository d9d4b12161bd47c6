"""Every golden dictionary: what its own library gives, and what its files say of it."""

import numpy as np
import pytest
import torch

from tests.saes.cases import CKPT, DATA, GOLDEN, MORE, MORE_GOLDEN, encoded, opened

X = torch.tensor(np.load(DATA / "data" / "xy.npz")["x"])
X_MORE = torch.tensor(np.load(MORE / "x.npz")["x"])
FULL_PRECISION = sorted(set(GOLDEN) - {"upstream_bf16"})


@pytest.mark.parametrize("name", FULL_PRECISION)
def test_encodes_and_rebuilds_as_its_library(name):
    golden = np.load(DATA / "golden" / f"{name}.npz")
    acts_ND, recon_NO = encoded(opened(GOLDEN[name]), X)
    n = len(golden["acts"])
    np.testing.assert_allclose(acts_ND[:n], golden["acts"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(recon_NO[:n], golden["recon"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal((acts_ND != 0).sum(0), golden["fire_count"])
    np.testing.assert_array_equal((acts_ND != 0).sum(1), golden["l0"])


def test_the_golden_files_are_all_used():
    files = {path.stem for path in (DATA / "golden").glob("*.npz")}
    others = {"upstream_batchtopk_train", "saebench_core_features", "chanin_absorption"}
    assert files - others - {"loss_recovered"} == set(GOLDEN)


def test_weights_in_bfloat16():
    """The program computes in bfloat16; here its weights are exact and the sums more precise."""
    found, golden = opened(GOLDEN["upstream_bf16"]), np.load(DATA / "golden" / "upstream_bf16.npz")
    assert found.origin.dtype == "bfloat16"
    assert found.W_enc_ID.dtype == found.W_dec_DO.dtype == torch.float32
    W_enc, b_enc, W_dec, b_dec = (
        each.bfloat16() for each in (found.W_enc_ID, found.b_enc_D, found.W_dec_DO, found.b_dec_O)
    )
    h_ND = torch.relu(X.bfloat16() @ W_enc + b_enc)
    a_ND = torch.where(h_ND > found.activation.threshold_D, h_ND, 0)
    y_NO = a_ND @ W_dec + b_dec
    n = len(golden["acts"])
    np.testing.assert_allclose(a_ND[:n].float().numpy(), golden["acts"], rtol=0, atol=2e-2)
    np.testing.assert_allclose(y_NO[:n].float().numpy(), golden["recon"], rtol=0, atol=2e-2)
    acts_ND, recon_NO = encoded(found, X)
    for ours, theirs in ((acts_ND, golden["acts"]), (recon_NO, golden["recon"])):
        scale_N1 = np.abs(theirs).max(-1, keepdims=True)
        assert (np.abs(ours[:n] - theirs) <= 2e-2 * scale_N1).all()


@pytest.mark.parametrize("name", sorted(MORE_GOLDEN))
def test_encodes_and_rebuilds_the_further_cases(name):
    golden = np.load(MORE / "golden" / f"{name}.npz")
    layer = 3 if name == "qwen_scope" else None
    acts_ND, recon_NO = encoded(opened(MORE_GOLDEN[name], layer=layer), X_MORE)
    np.testing.assert_allclose(acts_ND, golden["acts"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(recon_NO, golden["recon"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(acts_ND != 0, golden["acts"] != 0)


READS_RESIDUAL = ("blocks.8.hook_resid_post", "layer_outputs", 8)
NORMED = ("blocks.8.ln2.hook_normalized", "mlp_input_normed", 8)
ORIGINS = {
    "upstream_new_cumulative_sizes": (
        "matryoshka", "topk", True, ("blocks.8.hook_mlp_in", "mlp_input", 8),
        ("blocks.8.hook_mlp_out", "mlp_out", 8), "gemma-2-2b", (10, 20, 40, 60, 80),
    ),
    "upstream_legacy_group_sizes_jsonstr": (
        "matryoshka", "topk", True, ("blocks.8.hook_mlp_in", "mlp_input", 8),
        ("blocks.8.hook_mlp_out", "mlp_out", 8), "gemma-2-2b", (8, 20, 40, 68, 80),
    ),
    "saelens_standard": ("saelens", "standard", False, READS_RESIDUAL, None, "gpt2-small", ()),
    "saelens_legacy_v3_hook_point": (
        "saelens", "standard", False, ("blocks.8.hook_resid_pre", "layer_outputs", 7), None,
        "gpt2-small", (),
    ),
    "saelens_matryoshka_inference": (
        "saelens", "jumprelu", False, READS_RESIDUAL, None, "gpt2-small", (20, 40, 80),
    ),
    "saelens_transcoder": (
        "saelens", "transcoder", True, NORMED, ("blocks.8.hook_mlp_out", "mlp_out", 8),
        "gpt2-small", (),
    ),
    "dictlearn_BatchTopKSAE": (
        "dictionary_learning", "BatchTopKSAE", False, ("resid_post_layer_8", "layer_outputs", 8),
        None, "EleutherAI/pythia-70m-deduped", (),
    ),
    "sparsify_topk_sae": (
        "sparsify", "topk", False, ("layers.8", "layer_outputs", 8), None, None, (),
    ),
    "sparsify_topk_transcoder_skip": (
        "sparsify", "topk", True, ("layers.8.mlp", "mlp_input", 8), ("layers.8.mlp", "mlp_out", 8),
        None, (),
    ),
    "circuit_tracer_jumprelu": (
        "circuit_tracer", "jumprelu", True, ("blocks.0.mlp.hook_in", "mlp_input", 0),
        ("blocks.0.hook_mlp_out", "mlp_out", 0), "google/gemma-2-2b", (),
    ),
    "openai_relu": ("openai", "ReLU", False, None, None, None, ()),
    "transcoder_circuits": (
        "transcoder_circuits", "transcoder", True, NORMED, ("blocks.8.hook_mlp_out", "mlp_out", 8),
        "gpt2-small", (),
    ),
    "gemma_scope_transcoder": (
        "gemma_scope", "jumprelu", True, ("transcoders/layer_8", "mlp_input_normed", 8),
        ("transcoders/layer_8", "mlp_out", 8), "google/gemma-2-2b", (),
    ),
    "gemma_scope_sae_res": (
        "gemma_scope", "jumprelu", False, ("res/layer_20", "layer_outputs", 20), None,
        "google/gemma-2-2b", (),
    ),
    "gemma_scope_2_transcoder": (
        "gemma_scope", "jumprelu", True,
        ("model.layers.12.pre_feedforward_layernorm.output", "mlp_input", 12),
        ("model.layers.12.post_feedforward_layernorm.output", "mlp_out", 12),
        "google/gemma-3-1b-pt", (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ORIGINS))
def test_says_what_it_is(name):
    found = opened(GOLDEN[name])
    origin = found.origin
    places = [
        None if each is None else (each.hook, each.site, each.layer)
        for each in (origin.reads, origin.writes)
    ]
    described = (
        origin.format, origin.architecture, origin.is_transcoder, *places, origin.model,
        found.prefixes,
    )  # fmt: skip
    assert described == ORIGINS[name]
    assert origin.dtype == "float32"
    assert origin.path.is_file()
    assert (found.d_in, found.n_features, found.d_out) == (40, 80, 40)


def test_names():
    assert opened(CKPT / "sae_lens" / "standard").origin.name == "standard"
    folder = GOLDEN["gemma_scope_transcoder"]
    assert opened(folder).origin.name == "layer_8/width_16k/average_l0_52"
    assert opened(GOLDEN["openai_relu"]).origin.name == "relu"


def test_prefixes_of_training_checkpoints_and_group_sizes():
    assert opened(MORE_GOLDEN["saelens_matryoshka_training"]).prefixes == (4, 12, 32)
    assert opened(MORE_GOLDEN["saelens_matryoshka_training_exported"]).prefixes == (4, 12, 32)
    assert opened(MORE_GOLDEN["dictlearn_MatryoshkaBatchTopKSAE"]).prefixes == (4, 12, 32)


def test_notes():
    untrained = opened(MORE_GOLDEN["dictlearn_BatchTopKSAE_untrained"]).origin.notes
    assert "every positive value is active" in untrained[0]
    assert (
        "does not hold that factor"
        in (opened(MORE_GOLDEN["saelens_standard_average_norm"]).origin.notes[0])
    )
    assert opened(GOLDEN["saelens_standard"]).origin.notes == ()


def test_all_tensors_are_float32_in_one_piece():
    for name in ("dictlearn_AutoEncoder", "sparsify_topk_transcoder_skip", "circuit_tracer_topk"):
        found = opened(GOLDEN[name])
        assert found.W_enc_ID.is_contiguous() != found.W_enc_ID.T.is_contiguous()  # as stored
        for tensor in (found.W_dec_DO, found.b_enc_D, found.b_dec_O):
            assert tensor.is_contiguous()
            assert tensor.dtype == found.W_enc_ID.dtype == torch.float32


def test_the_built_in_pair():
    ours, google = opened("demo://facts-matryoshka"), opened("demo://facts-gemma-scope")
    assert (ours.origin.format, ours.origin.name) == ("matryoshka", "facts-matryoshka")
    assert (google.origin.format, google.origin.name) == ("gemma_scope", "facts-gemma-scope")
    assert len(ours.prefixes) > 1
    assert google.origin.reads.layer == ours.origin.reads.layer == 4
