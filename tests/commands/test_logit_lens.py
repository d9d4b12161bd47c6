"""`logit-lens` as users run it: golden values, the built-in question, files, every bad input."""

import csv
import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from actcli.commands.dump import DumpConfig, dump
from actcli.commands.logit_lens import LogitLensConfig, logit_lens
from actcli.errors import (
    ActcliError,
    CaptureError,
    DumpError,
    ModelError,
    SamplesError,
    UsageError,
)
from tests.golden import LENS_MODELS
from tests.models import architectures
from tests.processes import run_python

MODELS = sorted(path.name for path in LENS_MODELS.iterdir() if path.is_dir())
GERMANY = "give the city name only . the capital of Germany is called simply"
FLOATS = (
    "entropy_bits",
    "kl_to_final_bits",
    "kl_from_final_bits",
    "js_bits",
    "p_target",
    "nll_target_bits",
    "cos_to_final",
)


def golden(model):
    return np.load(LENS_MODELS / model / "expected.npz")


def run(tmp_path, **options):
    """Run the command; return its summary and its records."""
    folder = tmp_path / "lens"
    config = LogitLensConfig(device="cpu", quiet=True, output_dir=folder, **{"draw": 0} | options)
    logit_lens(config)
    (summary,) = folder.glob("output-*.json")
    (records,) = folder.glob("output-*-records.csv")
    with records.open(encoding="utf-8", newline="") as file:
        return json.loads(summary.read_text()), list(csv.DictReader(file))


def save_ids(tmp_path, model):
    path = tmp_path / "ids.npy"
    np.save(path, golden(model)["input_ids"])
    return path


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("budget", [1024, 9], ids=["one batch", "two batches"])
def test_records_equal_the_float64_reference(model, budget, tmp_path):
    options = {"init": str(LENS_MODELS / model), "tokens": save_ids(tmp_path, model), "top_k": 5}
    summary, records = run(tmp_path, **options, batch_tokens=budget)
    expected = golden(model)
    n_states, n_samples, n_tokens = expected["entropy_bits"].shape
    assert len(records) == n_states * n_samples * n_tokens == summary["n_records"]
    assert summary["self_test"]["largest_difference"] <= 1e-3
    for record in records:
        place = (int(record["layer"]), int(record["sample"]), int(record["pos"]))
        _compare(record, expected, place, is_last=place[2] == n_tokens - 1)


def _compare(record, expected, place, *, is_last):
    for name in FLOATS:
        if is_last and name in ("p_target", "nll_target_bits"):
            assert record[name] == ""  # nothing follows the last token of a text
        else:
            assert float(record[name]) == pytest.approx(expected[name][place], abs=1e-4), name
    assert [int(record[f"top{rank}_id"]) for rank in range(1, 6)] == [*expected["topk_ids"][place]]
    if not is_last:
        assert int(record["target_id"]) == expected["target"][place[1:]]
        assert int(record["rank_target"]) == expected["rank_target"][place]


def test_the_built_in_question_collapses_in_the_last_layers(tmp_path):
    summary, records = run(tmp_path)
    (sample,) = summary["samples"]
    assert sample["prompt"] == GERMANY
    assert (sample["answer"]["text"], sample["control"]["contrast"]["text"]) == ("Berlin", "Paris")
    assert sample["final_top"][0]["text"] == "Berlin"
    assert sample["final_top"][0]["p"] > 0.9
    appears = sample["milestones"]["layers"]["L_semantic"]
    assert 5 <= appears <= 8
    last = [each for each in records if int(each["pos"]) == sample["pos"]]
    ranks = [int(each["rank_target"]) for each in last]
    assert min(ranks[:appears]) > 1
    assert ranks[-1] == 1
    assert sample["milestones"]["layers"]["first_rank_le_1"] == ranks.index(1)
    entropies = [float(each["entropy"]) for each in last]
    assert entropies[-1] < 1 < max(entropies)


def test_in_an_empty_folder_every_file_is_written(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); from actcli.cli import main; main()"
    done = run_python("-c", code, "logit-lens")
    assert done.returncode == 0, done.stderr
    assert "Berlin" in done.stdout
    assert "demo://facts" in done.stderr
    written = {path.name for path in tmp_path.glob("out/logit_lens/facts_*/*")}
    assert written == {
        "output-facts.json",
        "output-facts.html",
        "output-facts-records.csv",
        "output-facts-pure-next-token.csv",
        "output-facts-0-heatmap.png",
        "output-facts-0-lines.png",
    }


def test_json_is_all_that_is_printed(tmp_path, capsys):
    logit_lens(LogitLensConfig(json_output=True, files=False, positions="last", device="cpu"))
    out, _err = capsys.readouterr()
    assert json.loads(out)["samples"][0]["answer"]["text"] == "Berlin"
    assert not list(tmp_path.iterdir())


def test_pure_next_token_is_the_last_position(tmp_path):
    run(tmp_path, prompt=(GERMANY, "the capital of Italy is named just"), answer=("Berlin", "Rome"))
    with (tmp_path / "lens/output-facts-pure-next-token.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [each["layer"] for each in records] == [*map(str, range(9))] * 2
    assert [each["answer_rank"] for each in records if each["layer"] == "8"] == ["1", "1"]
    assert {each["is_answer"] for each in records if each["layer"] == "8"} == {"True"}
    for each in records:
        assert (each["entropy_collapse"] == "True") == (float(each["entropy"]) <= 1.0)


def test_a_dump_gives_the_same_records_as_the_model(tmp_path):
    texts = {"prompt": (GERMANY, "the capital of Italy is named just")}
    streams = ("resid", "mid", "attn", "mlp")
    _summary, expected = run(tmp_path / "model", **texts, streams=streams)
    path = tmp_path / "activations.safetensors"
    outputs = ("embeddings", "layer_outputs", "resid_mid", "attn_out", "mlp_out")
    dump(DumpConfig(init="demo://facts", outputs=outputs, output=path, quiet=True, **texts))
    summary, found = run(tmp_path / "dump", from_dump=path, streams=streams)
    assert summary["source"] == str(path)
    assert len(found) == len(expected) == sum(14 - 6 * each for each in (0, 1)) * 33
    for one, other in zip(found, expected, strict=True):
        assert one["place"] == other["place"]
        assert one["top1_id"] == other["top1_id"]
        assert float(one["entropy"]) == pytest.approx(float(other["entropy"]), abs=1e-3)


def test_texts_of_several_lengths_do_not_see_each_other(tmp_path):
    texts = (GERMANY, "Rome is", "the capital of Italy is named just")
    _summary, together = run(tmp_path / "all", prompt=texts)
    alone = [run(tmp_path / str(number), prompt=(text,))[1] for number, text in enumerate(texts)]
    expected = [record for records in alone for record in records]
    assert len(together) == len(expected)
    for one, other in zip(together, expected, strict=True):
        assert (one["layer"], one["pos"], one["top1_id"]) == (
            other["layer"],
            other["pos"],
            other["top1_id"],
        )
        assert float(one["entropy"]) == pytest.approx(float(other["entropy"]), abs=2e-2)  # bf16


def test_an_answer_leaves_other_positions_their_next_token(tmp_path):
    _summary, records = run(tmp_path, prompt=(GERMANY,), answer=("Berlin",))
    last = max(int(each["pos"]) for each in records)
    for each in records:
        is_last = int(each["pos"]) == last
        assert (each["target"] == "Berlin") == is_last


def test_layers_positions_and_streams_are_those_asked_for(tmp_path):
    _summary, records = run(tmp_path, layers="0,-1", positions="-2,0", streams="mlp,resid")
    assert {each["place"] for each in records} == {"embed", "post:7", "mlp:7"}
    assert {each["pos"] for each in records} == {"0", "12"}


def test_the_raw_lens_skips_the_norm(tmp_path):
    options = {"init": str(LENS_MODELS / "llama"), "tokens": save_ids(tmp_path, "llama")}
    _summary, records = run(tmp_path, **options, lens="raw", top_k=3)
    expected = golden("llama")
    head = load_file(LENS_MODELS / "llama/model.safetensors")["lm_head.weight"].double()
    logits = torch.from_numpy(expected["resid"]).double() @ head.T
    for record in records:
        place = (int(record["layer"]), int(record["sample"]), int(record["pos"]))
        log_p = logits[place].log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum() / np.log(2)
        assert float(record["entropy"]) == pytest.approx(float(entropy), abs=1e-4)


def test_a_tuned_lens_translates_before_the_norm(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"d_model": 32, "num_hidden_layers": 4}))
    generator = torch.Generator().manual_seed(0)
    weights = {f"{layer}.weight": torch.zeros(32, 32) for layer in range(4)}
    weights |= {f"{layer}.bias": torch.randn(32, generator=generator) for layer in range(4)}
    torch.save(weights, folder / "params.pt")
    options = {"init": str(LENS_MODELS / "llama"), "tokens": save_ids(tmp_path, "llama")}
    _summary, plain = run(tmp_path / "plain", **options)
    summary, moved = run(tmp_path / "moved", **options, translator=folder)
    assert summary["lens"]["untranslated_layers"] == [4]
    same = [one["entropy"] == other["entropy"] for one, other in zip(plain, moved, strict=True)]
    is_last = [each["layer"] == "4" for each in plain]
    assert same == is_last


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"prompt": (GERMANY,), "answer": ("Berlinn",)}, UsageError, "vocabulary"),
        ({"prompt": (GERMANY,), "answer": (" ",)}, UsageError, "empty"),
        ({"prompt": (GERMANY,), "contrast": ("Paris",)}, UsageError, "--answer"),
        ({"prompt": (GERMANY,), "answer": ("Berlin", "Rome")}, UsageError, "once for each"),
        ({"prompt": ("the " * 200,)}, CaptureError, "--max-tokens"),
        ({"init": "demo://2048"}, UsageError, "language model"),
        ({"init": str(LENS_MODELS / "gpt2"), "prompt": ("hi",)}, ModelError, "no tokenizer"),
        ({"layers": "12"}, UsageError, "layer 12"),
        ({"positions": "99"}, UsageError, "99"),
        ({"translator": "/nowhere"}, ModelError, "nowhere"),
        ({"from_dump": "/nowhere.safetensors"}, DumpError, "no dump"),
        ({"text": "/nowhere.txt"}, SamplesError, "nowhere.txt"),
    ],
)
def test_bad_input_is_refused(options, error, says, tmp_path):
    with pytest.raises(error, match=says):
        run(tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"streams": "foo"},
        {"streams": ""},
        {"positions": "first"},
        {"output": "summary.csv"},
        {"translator": "t", "lens": "raw"},
        {"translator": "t", "streams": "mlp"},
        {"from_dump": "a.safetensors", "prompt": ("hi",)},
        {"chunk": 8, "text": "a.txt", "answer": ("Berlin",)},
    ],
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValidationError):
        LogitLensConfig(**options)


def test_files_that_exist_are_refused_before_any_work(tmp_path):
    run(tmp_path)
    with pytest.raises(ActcliError, match="exists"):
        run(tmp_path)
    run(tmp_path, force=True)


def test_a_dump_of_another_model_is_refused(tmp_path):
    path = tmp_path / "activations.safetensors"
    options = {"outputs": ("embeddings", "layer_outputs"), "output": path, "quiet": True}
    dump(DumpConfig(init="demo://facts", prompt=(GERMANY,), **options))
    with pytest.raises(DumpError, match="other weights"):
        run(tmp_path, from_dump=path, init=str(LENS_MODELS / "llama"))


def test_a_parallel_block_has_no_mid_stream(tmp_path):
    options = {"init": str(LENS_MODELS / "gpt_neox"), "tokens": save_ids(tmp_path, "gpt_neox")}
    with pytest.raises(CaptureError, match="parallel"):
        run(tmp_path, **options, streams="mid")


def test_a_translator_of_another_width_is_refused(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"d_model": 8, "num_hidden_layers": 8}))
    layers = range(8)
    weights = {f"{layer}.weight": torch.zeros(8, 8) for layer in layers}
    torch.save(
        weights | {f"{layer}.bias": torch.zeros(8) for layer in layers}, folder / "params.pt"
    )
    with pytest.raises(ModelError, match="8"):
        run(tmp_path, translator=folder)


def test_an_encoder_is_read_through_its_own_tail(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(3, 15).reshape(2, 6))
    folder = architectures.save("bert", tmp_path / "bert")
    summary, records = run(tmp_path, init=folder, tokens=tmp_path / "ids.npy")
    assert "replay" in summary["lens"]["method"]
    assert any("sees the whole text" in each for each in summary["warnings"])
    assert all(float(each["kl_to_final_bits"]) < 1e-4 for each in records if each["layer"] == "3")
    with pytest.raises(UsageError, match="--lens raw"):
        run(tmp_path / "raw", init=folder, tokens=tmp_path / "ids.npy", lens="raw")


def test_half_precision_weights_are_read_in_float32(tmp_path):
    """A bf16 model: the head's products must not be rounded to bf16."""
    folder = tmp_path / "half"
    folder.mkdir()
    config = json.loads((LENS_MODELS / "llama/config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(LENS_MODELS / "llama/model.safetensors")
    half = {name: each.bfloat16() for name, each in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    options = {"init": str(folder), "tokens": save_ids(tmp_path, "llama")}
    summary, records = run(tmp_path, **options)
    assert summary["model"]["dtype"] == "bfloat16"
    head, embed = half["lm_head.weight"].double(), half["model.embed_tokens.weight"]
    gain = half["model.norm.weight"].double()
    for record in (each for each in records if each["layer"] == "0"):
        x = embed[int(record["token_id"])].double()
        y = x / (x.square().mean() + config["rms_norm_eps"]).sqrt() * gain
        log_p = (y @ head.T).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum() / np.log(2)
        assert float(record["entropy"]) == pytest.approx(float(entropy), abs=1e-4)
