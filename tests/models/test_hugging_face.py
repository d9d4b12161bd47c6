"""Folders as the package transformers writes them: loaded, planned for, or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actcli.errors import ModelError
from actcli.models import load_model
from actcli.models.source import LoadOptions
from tests.models import architectures
from tests.models.architectures import ALL
from tests.models.reading import LAYER_SITES, read, run_model, tokens_for

LAST = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def llama(folder_of, tmp_path):
    """A copy of a small Llama, to be damaged."""
    return Path(shutil.copytree(folder_of("llama"), tmp_path / "llama"))


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refuse(folder, says, **options):
    weights = options.pop("weights", True)
    with pytest.raises(ModelError, match=says) as caught:
        load_model(str(folder), weights=weights, options=LoadOptions(**options))
    assert "\n" not in str(caught.value)


def test_missing_weights_are_named(llama):
    edit_weights(llama, lambda tensors: tensors.pop(LAST))
    refuse(llama, f"lack 1 that the model needs: {LAST}$")


def test_many_missing_weights_are_counted(llama):
    edit_config(llama, num_hidden_layers=5)
    refuse(llama, r"lack 18 that the model needs: model\.layers\.3\..*, \.\.\.$")


def test_weights_of_another_shape_are_named(llama):
    edit_config(llama, vocab_size=202)
    refuse(llama, r"do not fit config\.json, 2 of them: lm_head\.weight is \[101, 48\], expected")


def test_a_configuration_alone_is_refused_for_a_run(llama):
    (llama / "model.safetensors").unlink()
    refuse(llama, r"has a configuration and no weights: expected model\.safetensors or ")
    assert load_model(str(llama), weights=False).n_layers == 3


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_damaged_weights_are_refused(llama, damage):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if damage == "cut" else bytes(64))
    refuse(llama, "cannot load the model in .*header")


@pytest.mark.parametrize("weights", [True, False])
def test_unknown_types_are_refused(llama, weights):
    edit_config(llama, model_type="holonet")
    refuse(llama, "cannot read .*config.json: .*`holonet`", weights=weights)


def test_fields_of_the_wrong_type_are_refused(llama):
    edit_config(llama, num_attention_heads="six")
    refuse(llama, "cannot read .*num_attention_heads.* expected int, got str")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2},
        {"model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "image_size": 16},
    ],
    ids=lambda config: config["model_type"],
)
def test_what_is_no_language_transformer_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    refuse(tmp_path, "is no transformer that reads tokens", weights=False)


def test_what_does_not_run_on_tokens_alone_is_refused(tmp_path):
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 8, "num_layers": 2, "num_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", **sizes}))
    refuse(tmp_path, "does not run on plain token ids", weights=False)


CODE = """
import transformers
open({marker!r}, "w").close()
class Config(transformers.LlamaConfig):
    model_type = "holonet"
class Model(transformers.LlamaForCausalLM):
    config_class = Config
"""


def test_code_of_the_folder_runs_only_when_trusted(llama, tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "code-ran"
    (llama / "code_of_it.py").write_text(CODE.format(marker=str(marker)))
    named = {"AutoConfig": "code_of_it.Config", "AutoModelForCausalLM": "code_of_it.Model"}
    edit_config(llama, model_type="holonet", auto_map=named)
    refuse(llama, "brings its own Python code, .*--trust-remote-code")
    refuse(llama, "brings its own Python code, .*--trust-remote-code", weights=False)
    assert not marker.exists()
    for weights in (True, False):
        options = LoadOptions(trust_remote_code=True)
        adapter = load_model(str(llama), weights=weights, options=options)
        assert type(adapter.net).__name__ == "Model"
    assert marker.exists()


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
        (torch.float32, "fp16", torch.float16),
        (torch.float32, "bf16", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_dtype_as_stored_or_as_asked(tmp_path, stored, asked, expected, weights):
    import copy

    copy.deepcopy(architectures.build("llama")).to(stored).save_pretrained(tmp_path)
    adapter = load_model(str(tmp_path), weights=weights, options=LoadOptions(dtype=asked))
    assert {each.dtype for each in adapter.net.parameters()} == {expected}


def test_the_device_map_of_accelerate(folder_of, adapter_of):
    adapter = load_model(folder_of("llama"), options=LoadOptions(device_map="auto"))
    sites, tokens = ["layer_outputs", "attn_weights"], tokens_for()
    found, expected = (read(each, tokens, sites) for each in (adapter, adapter_of("llama")))
    for site in sites:
        torch.testing.assert_close(found[site][2], expected[site][2])
    refuse(folder_of("llama"), "device_map.*'auto'", device_map="everywhere")


def test_weights_in_many_files(tmp_path, adapter_of):
    architectures.build("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    adapter, tokens = load_model(str(tmp_path)), tokens_for()
    assert adapter.files.weights.name == "model.safetensors.index.json"
    found, expected = (
        run_model(each.net, tokens).logits for each in (adapter, adapter_of("llama"))
    )
    torch.testing.assert_close(found, expected)
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    refuse(tmp_path, r"cannot load the model in .*model-00002-of-")


def test_weights_in_the_older_format(tmp_path, folder_of, adapter_of):
    shutil.copy(Path(folder_of("llama"), "config.json"), tmp_path)
    torch.save(architectures.build("llama").state_dict(), tmp_path / "pytorch_model.bin")
    adapter, tokens = load_model(str(tmp_path)), tokens_for()
    expected = run_model(adapter_of("llama").net, tokens).logits
    torch.testing.assert_close(run_model(adapter.net, tokens).logits, expected)


def where(adapter, site, layer):
    """All of a hook point that can be compared."""
    point = adapter.layer_points(site, layer)
    if point is None:
        return None
    view = getattr(point.view, "func", point.view)
    given = getattr(point.view, "keywords", {})
    return (
        point.module,
        point.side,
        point.item,
        view.__name__,
        {key: value for key, value in given.items() if not callable(value)},
    )


@pytest.mark.parametrize("name", ALL)
def test_a_planned_model_has_the_sites_of_the_real_one(folder_of, adapter_of, name):
    real, planned = adapter_of(name), load_model(folder_of(name), weights=False)
    assert planned.device.type == "meta"
    for layer in range(real.n_layers):
        for site in LAYER_SITES:
            assert where(planned, site, layer) == where(real, site, layer), site
    for site in ("embeddings", "final_hidden", "logits", "logits_top", "logits_top_ids"):
        mine, theirs = planned.point(site), real.point(site)
        assert (mine and mine[:2]) == (theirs and theirs[:2])
    for each in ("n_layers", "n_heads", "n_kv_heads", "d_model", "max_tokens", "vocab_size"):
        assert getattr(planned, each) == getattr(real, each)
    assert (planned.is_causal, planned.n_bytes) == (real.is_causal, real.n_bytes)
    shapes = [{key: g.shape for key, g in each.norm_gammas().items()} for each in (planned, real)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])


def test_planning_leaves_the_random_numbers_of_the_caller(folder_of):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(folder_of("llama"), weights=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma", lambda norm: 1 + norm.weight),
        ("llama", lambda norm: norm.weight),
        ("gpt_neox", lambda norm: norm.weight),
    ],
)
def test_gammas_are_what_norms_multiply_by(adapter_of, name, expected):
    adapter = adapter_of(name)
    gammas = adapter.norm_gammas()
    norms = {n: m for n, m in adapter.net.named_modules() if "norm" in type(m).__name__.lower()}
    assert list(gammas) == list(norms)
    assert len(gammas) == 2 * adapter.n_layers + 1
    for path, gain in gammas.items():
        torch.testing.assert_close(gain, expected(norms[path]).detach())


@pytest.fixture
def hub(folder_of, tmp_path, monkeypatch):
    """A hub that holds one repository; notes what it was asked for."""
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(repo=repo, **options)
        shutil.copytree(folder_of("llama"), tmp_path / "snapshot" / "sub", dirs_exist_ok=True)
        shutil.copytree(folder_of("llama"), tmp_path / "snapshot", dirs_exist_ok=True)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


WANTED = [
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    *("model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "spiece.model"),
]
NOT_WANTED = ["optimizer.pt", "modeling_x.py", "tf_model.h5", "README.md", "pytorch_model.bin"]


def test_what_is_fetched_from_a_hub(hub):
    from huggingface_hub.utils import filter_repo_objects

    adapter = load_model("hf://org/repo@v2")
    assert adapter.n_layers == 3
    assert (hub["repo"], hub["revision"]) == ("org/repo", "v2")
    patterns = hub["allow_patterns"]
    fetched = list(filter_repo_objects(WANTED + NOT_WANTED, allow_patterns=patterns))
    assert fetched == WANTED
    load_model("hf://org/repo/sub", options=LoadOptions(trust_remote_code=True, revision="main"))
    assert hub["revision"] == "main"
    assert {"sub/*.py", "sub/tokenizer*", "sub/config.json"} <= set(hub["allow_patterns"])


def test_older_weights_are_fetched_where_there_are_no_others(folder_of, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(_repo, **options):
        asked.append(options["allow_patterns"])
        shutil.copy(Path(folder_of("llama"), "config.json"), tmp_path)
        if "pytorch_model*.bin" in options["allow_patterns"]:
            torch.save(architectures.build("llama").state_dict(), tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_model("hf://org/repo").files.weights.name == "pytorch_model.bin"
    assert len(asked) == 2


def test_two_revisions_are_refused(hub):
    load_model("hf://org/repo@v2", options=LoadOptions(revision="v2"))
    with pytest.raises(ModelError, match="names a revision, --revision v3 another one"):
        load_model("hf://org/repo@v2", options=LoadOptions(revision="v3"))
