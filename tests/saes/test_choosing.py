"""Which of the dictionaries in a folder is opened."""

import shutil

import numpy as np
import pytest

from actcli.errors import UsageError
from actcli.saes import OpenOptions
from actcli.saes.choosing import Candidate, choose
from actcli.saes.gemma_scope import average_l0s
from tests.saes.cases import CKPT, GOLDEN, opened

PARAMS = next((CKPT / "gemma_scope" / "gemma-scope-2b-pt-transcoders").rglob("params.npz"))


@pytest.fixture
def scope(tmp_path):
    """A repository of Gemma Scope with two layers, two widths and several L0."""
    root = tmp_path / "gemma-scope-2b-pt-transcoders"
    for layer, width, l0 in [
        (4, "16k", 9), (4, "16k", 52), (4, "16k", 120), (12, "16k", 30), (12, "65k", 30),
        (12, "65k", 70),
    ]:  # fmt: skip
        folder = root / f"layer_{layer}" / f"width_{width}" / f"average_l0_{l0}"
        folder.mkdir(parents=True)
        shutil.copy(PARAMS, folder)
    return root


def l0_of(dictionary):
    return dictionary.origin.path.parent.name


def test_layer_and_l0_choose(scope):
    with pytest.raises(
        UsageError, match=r"several dictionaries: layer_4/.*choose with --layer and --l0"
    ):
        opened(scope)
    with pytest.raises(UsageError, match="choose with --l0, or give the path of one"):
        opened(scope, layer=4)
    assert l0_of(opened(scope, layer=4, l0=60)) == "average_l0_52"
    assert l0_of(opened(scope / "layer_4", l0=1000)) == "average_l0_120"
    assert l0_of(opened(scope / "layer_4", l0=0)) == "average_l0_9"
    with pytest.raises(UsageError, match="no dictionary of layer 5; it has: 4, 12"):
        opened(scope, layer=5)


def test_widths_are_not_chosen_silently(scope):
    message = "layer_12/width_16k/average_l0_30, layer_12/width_65k/average_l0_70; .*give the path"
    with pytest.raises(UsageError, match=message):
        opened(scope, layer=12, l0=60)
    assert l0_of(opened(scope / "layer_12" / "width_65k", l0=60)) == "average_l0_70"


def test_average_l0s(scope):
    found = average_l0s(scope, layer=4)
    assert [l0 for l0, _path in found] == [9, 52, 120]
    assert all((path / "params.npz").is_file() for _l0, path in found)
    assert [l0 for l0, _path in average_l0s(scope / "layer_12", layer=12)] == [30, 30, 70]
    assert average_l0s(scope, layer=3) == []


def test_a_run_with_folders_below_is_itself(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(GOLDEN["upstream_new_individual_sizes"], run)
    older = run / "checkpoints" / "older"
    shutil.copytree(GOLDEN["upstream_new_cumulative_sizes"], older)
    assert opened(run).prefixes == (8, 20, 40, 68, 80)
    assert opened(older).prefixes == (10, 20, 40, 60, 80)


def test_many_are_listed_shortened():
    names = [f"run_{i}/ae.pt" for i in range(40)]
    with pytest.raises(
        UsageError, match=r"run_0, run_1, run_2, .*run_11, \.\.\. \(40 in all\); give"
    ):
        choose(names, ["ae.pt"], OpenOptions(), where="zoo")


def test_named_weights_win_over_other_files():
    names = ["optimizer.pt", "layers.3/sae.safetensors", "state.pt", "layers.3/cfg.json"]
    assert choose(names, ["sae.safetensors"], OpenOptions(), where="x") == names[1]


def test_files_of_layers_in_one_folder():
    names = [f"layer_{i}.safetensors" for i in (0, 2, 11)]
    with pytest.raises(UsageError, match=r"layer_0\.safetensors, layer_2\.safetensors, layer_11"):
        choose(names, ["layer_*.safetensors"], OpenOptions(), where="x")
    assert choose(names, ["layer_*.safetensors"], OpenOptions(layer=11), where="x") == names[2]


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("layers.8.mlp/sae.safetensors", 8),
        ("layer_20/width_16k/average_l0_71/params.npz", 20),
        ("layer_12_width_16k_l0_medium/params.safetensors", 12),
        ("resid_post_layer_3/trainer_5/ae.pt", 3),
        ("layer7.sae.pt", 7),
        ("Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors", 15),
        ("width_16k/params.npz", None),
        ("trainer_5/ae.pt", None),
    ],
)
def test_layers_of_paths(path, layer):
    assert Candidate(path).layer == layer


def test_sparsify_root_with_several_layers(tmp_path):
    for layer in ("layers.8", "layers.9"):
        shutil.copytree(CKPT / "sparsify" / "topk_sae" / "layers.8", tmp_path / layer)
    with pytest.raises(UsageError, match=r"layers\.8, layers\.9; choose with --layer"):
        opened(tmp_path)
    found = opened(tmp_path, layer=9)
    assert found.origin.reads.layer == 9
    assert np.isfinite(found.W_enc_ID.numpy()).all()
