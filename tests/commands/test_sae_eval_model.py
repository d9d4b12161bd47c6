"""`sae-eval` with a model that runs: the built-in pair, losses, first letters, samples."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from actcli.cli import app
from tests.commands.sae_eval_runs import DATA, MATRYOSHKA, ON_XY, XY, as_json, invoke, refusal, run


def test_alone_it_evaluates_and_compares_the_built_in_pair(tmp_path):
    folder = tmp_path / "pair"
    done = invoke("-n", 60, "--output-dir", folder)
    assert done.exit_code == 0, done.stderr
    assert "using the built-in facts-matryoshka and facts-gemma-scope" in done.stderr
    found = json.loads((folder / "comparison.json").read_text())
    mine, scope = found["facts-matryoshka"], found["facts-gemma-scope"]
    assert (mine["sae"]["x"], scope["sae"]["x"]) == ("mlp_input.4", "mlp_input_normed.4")
    assert mine["sae"]["y"] == scope["sae"]["y"] == "mlp_out.4"
    assert [each["sae"]["path"] for each in (mine, scope)] == [
        "demo://facts-matryoshka", "demo://facts-gemma-scope",
    ]  # fmt: skip
    for each in (mine, scope):
        assert each["reconstruction"]["fvu"] < 0.05
        assert each["loss"]["kl_recovered"] > 0.8
        assert each["warnings"] == []
    assert [each["n_features"] for each in mine["prefixes"]][-1] == 1024
    assert {path.name for path in folder.iterdir()} == {
        "comparison.json", "facts-matryoshka_metrics.json", "facts-gemma-scope_metrics.json",
        "summary.txt", "l0.png", "density.png", "fvu_l0.png", "prefixes.png", "page.html",
    }  # fmt: skip
    again = invoke("--output-dir", folder)
    assert again.exit_code == 1
    assert "comparison.json exists: choose another --output-dir" in " ".join(again.stderr.split())


def test_a_dump_of_the_model_gives_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dumped = CliRunner().invoke(
        app,
        ["dump", "--init", "demo://facts", "--text", "demo://facts-text", "-n", "30", "--device",
         "cpu", "--model-dtype", "fp32", "--outputs", "mlp_input,mlp_out", "--layers", "3-5",
         "-o", "acts.safetensors"],
    )  # fmt: skip
    assert dumped.exit_code == 0, dumped.stderr
    words = ("--checkpoint", "demo://facts-matryoshka", "--exclude-bos")
    (ran,) = as_json(*words, "-n", 30)["dictionaries"]
    (read,) = as_json(*words, "--from-dump", "acts.safetensors")["dictionaries"]
    assert ran["tokens"]["sha256"] == read["tokens"]["sha256"]
    assert ran["reconstruction"]["fvu"] == pytest.approx(read["reconstruction"]["fvu"], rel=1e-5)
    assert ran["sparsity"]["mean_l0"] == pytest.approx(read["sparsity"]["mean_l0"])


def test_a_wrong_gain_is_warned_of():
    words = ("--checkpoint", "demo://facts-gemma-scope", "-n", 20, "--no-files")
    done = invoke(*words, "--x", "mlp_input.4")
    assert done.exit_code == 0, done.stderr
    assert "look like tokens with gain" in " ".join(done.stderr.split())


def test_losses_are_those_of_the_tokens_that_count():
    words = ("--checkpoint", "demo://facts-matryoshka", "-n", 20, "--loss")
    (every,) = as_json(*words)["dictionaries"]
    (some,) = as_json(*words, "--exclude-bos", "--n-tokens", 50)["dictionaries"]
    assert every["loss"]["n_tokens"] == every["tokens"]["n_tokens"]
    assert some["loss"]["n_tokens"] == some["tokens"]["n_tokens"] == 50


def test_first_letters_are_measured_of_an_sae_alone(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["capital", "city", "count", "called", "people", "pay", "is", "in"]))
    first_letter = ("--absorption", "first-letter", "--spelling", words, "--init", "demo://facts")
    message = refusal(*first_letter, "-n", 3, status=2)
    assert "facts-matryoshka is a transcoder" in message
    message = refusal(
        "--checkpoint", MATRYOSHKA, *ON_XY, "--absorption", "first-letter", "--spelling", words,
        status=2,
    )  # fmt: skip
    assert "is a transcoder" in message


def test_first_letters_of_a_file_of_activations(tmp_path):
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            "x": torch.randn(200, 40, generator=generator),
            "letters": torch.arange(200) % 4,
        },
        tmp_path / "spelling.safetensors",
    )
    sae = DATA / "ckpt" / "sae_lens" / "standard"
    words = ("--checkpoint", sae, "--from-dump", XY, "--x", "x")
    (found,) = as_json(
        *words, "--absorption", "first-letter", "--spelling", tmp_path / "spelling.safetensors"
    )["dictionaries"]
    assert found["first_letter_absorption"]["n_letters"] == 4
    assert found["absorption"]["definition"] == "pairwise_decoder_cosine"


def test_samples_are_collected_shown_reported_and_exported(tmp_path):
    folder, rich = tmp_path / "samples", tmp_path / "rich.jsonl"
    run(
        "--checkpoint", "demo://facts-matryoshka", "-n", 40, "--no-files", "--samples", folder,
        "--top-features", 6, "--top-contexts", 3, "--rich", rich,
    )  # fmt: skip
    features = sorted(folder.glob("feature_*_samples.json"))
    assert len(features) == 6
    number = int(features[0].name[8:13])
    assert f"Feature {number}" in run("--view", folder, "--feature", number)
    assert str(number) in run("--sample-dir", folder)
    run("--report", folder)
    assert (folder / "interpretability_report.md").is_file()
    lines = [json.loads(line) for line in rich.read_text().splitlines()]
    assert len(lines) == 6
    assert all("(act: " in each["examples"][0]["marked"] for each in lines)
    assert "samples" in run("--browse", tmp_path)
    message = refusal(
        "--checkpoint", "demo://facts-matryoshka", "-n", 4, "--samples", folder, status=1
    )
    assert "holds activation samples" in message
    message = refusal(
        "--checkpoint", "demo://facts-matryoshka", "--samples", tmp_path / "new", "--feature",
        "3,1024", status=2,
    )  # fmt: skip
    assert "facts-matryoshka has features 0 to 1023" in message


def test_samples_of_several_dictionaries_go_to_a_folder_each(tmp_path):
    folder = tmp_path / "samples"
    run("-n", 10, "--no-files", "--samples", folder, "--top-features", 2)
    assert {each.name for each in folder.iterdir()} == {"facts-matryoshka", "facts-gemma-scope"}
    for each in folder.iterdir():
        assert len([*each.glob("feature_*_samples.json")]) == 2
