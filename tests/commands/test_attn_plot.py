"""`attn-plot` as users run it: files, numbers, and every bad input."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from actcli.commands.attn_plot import AttnPlotConfig, attn_plot
from actcli.commands.dump import DumpConfig, dump
from actcli.errors import ActcliError, DumpError, ModelError, UsageError
from tests.golden import DATA, DUMPS, MODELS

GOLDEN_DUMP = DUMPS / "d_sink_gqa_fp32.safetensors"
MODEL = MODELS / "d_sink_gqa"


def config(tmp_path, **options):
    defaults = {
        "input": GOLDEN_DUMP,
        "init": str(MODEL),
        "output_dir": tmp_path / "out",
        "quiet": True,
    }
    return AttnPlotConfig(**defaults | options)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_of_the_existing_program(tmp_path, capsys):
    attn_plot(config(tmp_path, heads="0,4", n_boards=1))
    assert np.random.default_rng(0).choice(6, 1, replace=False) == 5  # the existing program's draw
    stems = ["head_00", "head_04", "head_avg"]
    files = [f"board_5/{stem}{end}" for stem in stems for end in (".png", "_sink.png")]
    assert names(tmp_path / "out") == ["board_5/board.txt", *files]
    assert f"Wrote attention visualizations to {tmp_path / 'out'}" in capsys.readouterr().out


def test_json_and_csv_hold_the_numbers_of_the_heads(tmp_path, capsys):
    path = tmp_path / "heads.csv"
    attn_plot(
        config(tmp_path, layer="all", samples="3,0", pictures=False, output=path, json_output=True)
    )
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == [3, 0]
    assert [each["layer"] for each in report["heads"]] == [1 + i // 8 for i in range(40)]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["entropy_bits"]) for row in rows] == [
        each["entropy_bits"] for each in report["heads"]
    ]
    assert max(each["sink_mass"] for each in report["heads"]) > 0.1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layer", "files"),
    [
        ("2", ["layer_02_heads.png"]),
        ("1,3-5", ["layers_heads.png"]),
        ("all", ["layers_heads.png"]),
        ("-1", ["layer_05_heads.png"]),
    ],
)
def test_grids(layer, files, tmp_path):
    attn_plot(config(tmp_path, layer=layer, samples="2", grid=True))
    assert names(tmp_path / "out" / "board_2") == ["board.txt", *files]


def test_the_page_is_written(tmp_path):
    attn_plot(config(tmp_path, samples="0", pictures=False, html=tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org/", "")


def test_weights_in_the_dump_need_no_model(tmp_path):
    path = tmp_path / "a.npz"
    dump(
        DumpConfig(
            init=str(MODEL),
            dataset=str(DATA / "steps_single"),
            n_samples=3,
            outputs="attn_weights",
            output=path,
            device="cpu",
            quiet=True,
        )
    )
    attn_plot(config(tmp_path, input=path, init=None, samples="1", grid=True))
    attn_plot(config(tmp_path, input=path, samples="1", grid=True))
    with pytest.raises(DumpError, match="other weights"):
        attn_plot(config(tmp_path, input=path, init=str(MODELS / "a_ev_mha"), samples="1"))
    assert names(tmp_path / "out") == ["board_1/board.txt", "board_1/layer_01_heads.png"]


def test_the_model_of_the_dump_is_found_from_another_folder(tmp_path, monkeypatch):
    """The dump has the path as it was typed; the manifest knows the whole one."""
    shutil.copytree(MODEL, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    dump(
        DumpConfig(
            init="runs/mine",
            dataset=str(DATA / "steps_single"),
            n_samples=3,
            outputs="attn_norm",
            device="cpu",
            quiet=True,
        )
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    dumped = tmp_path / "activations.safetensors"
    attn_plot(config(tmp_path, input=dumped, init=None, samples="0", grid=True))
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(ModelError, match="there is no model at 'runs/mine'"):
        attn_plot(config(tmp_path, input=dumped, init=None, samples="0"))


def test_half_precision_inputs_say_what_they_lost(tmp_path, capsys):
    path = DUMPS / "d_bf16.safetensors"
    attn_plot(config(tmp_path, input=path, samples="0", grid=True, quiet=False))
    assert "recomputed weights carry its rounding" in capsys.readouterr().err


def rewritten(path, *, without=(), metadata=None):
    tensors = {key: each for key, each in load_file(GOLDEN_DUMP).items() if key not in without}
    if metadata is None:
        with safe_open(GOLDEN_DUMP, framework="pt") as file:
            metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)
    return path


BAD_OPTIONS = {
    "layer 0": ({"layer": "0"}, UsageError, "layers 1 to 5"),
    "layer beyond": ({"layer": "6"}, UsageError, "layers 1 to 5"),
    "head out of range": ({"heads": "8"}, UsageError, "head 8 was asked for"),
    "sample out of range": ({"samples": "6"}, UsageError, "sample 6 was asked for"),
    "no dump": ({"input": "nowhere"}, DumpError, "there is no dump nowhere"),
    "model gone": ({"init": "nowhere"}, ModelError, "there is no model"),
    "other shape": ({"init": str(MODELS / "a_ev_mha")}, DumpError, "holds 5 layers of 32"),
}


@pytest.mark.parametrize(("options", "kind", "says"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_input_is_refused(options, kind, says, tmp_path):
    with pytest.raises(kind, match=says):
        attn_plot(config(tmp_path, **options))
    assert not (tmp_path / "out").exists()


def test_dumps_that_lack_something_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(DumpError, match="neither 'attn_weights' nor 'attn_norm'"):
        attn_plot(config(tmp_path, input=rewritten(path, without=("attn_norm",))))
    with pytest.raises(DumpError, match="no tensor 'boards'"):
        attn_plot(config(tmp_path, input=rewritten(path, without=("boards",))))
    with pytest.raises(UsageError, match="does not name its model: give --init"):
        attn_plot(config(tmp_path, input=rewritten(path, metadata={"seed": "1"}), init=None))


def test_targets_are_checked_before_work(tmp_path):
    (tmp_path / "heads.csv").write_text("precious")
    with pytest.raises(DumpError, match="--force"):
        attn_plot(config(tmp_path, output=tmp_path / "heads.csv", input="nowhere"))
    assert (tmp_path / "heads.csv").read_text() == "precious"
    with pytest.raises(ValidationError, match=r"csv or \.json"):
        config(tmp_path, output="heads.txt")
    with pytest.raises(ValidationError, match="expected indices and ranges"):
        config(tmp_path, layer="first")
    (tmp_path / "file").write_text("")
    with pytest.raises(ActcliError, match="cannot make the folder"):
        attn_plot(config(tmp_path, output_dir=tmp_path / "file" / "out", samples="0"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ActcliError, match="permission denied"):
        attn_plot(config(tmp_path, samples="0"))


@pytest.mark.parametrize("model", ["b_ev_gqa", "d_sink_gqa"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_stored_weights_of_half_precision(model, dtype, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    options = {"outputs": "attn_weights", "dtype": dtype, "n_samples": 40, "output": path}
    init, dataset = str(MODELS / model), str(DATA / "steps_single")
    dump(DumpConfig(init=init, dataset=dataset, device="cpu", quiet=True, **options))
    capsys.readouterr()
    attn_plot(
        config(
            tmp_path,
            input=path,
            init=None,
            layer="all",
            n_boards=40,
            pictures=False,
            json_output=True,
        )
    )
    heads = json.loads(capsys.readouterr().out)["heads"]
    has_sinks = max(each["sink_mass"] for each in heads) > 0
    assert has_sinks == (model == "d_sink_gqa")


MISFITS = {
    "weights of three axes": {"attn_weights": (6, 16, 16), "boards": (6, 16)},
    "other tokens": {"attn_weights": (6, 2, 4, 9, 9), "boards": (6, 16)},
    "fewer rows": {"attn_norm": (5, 2, 16, 8), "boards": (6, 16)},
    "inputs of three axes": {"attn_norm": (6, 16, 8), "boards": (6, 16)},
    "no square": {"attn_norm": (6, 2, 8, 8), "boards": (6, 8)},
    "no samples": {"attn_norm": (0, 2, 16, 8), "boards": (0, 16)},
}


@pytest.mark.parametrize("shapes", MISFITS.values(), ids=MISFITS.keys())
def test_dumps_whose_tensors_do_not_fit_together_are_refused(shapes, tmp_path):
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    tensors["boards"] = tensors["boards"].to(torch.uint8)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(DumpError, match=r"expected|square|no samples"):
        attn_plot(config(tmp_path, input=tmp_path / "a.safetensors"))


def test_heads_and_average_are_chosen_in_grids_too(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda self, text, **_: shown.append(text)
    )
    attn_plot(config(tmp_path, samples="0", heads="0,4", avg=False, grid=True))
    assert shown == ["Head 0", "Head 4"]
