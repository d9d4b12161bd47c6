"""`sae-eval` on dumps: golden values through the command, its options and files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.commands.sae_eval_runs import (
    DATA,
    GOOGLE,
    MATRYOSHKA,
    ON_XY,
    UPSTREAM,
    XY,
    as_json,
    check_reference,
    golden,
    invoke,
    layered,
    run,
)

SEED_KEYS = {
    "absorption": {"score", "pairs_above_threshold", "threshold"},
    "feature_utilization": {"dead_count", "dead_percentage", "alive_count", "total_features"},
    "sparsity": {"mean_l0", "median_l0", "l0_std"},
    "reconstruction": {"mse", "mae", "fvu", "cosine_similarity"},
    "activation_stats": {"max_activation", "mean_activation"},
}


def test_step_1_evaluates_a_matryoshka_run(tmp_path):
    folder = tmp_path / "layer8_evaluation"
    dump = layered(tmp_path)
    run("--checkpoint", MATRYOSHKA, "--layer", 8, "--from-dump", dump, "--output_dir", folder)
    report = json.loads((folder / "metrics.json").read_text())
    check_reference(report, "upstream_new_individual_sizes")
    for group, keys in SEED_KEYS.items():
        assert keys <= set(report[group])
    for mine, theirs in zip(
        report["prefixes"], golden("upstream_new_individual_sizes")["per_prefix"], strict=True
    ):
        assert mine["n_features"] == theirs["prefix"]
        assert mine["fvu"] == pytest.approx(theirs["fvu"], rel=1e-5)
    assert {path.name for path in folder.iterdir()} >= {"summary.txt", "l0.png", "prefixes.png"}
    assert "FVU:                0.5860  standard" in (folder / "summary.txt").read_text()


def test_places_come_from_the_dictionary_itself(tmp_path):
    done = invoke("--checkpoint", MATRYOSHKA, "--from-dump", layered(tmp_path), "--no-files")
    assert " reads mlp_input.8, its target is mlp_out.8" in done.stderr
    assert "0.5860 poor" in done.stdout
    assert "1,600 tokens in 8 samples" in done.stdout


def test_a_folder_of_gemma_scope_gives_its_reference():
    folder = GOOGLE / "layer_8" / "width_16k" / "average_l0_52"
    report = as_json("--checkpoint", folder, *ON_XY)
    check_reference(report["dictionaries"][0], "gemma_scope_transcoder")


@pytest.mark.parametrize(
    ("folder", "name", "target"),
    [
        ("sae_lens/topk", "saelens_topk", "x"),
        ("sae_lens/abstopk", "saelens_abstopk", "x"),
        ("sae_lens/standard_layer_norm", "saelens_standard_layer_norm", "x"),
        ("sae_lens/skip_transcoder", "saelens_skip_transcoder", "y"),
        ("dictionary_learning/BatchTopKSAE", "dictlearn_BatchTopKSAE", "x"),
        ("sparsify/topk_sae", "sparsify_topk_sae", "x"),
        ("sparsify/topk_transcoder_skip", "sparsify_topk_transcoder_skip", "y"),
        ("circuit_tracer/jumprelu", "circuit_tracer_jumprelu", "y"),
        ("openai/relu.pt", "openai_relu", "x"),
        ("upstream/new_cumulative_sizes", "upstream_new_cumulative_sizes", "y"),
        ("upstream/legacy_group_sizes_jsonstr", "upstream_legacy_group_sizes_jsonstr", "y"),
    ],
)
def test_other_formats_give_their_reference(folder, name, target):
    words = ("--from-dump", XY, "--x", "x", "--y", target)
    (report,) = as_json("--checkpoint", DATA / "ckpt" / folder, *words)["dictionaries"]
    check_reference(report, name)


def test_step_3_compares_with_the_folder_of_google(tmp_path):
    folder = tmp_path / "layer8_comparison"
    done = invoke(
        "--ours_checkpoint", MATRYOSHKA, "--google_dir", GOOGLE, "--layer", 8,
        "--from-dump", layered(tmp_path), "--output-dir", folder,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    compared = json.loads((folder / "comparison.json").read_text())
    check_reference(compared["ours"], "upstream_new_individual_sizes")
    check_reference(compared["google"], "gemma_scope_transcoder")
    fvu = compared["ours"]["reconstruction"]["fvu"] - compared["google"]["reconstruction"]["fvu"]
    assert compared["comparison"]["fvu_difference"] == pytest.approx(fvu)
    assert {"absorption_winner", "cosine_sim_winner"} <= set(compared["comparison"])
    for name in ("ours", "google"):
        assert json.loads((folder / f"{name}_metrics.json").read_text()) == compared[name]
    (fvu_pair,) = [each for each in compared["differences"] if each["metric"].endswith(".fvu")]
    assert fvu_pair["standard_error"] > 0
    assert "COMPARISON OF DICTIONARIES" in (folder / "summary.txt").read_text()


def test_the_nearest_average_l0_is_taken_and_told(tmp_path):
    root = tmp_path / "gemma_scope_2b_transcoders"
    for l0 in (5, 12, 300):
        shutil.copytree(
            GOOGLE / "layer_8" / "width_16k" / "average_l0_52",
            root / "layer_8" / "width_16k" / f"average_l0_{l0}",
        )
    words = ("--checkpoint", MATRYOSHKA, "--google-dir", root, "--from-dump", layered(tmp_path))
    done = invoke(*words, "--no-files")
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "average_l0 5, 12, 300 for layer 8: takes the nearest to the 10.4 of ours" in said
    assert "width_16k/average_l0_12" in said
    assert "taken for a transcoder of Gemma Scope 1" in said
    asked = as_json(*words, "--l0", 300)
    assert "average_l0_300" in asked["dictionaries"][1]["sae"]["path"]
    assert asked["dictionaries"][1]["sae"]["x"] == "mlp_input_normed.8"


@pytest.mark.parametrize("case", ["new_individual_sizes", "new_cumulative_sizes", "bf16"])
def test_compat_upstream_gives_the_numbers_of_that_program(case, tmp_path):
    folder = tmp_path / "evaluation"
    run(
        "--checkpoint", UPSTREAM / case, *ON_XY, "--compat", "upstream", "--batch_size", 200,
        "--output-dir", folder,
    )  # fmt: skip
    found = json.loads((folder / "metrics.json").read_text())
    expected = golden(f"upstream_{case}")["upstream"]["evaluate_model_on_batches_8x200"]
    assert {group: set(keys) for group, keys in found.items()} == SEED_KEYS
    for group, figures in expected.items():
        assert found[group] == pytest.approx(figures, rel=1e-5), group


def test_compat_upstream_compares_as_that_program_does(tmp_path):
    folder = tmp_path / "comparison"
    run(
        "--checkpoint", MATRYOSHKA, "--google-dir", GOOGLE, "--layer", 8, *ON_XY,
        "--compat", "upstream", "--batch-size", 200, "--output-dir", folder,
    )  # fmt: skip
    found = json.loads((folder / "comparison.json").read_text())
    assert set(found) == {"summary", "ours", "google", "comparison"}
    assert set(found["comparison"]) == set(golden("upstream_comparison")["comparison"])
    for group, figures in golden("upstream_comparison")["ours"].items():
        assert found["ours"][group] == pytest.approx(figures, rel=1e-5), group


def test_figures_do_not_change_with_the_order_of_dictionaries():
    folder = GOOGLE / "layer_8" / "width_16k" / "average_l0_52"
    one = as_json("--checkpoint", MATRYOSHKA, "--checkpoint", folder, *ON_XY)
    other = as_json("--checkpoint", folder, "--checkpoint", MATRYOSHKA, *ON_XY)
    for first, second in zip(one["dictionaries"], other["dictionaries"][::-1], strict=True):
        assert first == second
    (fvu,) = [each for each in one["differences"] if each["metric"] == "reconstruction.fvu"]
    (back,) = [each for each in other["differences"] if each["metric"] == "reconstruction.fvu"]
    assert fvu["difference"] == -back["difference"]


def test_different_targets_are_not_compared():
    sae = DATA / "ckpt" / "sae_lens" / "standard"
    found = as_json(
        "--checkpoint", MATRYOSHKA, "--checkpoint", sae, "--from-dump", XY,
        "--x", "x", "--x", "x", "--y", "y", "--y", "x",
    )  # fmt: skip
    assert found["metrics"] == []
    assert "target" in found["not_compared"]
    ref = golden("saelens_standard")["ref"]
    assert found["dictionaries"][1]["reconstruction"]["fvu"] == pytest.approx(ref["fvu"], rel=1e-5)


def test_outliers_are_left_out_by_their_length():
    sae = DATA / "ckpt" / "sae_lens" / "standard"
    words = ("--checkpoint", sae, "--from-dump", XY, "--x", "x", "--y", "x")
    report = as_json(*words, "--max-norm-multiple", 5)
    assert report["tokens"]["n_excluded"] == 8
    expected = golden("masked_and_batching")["rows_without_outliers"]
    (found,) = report["dictionaries"]
    assert found["reconstruction"]["fvu"] == pytest.approx(expected["fvu"], rel=1e-5)
    assert found["sparsity"]["mean_l0"] == pytest.approx(expected["l0_mean"])


def test_the_first_token_of_each_sample_is_left_out(tmp_path):
    sae = DATA / "ckpt" / "sae_lens" / "standard"
    words = ("--checkpoint", sae, "--from-dump", layered(tmp_path), "--x", "mlp_input")
    report = as_json(*words, "--y", "mlp_input", "--layer", 8, "--exclude-bos")
    assert report["tokens"]["n_excluded"] == 8
    expected = golden("masked_and_batching")["rows_without_outliers"]
    fvu = report["dictionaries"][0]["reconstruction"]["fvu"]
    assert fvu == pytest.approx(expected["fvu"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "n_tokens"),
    [
        (("--n-tokens", 100), 100),
        (("--batches", 2), 256),
        (("--batches", 2, "--batch-size", 50), 100),
    ],
)
def test_it_stops_after_so_many_tokens(words, n_tokens):
    report = as_json("--checkpoint", MATRYOSHKA, *ON_XY, *words)
    assert report["tokens"]["n_tokens"] == n_tokens
    assert report["dictionaries"][0]["feature_utilization"]["n_tokens"] == n_tokens


def test_a_raw_file_is_read_by_its_mapping(tmp_path):
    state = torch.load(MATRYOSHKA / "checkpoint.pt", weights_only=True)
    renamed = {f"my.{key}": each.clone() for key, each in state.items() if key != "threshold"}
    renamed["my.W_enc"] = renamed["my.W_enc"].T.contiguous()
    renamed["my.theta"] = state["threshold"].expand(80).clone()
    save_file(renamed, tmp_path / "mine.safetensors")
    keys = ("W_enc", "W_dec", "b_enc", "b_dec")
    mapping = [word for key in keys for word in ("--map", f"{key}=my.{key}")]
    report = as_json(
        "--checkpoint", tmp_path / "mine.safetensors", "--format", "raw", *mapping,
        "--map", "threshold=my.theta", "--activation", "jumprelu", *ON_XY,
    )  # fmt: skip
    check_reference(report["dictionaries"][0], "upstream_new_individual_sizes")


@pytest.mark.parametrize(
    ("check", "status"),
    [("fvu<0.6", 0), ("reconstruction.fvu < 0.5", 3), ("dead_count<=6", 0), ("mean_l0>20", 3)],
)
def test_a_check_that_fails_ends_with_status_3(check, status):
    done = invoke("--checkpoint", MATRYOSHKA, *ON_XY, "--no-files", "--check", check)
    assert done.exit_code == status
    assert ("check failed" in done.stderr) == (status == 3)
    assert "FVU (standard)" in done.stdout


def test_the_answer_as_csv_and_json(tmp_path):
    for suffix in ("csv", "json"):
        path = tmp_path / f"answer.{suffix}"
        run("--checkpoint", MATRYOSHKA, *ON_XY, "--no-files", "-o", path)
        assert "0.5859" in path.read_text()
    assert json.loads((tmp_path / "answer.json").read_text())["tokens"]["n_tokens"] == 1600


def test_files_that_exist_are_refused_before_any_work(tmp_path):
    folder = tmp_path / "there"
    run("--checkpoint", MATRYOSHKA, *ON_XY, "--output-dir", folder)
    before = (folder / "metrics.json").stat().st_mtime_ns
    done = invoke("--checkpoint", tmp_path / "nowhere", *ON_XY, "--output-dir", folder)
    assert done.exit_code == 1
    assert "metrics.json" in done.stderr
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    run("--checkpoint", MATRYOSHKA, *ON_XY, "--output-dir", folder, "--force")
    assert (folder / "metrics.json").stat().st_mtime_ns > before


def test_equal_names_are_numbered_and_given_names_taken():
    words = ("--checkpoint", MATRYOSHKA, "--checkpoint", MATRYOSHKA, *ON_XY)
    names = [each["sae"]["name"] for each in as_json(*words)["dictionaries"]]
    assert names == ["new_individual_sizes", "new_individual_sizes-2"]
    named = as_json(*words, "--name", "a", "--name", "b")["dictionaries"]
    assert [each["sae"]["name"] for each in named] == ["a", "b"]
