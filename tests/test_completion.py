import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actcli import completion
from actcli.reports.lens_table import STREAMS
from actcli.sites import SITES


@pytest.fixture
def dump(tmp_path):
    tensors = {
        "attn_norm": torch.zeros(2, 3, 4, 5),
        "final_hidden": torch.zeros(2, 4, 5, dtype=torch.bfloat16),
        "attn_sinks": torch.zeros(6, 8),
        "boards": torch.zeros(2, 16, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "acts.safetensors")
    return tmp_path / "acts.safetensors"


def test_keys_of_a_dump_come_with_dtype_and_shape(dump):
    assert dict(completion.dump_keys({"input": str(dump)}, "")) == {
        "attn_norm": "F32 [2, 3, 4, 5]",
        "final_hidden": "BF16 [2, 4, 5]",
        "attn_sinks": "F32 [6, 8]",
        "boards": "U8 [2, 16]",
    }


def test_keys_of_an_npz_dump(tmp_path):
    np.savez(tmp_path / "acts.npz", attn_norm=np.zeros((1, 2, 3, 4), np.float16))
    assert list(completion.dump_keys({"input": tmp_path / "acts.npz"}, "")) == [
        ("attn_norm", "F16 [1, 2, 3, 4]")
    ]


def test_a_pt_dump_offers_nothing_for_it_would_take_torch(tmp_path):
    torch.save({"attn_norm": torch.zeros(1)}, tmp_path / "acts.pt")
    assert list(completion.dump_keys({"input": tmp_path / "acts.pt"}, "")) == []


@pytest.mark.parametrize(
    ("key", "layers"),
    [("attn_norm", ["0", "1", "2"]), ("final_hidden", []), ("attn_sinks", list("012345"))],
)
def test_layers_are_those_of_the_key(dump, key, layers):
    assert list(completion.dump_layers({"input": dump, "key": key}, "")) == layers


def test_layers_are_those_that_the_dump_took_of_the_model(tmp_path):
    path, metadata = tmp_path / "some.safetensors", {"manifest": json.dumps({"layers": [1, 4, 5]})}
    save_file({"mlp_input": torch.zeros(1, 3, 2, 2)}, path, metadata=metadata)
    assert list(completion.dump_layers({"input": path, "key": "mlp_input"}, "")) == ["1", "4", "5"]
    assert list(completion.dump_layers({"input": path, "key": "mlp_input"}, "4-")) == ["4-5"]


def test_an_unfinished_range_goes_on_upwards(dump):
    words = {"input": dump, "key": "attn_sinks"}
    assert list(completion.dump_layers(words, "3-")) == ["3-4", "3-5"]
    assert list(completion.dump_layers(words, "5-")) == []


@pytest.mark.parametrize("init", ["", "config.json", "model.safetensors"])
def test_layers_of_a_model_are_those_of_its_config(tmp_path, init):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    assert list(completion.model_layers({"init": str(tmp_path / init)}, "")) == ["0", "1"]


def test_sites_come_with_their_meaning():
    assert [name for name, _ in completion.output_sites({}, "")] == [each.name for each in SITES]
    assert dict(completion.output_sites({}, ""))["pooled"].startswith("Mean of final_hidden")


@pytest.mark.parametrize(
    "config", [{"n_layer": 3}, {"num_layers": 3}, {"text_config": {"num_hidden_layers": 3}}]
)
def test_layers_of_other_architectures_have_other_names(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert list(completion.model_layers({"init": str(tmp_path)}, "")) == ["0", "1", "2"]


def test_streams_are_those_that_the_lens_takes():
    offered = [name for name, _meaning in completion.lens_streams({}, "")]
    assert tuple(offered) == STREAMS


def test_formats_of_dictionaries_are_those_that_there_are():
    from actcli.saes import FORMATS

    assert completion.dictionary_formats({}, "") == tuple(each.FORMAT for each in FORMATS)


def test_places_of_dictionaries_are_the_tensors_of_the_dump_by_layer(dump):
    found = [key for key, _help in completion.dictionary_places({"from_dump": str(dump)}, "")]
    assert sorted(found) == [
        "attn_norm.0", "attn_norm.1", "attn_norm.2", "attn_sinks", "boards", "final_hidden",
    ]  # fmt: skip


def test_without_a_dump_places_are_sites_of_layers():
    found = [key for key, _help in completion.dictionary_places({"from_dump": None}, "")]
    assert {"mlp_input.", "mlp_out.", "layer_outputs."} <= set(found)
    assert "final_hidden." not in found
