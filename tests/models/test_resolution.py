"""Resolution must not depend on the dtype, on the number of layers, or on sizes that coincide."""

import json
import shutil

import pytest
import torch

from actcli.models import load_model
from actcli.models.source import LoadOptions
from tests.models import architectures
from tests.models.architectures import ALL
from tests.models.reading import LAYER_SITES
from tests.models.test_transformer import LACKS

HALF = [(name, dtype) for name in ALL for dtype in ("bf16", "fp16")]


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_half_precision_has_the_same_sites(adapter_of, name, dtype):
    full, half = adapter_of(name), adapter_of(name, dtype)
    assert half.is_causal == full.is_causal
    assert half.n_kv_heads == full.n_kv_heads
    for layer in range(full.n_layers):
        assert half.blocks[layer].kind == full.blocks[layer].kind
        assert places(half, layer) == places(full, layer)
    head = half.net.get_output_embeddings().weight
    assert head.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def places(adapter, layer):
    points = {each: adapter.layer_points(each, layer) for each in LAYER_SITES}
    return {name: (point.module, point.side, point.item) for name, point in points.items() if point}


def test_additions_that_drown_in_bfloat16_are_found(folder_of, tmp_path):
    """The stream is so large that one addition is less than its rounding."""
    folder = shutil.copytree(folder_of("granite"), tmp_path / "large")
    config = json.loads((folder / "config.json").read_text())
    config["embedding_multiplier"] = 1200.0
    (folder / "config.json").write_text(json.dumps(config))
    adapter = load_model(str(folder), options=LoadOptions(dtype="bf16"))
    for block in adapter.blocks:
        assert block.points["attn_out"].module == "self_attn"
        assert block.points["mlp_out"].module == "mlp"
        assert block.points["attn_out"].view.keywords == {"factor": 0.22}


@pytest.mark.parametrize("name", ALL)
def test_one_layer_is_enough(tmp_path, name):
    config = ALL[name]()
    config.num_hidden_layers = 1
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == 3:
            setattr(config, key, value[:1])
    architectures.save_config(name, config, tmp_path)
    adapter = load_model(str(tmp_path))
    assert adapter.n_layers == len(adapter.blocks) == 1
    lacks = {site for site in LAYER_SITES if adapter.layer_points(site, 0) is None}
    assert lacks == LACKS.get(name, {"attn_norm"} if name == "modernbert" else set())


def test_as_many_experts_as_layers(tmp_path):
    config = ALL["mixtral"]()
    config.num_local_experts = config.num_hidden_layers
    architectures.save_config("mixtral", config, tmp_path)
    adapter = load_model(str(tmp_path))
    assert adapter.layer_points("layer_outputs", 2).module == "model.layers.2"


@pytest.mark.parametrize("factor", [0.22, 1.4 / 40**0.5])
def test_factors_of_additions(tmp_path, factor):
    config = ALL["granite"]()
    config.residual_multiplier = factor
    architectures.save_config("granite", config, tmp_path)
    for block in load_model(str(tmp_path)).blocks:
        for site in ("attn_out", "mlp_out"):
            found = block.points[site].view.keywords["factor"]
            assert found == pytest.approx(factor, rel=1e-6)
    assert load_model(str(tmp_path)).blocks[0].kind == "pre-norm"
