"""A dump of another model is refused, whatever gives it away."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from actcli.analysis.attention_maps import read_boards
from actcli.capture.belongs import check_belongs
from actcli.commands.dump import DumpConfig, dump
from actcli.errors import DumpError
from actcli.models import load_model
from actcli.samples.boards import GivenBoards
from actcli.store.reader import open_dump
from tests.golden import DATA, DUMPS, MODELS

MODEL = MODELS / "b_ev_gqa"


def check(path, model, row=0):
    with open_dump(path) as found:
        sample = GivenBoards(read_boards(found, [row]))
        check_belongs(found, load_model(str(model)), sample=sample, row=row)


def make_dump(path, **options):
    dump(
        DumpConfig(
            init=str(MODEL),
            dataset=str(DATA / "steps_single"),
            n_samples=4,
            device="cpu",
            quiet=True,
            output=path,
            **{"outputs": "attn_norm,layer_outputs"} | options,
        )
    )
    return path


def changed_model(folder, *, by):
    shutil.copytree(MODEL, folder)
    state = load_file(folder / "model.safetensors")
    state["blocks.1.attn.wq.weight"] += by
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layers", [None, "1,3"])
def test_a_dump_belongs_to_its_model(dtype, layers, tmp_path):
    check(make_dump(tmp_path / "a.pt", dtype=dtype, layers=layers), MODEL, row=2)


@pytest.mark.parametrize("model", ["a_ev_mha", "b_ev_gqa", "d_sink_gqa"])
def test_dumps_of_the_existing_program_belong_to_their_models(model):
    check(DUMPS / f"{model}_fp32.safetensors", MODELS / model, row=5)


def test_the_fingerprint_tells(tmp_path):
    other = changed_model(tmp_path / "m", by=1e-6)
    with pytest.raises(DumpError, match="made from other weights"):
        check(make_dump(tmp_path / "a.safetensors"), other)


def test_the_values_tell_where_there_is_no_fingerprint(tmp_path):
    other = changed_model(tmp_path / "m", by=0.3)
    with pytest.raises(DumpError, match=r"does not belong to .*: attn_norm .* differs"):
        check(DUMPS / "b_ev_gqa_fp32.safetensors", other)


def test_the_shapes_tell(tmp_path):
    with pytest.raises(DumpError, match=r"holds 4 layers of 32 dimensions, the model .* has 6"):
        check(DUMPS / "b_ev_gqa_fp32.safetensors", MODELS / "a_ev_mha")
