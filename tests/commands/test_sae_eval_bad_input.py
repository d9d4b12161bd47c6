"""What `sae-eval` refuses, and what it says of numbers that are not defined."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.commands.sae_eval_runs import (
    MATRYOSHKA,
    ON_XY,
    UPSTREAM,
    XY,
    as_json,
    invoke,
    layered,
    refusal,
    run,
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from-dump", "d.npz"), "--from-dump: there is nothing to evaluate"),
        (("--init", "hf://org/model"), "--init: there is nothing to evaluate"),
        (("--checkpoint", MATRYOSHKA), "give --from-dump FILE, or --init MODEL"),
        (("--google-dir", "g"), "is what --checkpoint is compared with"),
        (("--checkpoint", "a", "--name", "b", "--name", "c"), "--name was given 2 times"),
        (("--checkpoint", "a", "--name", "tokens"), "has a key of that name already"),
        (("--checkpoint", "a", "--x", "x", "--x", "y"), "--x was given 2 times"),
        (("--checkpoint", "a", "--k", "3"), "--k is for --format raw"),
        (("--checkpoint", "a", "--from-dump", "d", "--init", "m"), "leave out --init"),
        (("--checkpoint", "a", "--from-dump", "d", "--prompt", "m"), "leave out --prompt"),
        (("--checkpoint", "a", "--from-dump", "d", "--loss"), "leave out --loss"),
        (("--batches", "3", "--n-tokens", "4"), "both say when to stop"),
        (("--batch-size", "3"), "--batch-size is the batch of --batches"),
        (("--absorption", "first-letter"), "go together"),
        (("--spelling", "words.npz"), "go together"),
        (("--compat", "upstream", "--threshold", "0.8"), "has the threshold 0.9"),
        (("--feature", "3"), "--feature has no effect without --samples"),
        (("--find", "word"), "--find looks through the samples of --view"),
        (("--view", "d", "--checkpoint", "a"), "--checkpoint has no effect with it"),
        (("--browse", "d", "--feature", "3"), "--feature has no effect with it"),
        (("--samples", "d", "--rich", "r.txt", "--checkpoint", "a"), "name ending in .jsonl"),
        (("--samples", "d", "--rich", "r.jsonl"), "each afterwards, with --view d/NAME --rich"),
        (("--output", "a.png"), "expected a name ending in .json or .csv"),
        (("--map", "W_enc"), "expected NAME=KEY"),
        (("--check", "fvu"), "expected a metric, one of < <= > >=, and a number"),
        (("--check", "fwu<1"), "did you mean 'fvu'?"),
        (("--threshold", "1.5"), "--threshold"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    assert message in refusal(*words, status=2)


class TestBadInput:
    """Every kind that the command must refuse."""

    def test_an_unknown_format(self):
        assert "did you mean 'gemma_scope'?" in refusal(
            "--checkpoint", MATRYOSHKA, *ON_XY, "--format", "gemmascope", status=2
        )
        assert "is of no known format" in refusal("--checkpoint", XY, *ON_XY, status=1)

    def test_several_checkpoints_in_a_folder(self):
        message = refusal("--checkpoint", UPSTREAM, *ON_XY, status=2)
        assert "holds several dictionaries: bf16, legacy_group_sizes_jsonstr" in message

    def test_a_width_that_does_not_fit_names_the_site_that_does(self, tmp_path):
        wide = torch.zeros(8, 1, 200, 48)
        dump = layered(tmp_path, mlp_input=wide, attn_norm=wide)
        message = refusal("--checkpoint", MATRYOSHKA, "--from-dump", dump, status=2)
        assert "40" in message
        assert "48" in message
        assert "mlp_input_normed" in message

    def test_weights_that_are_not_finite(self, tmp_path):
        shutil.copytree(MATRYOSHKA, tmp_path / "nan")
        state = torch.load(MATRYOSHKA / "checkpoint.pt", weights_only=True)
        state["W_dec"][3, 2] = float("nan")
        torch.save(state, tmp_path / "nan" / "checkpoint.pt")
        assert "W_dec" in refusal("--checkpoint", tmp_path / "nan", *ON_XY, status=1)

    def test_a_dtype_that_is_not_supported(self, tmp_path):
        shutil.copytree(MATRYOSHKA, tmp_path / "ints")
        state = torch.load(MATRYOSHKA / "checkpoint.pt", weights_only=True)
        torch.save({key: each.to(torch.int32) for key, each in state.items()},
                   tmp_path / "ints" / "checkpoint.pt")  # fmt: skip
        assert "int32" in refusal("--checkpoint", tmp_path / "ints", *ON_XY, status=1)

    def test_a_pickle_that_needs_code(self, tmp_path):
        shutil.copytree(MATRYOSHKA, tmp_path / "code")
        torch.save({"W_enc": Path("x")}, tmp_path / "code" / "checkpoint.pt")
        message = refusal("--checkpoint", tmp_path / "code", *ON_XY, status=1)
        assert "safetensors" in message

    def test_an_empty_dump(self, tmp_path):
        path = tmp_path / "empty.safetensors"
        save_file({"x": torch.zeros(0, 40), "y": torch.zeros(0, 40)}, path)
        message = refusal(
            "--checkpoint", MATRYOSHKA, "--from-dump", path, "--x", "x", "--y", "y", status=1
        )
        assert "empty" in message

    def test_a_dump_that_is_not_there(self, tmp_path):
        words = ("--from-dump", tmp_path / "none.safetensors", "--x", "x", "--y", "y")
        assert "none.safetensors" in refusal("--checkpoint", MATRYOSHKA, *words, status=1)

    def test_activations_that_are_not_finite(self, tmp_path):
        path = tmp_path / "nan.safetensors"
        x = torch.zeros(4, 40)
        x[2, 5] = float("nan")
        save_file({"x": x, "y": torch.zeros(4, 40)}, path)
        words = ("--checkpoint", MATRYOSHKA, "--from-dump", path, "--x", "x", "--y", "y")
        assert "dimension 5" in refusal(*words, status=1)

    def test_rules_that_leave_no_token(self, tmp_path):
        words = ("--checkpoint", MATRYOSHKA, "--from-dump", layered(tmp_path))
        message = refusal(*words, "--exclude-positions", "0--1", status=2)
        assert "leave fewer of them out" in message

    def test_a_place_that_the_dump_does_not_have(self):
        message = refusal("--checkpoint", MATRYOSHKA, "--from-dump", XY, status=2)
        assert "which is the site mlp_input of layer 8" in message
        assert "has x [1600, 40], y [1600, 40]" in message
        words = ("--checkpoint", MATRYOSHKA, "--from-dump", XY, "--x", "q")
        assert "--x q: there is none of that name" in refusal(*words, status=2)


def made(tmp_path, W_enc_ID, W_dec_DO):
    path = tmp_path / "made.safetensors"
    save_file({"W_enc": W_enc_ID, "W_dec": W_dec_DO}, path)
    return ("--checkpoint", path, "--format", "raw", "--activation", "relu")


def test_a_dictionary_of_one_feature_has_no_pairs(tmp_path):
    words = made(tmp_path, torch.ones(40, 1), torch.ones(1, 40))
    (found,) = as_json(*words, *ON_XY)["dictionaries"]
    assert found["absorption"]["score"] is None
    assert found["cosines"]["max_decoder_cosine"] is None
    assert found["reconstruction"]["fvu"] is not None
    assert "FVU (standard)" in run(*words, *ON_XY, "--no-files")


def test_a_target_without_variance_has_no_fvu(tmp_path):
    path = tmp_path / "same.safetensors"
    save_file({"x": torch.ones(50, 40)}, path)
    words = made(tmp_path, torch.eye(40), torch.eye(40))
    done = invoke("--json", "--no-files", *words, "--from-dump", path, "--x", "x", "--y", "x")
    assert done.exit_code == 0, done.stderr
    (found,) = json.loads(done.stdout)["dictionaries"]
    assert found["reconstruction"]["fvu"] is None
    assert found["reconstruction"]["explained_variance_legacy"] is None
    assert "no variance" in done.stderr
    assert "NaN" not in done.stdout
    check = invoke("--no-files", *words, "--from-dump", path, "--x", "x", "--y", "x",
                   "--check", "fvu<1")  # fmt: skip
    assert check.exit_code == 3
    assert "is not defined" in check.stderr
