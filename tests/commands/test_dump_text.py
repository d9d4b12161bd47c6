"""`dump` on language models, as users run it: sources of texts, logits, padding, refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from actcli.builtin import find_builtin
from actcli.commands.dump import DumpConfig, dump
from actcli.commands.gammas import GammasConfig, gammas
from actcli.commands.outliers import OutliersConfig, outliers
from actcli.errors import CaptureError, ModelError, UsageError
from tests.golden import LENS_MODELS
from tests.models import architectures

FACTS = find_builtin("demo://facts", holding="tokenizer.json", error=ModelError)
TEXTS = (
    "the capital of Italy is named just",
    "Rome is",
    "give the city name only . the capital of Germany is called simply",
    "Ben lives in Paris . Ben works in",
)


def run(tmp_path, **options):
    """Dump, and return the tensors."""
    path = tmp_path / "activations.safetensors"
    config = {"init": "demo://facts", "output": path, "quiet": True, "device": "cpu", "force": True}
    dump(DumpConfig(**config | options))
    return load_file(path)


@pytest.fixture(scope="module")
def facts():
    return AutoModelForCausalLM.from_pretrained(FACTS), AutoTokenizer.from_pretrained(FACTS)


def plain_states(net, ids):
    """What enters each block and the last norm, as transformers gives it, of one text alone."""
    with torch.inference_mode():
        return net(torch.tensor([ids]), output_hidden_states=True).hidden_states


def test_rows_are_those_of_each_text_alone_in_the_given_order(facts, tmp_path):
    net, tokenizer = facts
    found = run(tmp_path, prompt=TEXTS, outputs=("embeddings", "layer_outputs"), batch_tokens=16)
    longest = found["token_ids"].shape[1]
    for row, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        assert found["token_ids"][row].tolist() == ids + [-1] * (longest - len(ids))
        assert found["mask"][row].tolist() == [1] * len(ids) + [0] * (longest - len(ids))
        states = plain_states(net, ids)
        assert torch.equal(found["embeddings"][row, : len(ids)], states[0][0].float())
        for layer in range(7):  # the last state of transformers is already normed
            stored = found["layer_outputs"][row, layer]
            expected = states[layer + 1][0].float()
            assert torch.allclose(stored[: len(ids)], expected, rtol=2e-2, atol=2e-2)
            assert not stored[len(ids) :].any()


def test_offsets_point_into_the_text(facts, tmp_path):
    found = run(tmp_path, prompt=TEXTS[:1], outputs=("embeddings",))
    spans = found["offsets"][0].tolist()
    assert [TEXTS[0][first:last] for first, last in spans] == ["", *TEXTS[0].split()]


def test_every_source_gives_the_same_dump(tmp_path):
    import datasets

    lines, objects = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("\n".join(TEXTS) + "\n")
    objects.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    table = datasets.Dataset.from_dict({"body": list(TEXTS)})
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "a.parquet")
    expected = run(tmp_path, prompt=TEXTS, outputs=("final_hidden",))
    ids = tmp_path / "ids.npy"
    np.save(ids, expected["token_ids"].numpy())
    for options in (
        {"text": str(lines)},
        {"jsonl": objects, "field": "body"},
        {"dataset": str(tmp_path / "saved"), "field": "body"},
        {"dataset": str(tmp_path / "a.parquet"), "field": "body"},
        {"tokens": ids},
    ):
        found = run(tmp_path, outputs=("final_hidden",), **options)
        for key in ("final_hidden", "token_ids", "mask"):
            assert torch.equal(found[key], expected[key]), (options, key)


def test_the_last_position_is_each_texts_own(facts, tmp_path):
    every = run(tmp_path, prompt=TEXTS, outputs=("layer_outputs",))
    last = run(tmp_path, prompt=TEXTS, outputs=("layer_outputs",), positions="-1")
    assert last["layer_outputs"].shape[2] == 1
    assert last["mask"].tolist() == [[1]] * len(TEXTS)
    for row, length in enumerate(every["mask"].sum(dim=1).tolist()):
        assert torch.equal(
            last["layer_outputs"][row, :, 0], every["layer_outputs"][row, :, length - 1]
        )


def test_logits_are_the_largest_unless_all_are_asked_for(facts, tmp_path):
    net, tokenizer = facts
    found = run(tmp_path, prompt=TEXTS[:1], outputs=("logits",), top_logits=3)
    whole = run(tmp_path, prompt=TEXTS[:1], outputs=("logits",), full_logits=True)["logits"]
    assert set(found) == {"logits_top", "logits_top_ids", "token_ids", "mask", "offsets"}
    with torch.inference_mode():
        expected = net(**tokenizer(TEXTS[0], return_tensors="pt")).logits.float()
    assert torch.allclose(whole, expected, atol=1e-1)
    values, _ids = whole.topk(3, dim=-1)
    assert torch.equal(found["logits_top"], values)
    assert torch.equal(whole.gather(-1, found["logits_top_ids"].long()), values)
    assert found["logits_top_ids"].dtype == torch.int32


def test_chunks_are_full_rows_with_their_documents(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("\n".join(TEXTS) + "\n")
    found = run(tmp_path, text=str(text), chunk=10, outputs=("final_hidden",))
    assert found["mask"].all()
    assert found["token_ids"].shape[1] == 10
    assert found["document"].flatten().tolist() == sorted(found["document"].flatten().tolist())


@pytest.mark.parametrize("name", ["bert", "gpt2", "gemma2", "opt", "bloom", "gpt_oss"])
def test_other_architectures_dump_and_verify(name, tmp_path):
    ids = np.arange(3, 27).reshape(3, 8)
    ids[1, 5:] = -1
    np.save(tmp_path / "ids.npy", ids)
    folder = architectures.save(name, tmp_path / name)
    outputs = ("layer_outputs", "attn_out", "mlp_out", "mlp_input", "attn_weights", "q", "k", "v")
    dump(
        DumpConfig(
            init=folder,
            tokens=tmp_path / "ids.npy",
            outputs=outputs,
            output=tmp_path / "a.safetensors",
            verify=3,  # raises if anything differs
            quiet=True,
        )
    )
    found = load_file(tmp_path / "a.safetensors")
    assert not found["layer_outputs"][1, :, 5:].any()
    weights = found["attn_weights"][1, :, :, :5, :5].sum(dim=-1)
    assert (weights <= 1 + 1e-5).all()
    if name != "gpt_oss":  # its sinks take their share
        assert torch.allclose(weights, torch.ones(()), atol=1e-5)


@pytest.mark.parametrize(
    "model", sorted(path.name for path in LENS_MODELS.iterdir() if path.is_dir())
)
def test_analyses_work_on_dumps_of_golden_folders(model, tmp_path, capsys):
    expected = np.load(LENS_MODELS / model / "expected.npz")
    np.save(tmp_path / "ids.npy", expected["input_ids"])
    options = {"init": str(LENS_MODELS / model), "tokens": tmp_path / "ids.npy"}
    found = run(tmp_path, outputs=("embeddings", "layer_outputs", "rmsnorm_gammas"), **options)
    states = np.concatenate(
        [found["embeddings"].numpy()[None], found["layer_outputs"].numpy().swapaxes(0, 1)]
    )
    assert np.abs(states - expected["resid"]).max() < 1e-5
    path = tmp_path / "activations.safetensors"
    capsys.readouterr()
    options = {"key": "layer_outputs", "threshold": 2.0, "layer_fraction": False}
    outliers(OutliersConfig(input=path, json_output=True, **options))
    report = json.loads(capsys.readouterr().out)
    assert report["outlier_occurrences"] == int((np.abs(expected["resid"][1:]) >= 2.0).sum())
    gammas(GammasConfig(input=path, json_output=True))
    norms = {each["module"] for each in json.loads(capsys.readouterr().out)["modules"]}
    assert norms == {key.removeprefix("rmsnorm_gammas/") for key in found if "gammas" in key}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"init": "demo://2048", "prompt": ("hi",)}, UsageError, "boards"),
        ({"init": "demo://2048", "full_logits": True}, UsageError, "full-logits"),
        ({"indices": "rows.npy"}, UsageError, "reads text"),
        ({"init": str(LENS_MODELS / "gpt2"), "prompt": ("hi",)}, ModelError, "no tokenizer"),
        ({"init": str(LENS_MODELS / "gpt2")}, UsageError, "--prompt"),
        ({"prompt": ("the " * 300,)}, CaptureError, "--max-tokens"),
        ({"prompt": ("hi",), "outputs": ("attn_scores",)}, CaptureError, "attn_weights"),
        ({"prompt": ("hi",), "outputs": ("head_logits",)}, CaptureError, "no site"),
    ],
)
def test_bad_input_is_refused(options, error, says, tmp_path):
    with pytest.raises(error, match=says):
        run(tmp_path, **options)
