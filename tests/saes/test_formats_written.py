"""Cases without golden files: written here, and compared with sums in float64."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.saes.cases import encoded, largest, opened, random, relu, slow

I, D, O = 6, 10, 5  # noqa: E741
X = random(12, I, seed=1) + 0.5


def tensors(d_out=I, seed=2):
    return {
        "W_enc": random(I, D, seed=seed),
        "b_enc": random(D, seed=seed + 1),
        "W_dec": random(D, d_out, seed=seed + 2),
        "b_dec": random(d_out, seed=seed + 3),
    }


def check(found, acts_ND, recon_NO, x_NI=X):
    ours = encoded(found, x_NI)
    np.testing.assert_allclose(ours[0], acts_ND, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours[1], recon_NO, rtol=0, atol=1e-5)


def above(threshold, after=relu):
    return lambda h_D: np.where(h_D > np.asarray(threshold), after(h_D), 0)


def standardised(x_NI):
    x = x_NI.double()
    mean_N1, std_N1 = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    return ((x - mean_N1) / (std_N1 + 1e-5)), mean_N1.numpy(), std_N1.numpy()


def write_run(folder, state, name="checkpoint.pt", **config):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("flag", [True, "True"])
def test_matryoshka_run_with_unit_norm(tmp_path, flag):
    w = {**tensors(O), "threshold": torch.tensor(0.3)}
    run = write_run(
        tmp_path / "run", w, input_unit_norm=flag, prefix_sizes="[3, 10]", source_layer=2,
        source_site="mlp_in", target_layer=2, target_site="mlp_out",
    )  # fmt: skip
    z_NI, mean_N1, std_N1 = standardised(X)
    acts, y = slow(z_NI, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], above(0.3))
    found = opened(run)
    check(found, acts, y * std_N1 + mean_N1)
    assert found.prefixes == (3, 10)
    places = [
        (each.hook, each.site, each.layer) for each in (found.origin.reads, found.origin.writes)
    ]
    assert places == [("mlp_in", "mlp_input", 2), ("mlp_out", "mlp_out", 2)]


@pytest.mark.parametrize("flag", [False, "False", None])
def test_matryoshka_ancestors_have_neither_threshold_nor_target(tmp_path, flag):
    w = tensors()
    run = write_run(
        tmp_path / "run", w, "sae.pt", input_unit_norm=flag, hook_point="blocks.3.hook_resid_pre"
    )
    found = opened(run)
    check(found, *slow(X, *w.values(), relu))
    assert found.origin.is_transcoder is False
    assert found.origin.writes is None
    assert (found.origin.reads.site, found.origin.reads.layer) == ("layer_outputs", 2)
    assert "no threshold" in found.origin.notes[0]
    assert found.prefixes == ()


def test_the_newer_of_two_checkpoints_of_a_run(tmp_path):
    run = write_run(tmp_path / "run", tensors(), "sae.pt", prefix_sizes=[D])
    write_run(run, tensors(seed=50), "checkpoint.pt", prefix_sizes=[D])
    assert opened(run).origin.path.name == "checkpoint.pt"
    assert opened(run / "sae.pt").origin.path.name == "sae.pt"


@pytest.mark.parametrize("after", ["ReLU", "Identity", None])
def test_openai_topk(tmp_path, after):
    state = {
        "pre_bias": random(I, seed=1),
        "latent_bias": random(D, seed=2) - 1.5,
        "encoder.weight": random(D, I, seed=3),
        "decoder.weight": random(I, D, seed=4),
        "stats_last_nonzero": torch.zeros(D, dtype=torch.int64),
        "activation": "TopK",
        "activation_state_dict": {"k": 4, **({"postact_fn": after} if after else {})},
    }
    torch.save(state, tmp_path / "v5_32k.pt")
    z_NI, mean_N1, std_N1 = standardised(X)
    acts, y = slow(
        z_NI, state["encoder.weight"].T, state["latent_bias"], state["decoder.weight"].T,
        state["pre_bias"], largest(4, after=(lambda h: h) if after == "Identity" else relu),
        centre_I=state["pre_bias"],
    )  # fmt: skip
    check(opened(tmp_path / "v5_32k.pt"), acts, y * std_N1 + mean_N1)
    assert (acts != 0).sum(-1).min() < 4 or after == "Identity"


@pytest.mark.parametrize("is_turned", [False, True])
def test_circuit_tracer_relu_with_skip_and_the_old_way_round(tmp_path, is_turned):
    w = tensors(O)
    skip_OI = random(O, I, seed=9)
    stored = {
        "W_enc": w["W_enc"].T.contiguous(),
        "b_enc": w["b_enc"],
        "W_dec": w["W_dec"].T.contiguous() if is_turned else w["W_dec"],
        "b_dec": w["b_dec"],
        "W_skip": skip_OI,
    }
    for layer in (0, 7):
        save_file(stored, tmp_path / f"layer_{layer}.safetensors")
    found = opened(tmp_path, layer=7)
    acts, y = slow(X, *w.values(), relu)
    check(found, acts, y + X.double().numpy() @ skip_OI.double().numpy().T)
    assert found.origin.architecture == "relu"
    assert found.origin.reads is None
    assert "config.yaml" in found.origin.notes[0]


def test_circuit_tracer_keeps_negative_values_above_a_negative_threshold(tmp_path):
    w, threshold_D = tensors(), random(D, seed=20)
    state = {**w, "W_enc": w["W_enc"].T.contiguous(), "activation_function.threshold": threshold_D}
    save_file(state, tmp_path / "layer_3.safetensors")
    acts, y = slow(X, *w.values(), above(threshold_D.numpy(), after=lambda h: h))
    assert (acts < 0).any()
    check(opened(tmp_path / "layer_3.safetensors"), acts, y)


def test_circuit_tracer_k_of_the_configuration(tmp_path):
    w = tensors()
    save_file({**w, "W_enc": w["W_enc"].T.contiguous()}, tmp_path / "layer_3.safetensors")
    (tmp_path / "config.yaml").write_text(
        "model_name: m\nactivation: topk\nk: 3\nfeature_input_hook: ln2.hook_normalized\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    found = opened(tmp_path)
    check(found, *slow(X, *w.values(), largest(3, after=lambda h: h)))
    assert (found.origin.reads.site, found.origin.reads.layer) == ("mlp_input_normed", 3)


def write_saelens(folder, state, **config):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_saelens_scale_found_by_finetuning(tmp_path):
    w, scale_D = tensors(), 1 + random(D, seed=30).abs()
    folder = write_saelens(
        tmp_path / "sae", {**w, "scaling_factor": scale_D}, hook_point="blocks.0.hook_resid_pre",
        finetuning_scaling_factor=True, apply_b_dec_to_input=True,
    )  # fmt: skip
    acts, y = slow(
        X, w["W_enc"], w["b_enc"], w["W_dec"] * scale_D[:, None], w["b_dec"], relu,
        centre_I=w["b_dec"],
    )  # fmt: skip
    found = opened(folder)
    check(found, acts, y)
    assert (found.origin.reads.site, found.origin.reads.layer) == ("embeddings", None)


def test_saelens_transcoders_never_centre(tmp_path):
    w = tensors()
    folder = write_saelens(tmp_path / "sae", w, architecture="transcoder")
    check(opened(folder), *slow(X, *w.values(), relu))


def test_saelens_training_checkpoints_are_rescaled_unless_they_say_otherwise(tmp_path):
    w = tensors()
    norms_D = w["W_dec"].norm(dim=-1).double().numpy()
    state = {**w, "topk_threshold": torch.tensor(0.7)}
    config = {"architecture": "batchtopk", "apply_b_dec_to_input": False}
    acts, y = slow(
        X, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"],
        lambda h_D: np.where(h_D * norms_D > 0.7, h_D, 0),
    )  # fmt: skip
    check(opened(write_saelens(tmp_path / "a", state, **config)), acts * norms_D, y)
    config["rescale_acts_by_decoder_norm"] = False
    plain = opened(write_saelens(tmp_path / "b", state, **config))
    check(plain, *slow(X, *w.values(), above(0.7)))


def test_saelens_heads_have_no_site(tmp_path):
    folder = write_saelens(tmp_path / "sae", tensors(), hook_name="blocks.4.attn.hook_z")
    reads = opened(folder).origin.reads
    assert (reads.hook, reads.site, reads.layer) == ("blocks.4.attn.hook_z", None, 4)


def test_saelens_old_flag_of_average_norm(tmp_path):
    folder = write_saelens(tmp_path / "sae", tensors(), normalize_activations=True)
    assert "does not hold that factor" in opened(folder).origin.notes[0]


def test_gemma_scope_of_no_telling_folder(tmp_path):
    w = {**tensors(O), "threshold": random(D, seed=40).abs()}
    folder = tmp_path / "layer_4" / "width_1k" / "average_l0_9"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{key: value.numpy() for key, value in w.items()})
    found = opened(tmp_path)
    threshold_D = w.pop("threshold")
    check(found, *slow(X, *w.values(), above(threshold_D.numpy())))
    origin = found.origin
    assert origin.is_transcoder is None
    assert origin.writes is None
    assert (origin.reads.site, origin.reads.layer, origin.model) == (None, 4, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in tensors().items()}
    found = opened(write_saelens(tmp_path / "sae", state, apply_b_dec_to_input=False))
    assert found.origin.dtype == str(dtype).removeprefix("torch.")
    check(found, *slow(X, *(value.float() for value in state.values()), relu))


def test_files_of_the_old_kind_of_torch_save(tmp_path):
    w = tensors()
    run = write_run(tmp_path / "run", {}, prefix_sizes=[4, 6])
    torch.save(w, run / "checkpoint.pt", _use_new_zipfile_serialization=False)
    check(opened(run), *slow(X, *w.values(), relu))


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("tells", ["width", "b_enc"])
def test_raw_finds_the_way_round(tmp_path, is_turned, tells):
    w = tensors(O)
    names = {"W_enc": "enc.w", "W_dec": "dec.w", "b_enc": "enc.b", "b_dec": "dec.b"}
    stored = {
        names[key]: value.T.contiguous() if is_turned and value.ndim == 2 else value
        for key, value in w.items()
    }
    mapping = dict(names)
    if tells == "width":
        del stored["enc.b"], mapping["b_enc"]
        w["b_enc"] = torch.zeros(D)
    save_file(stored, tmp_path / "some.safetensors")
    found = opened(tmp_path, format="raw", mapping=mapping, width=I if tells == "width" else None)
    check(found, *slow(X, *w.values(), relu))
    assert (found.origin.format, found.origin.is_transcoder) == ("raw", None)


def test_raw_activations_centre_and_skip(tmp_path):
    w = tensors()
    threshold_D, skip_OI = random(D, seed=3).abs(), random(I, I, seed=4)
    torch.save(
        {"model": {**w, "theta": threshold_D, "W_skip": skip_OI}, "step": 3}, tmp_path / "a.pt"
    )
    mapping = {key: f"model.{key}" for key in (*w, "W_skip")}
    centred = {**mapping, "centre": "model.b_dec"}
    skipped = X.double().numpy() @ skip_OI.double().numpy().T
    acts, y = slow(X, *w.values(), largest(3), centre_I=w["b_dec"])
    check(opened(tmp_path / "a.pt", format="raw", mapping=centred, k=3), acts, y + skipped)
    acts, y = slow(X, *w.values(), above(threshold_D.numpy()))
    jumping = {**mapping, "threshold": "model.theta"}
    check(opened(tmp_path / "a.pt", format="raw", mapping=jumping), acts, y + skipped)
    acts, y = slow(X, *w.values(), relu)
    plain = opened(tmp_path / "a.pt", format="raw", mapping=jumping, activation="relu")
    check(plain, acts, y + skipped)


def test_raw_square_encoder_is_noted(tmp_path):
    save_file({"W_enc": random(I, I), "W_dec": random(I, I, seed=1)}, tmp_path / "a.safetensors")
    found = opened(tmp_path, format="raw")
    assert "square" in found.origin.notes[0]
    torch.testing.assert_close(found.W_enc_ID, random(I, I))
