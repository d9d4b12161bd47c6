"""Every form of a checkpoint gives the same model; nothing damaged is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from actcli.errors import CaptureError, ModelError
from actcli.models import load_model
from tests.golden import MODELS

GOOD = MODELS / "a_ev_mha"


@pytest.fixture(scope="module")
def state():
    return load_file(GOOD / "model.safetensors")


@pytest.fixture
def config():
    return json.loads((GOOD / "config.json").read_text())


def logits(init):
    adapter = load_model(str(init))
    tokens = torch.arange(32).view(2, 16) % 17
    with torch.inference_mode():
        return adapter.net(tokens)


def folder_with(path, config, **files):
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        stem, suffix = name.rsplit("_", 1)
        target = path / f"{stem.replace('_', '-')}.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(content, target)
    return path


def prefixed(state, prefix):
    return {prefix + name: each for name, each in state.items()}


def other(state):
    """Weights that must not be taken: the same shapes, all zero."""
    return {name: torch.zeros_like(each) for name, each in state.items()}


FORMS = {
    "model.safetensors": lambda s, c: (c, {"model_safetensors": s}),
    "best wins": lambda s, c: (c, {"model_best_safetensors": s, "model_safetensors": other(s)}),
    "final over stable": lambda s, c: (
        c,
        {"model_final_safetensors": s, "model_stable_safetensors": other(s)},
    ),
    "stable": lambda s, c: (c, {"model_stable_safetensors": s}),
    "safetensors over pt": lambda s, c: (
        c,
        {"model_stable_safetensors": s, "model_best_pt": {"model": other(s)}},
    ),
    "pt": lambda s, c: (c, {"model_pt": {"model": s}}),
    "bare state dict": lambda s, c: (c, {"model_pt": s}),
    "pt without config.json": lambda s, c: (
        None,
        {"model_pt": {"model": s, "encoder_config": c}},
    ),
    "bundle config wins": lambda s, c: (
        c | {"num_hidden_layers": 9},
        {"model_pt": {"model": s, "encoder_config": c}},
    ),
    "_orig_mod.": lambda s, c: (c, {"model_safetensors": prefixed(s, "_orig_mod.")}),
    "module.": lambda s, c: (c, {"model_safetensors": prefixed(s, "module.")}),
    "both prefixes": lambda s, c: (c, {"model_safetensors": prefixed(s, "module._orig_mod.")}),
    "inferred from weights": lambda s, c: (
        {k: v for k, v in c.items() if k not in ("head_type", "output_n_bins", "input_vocab_size")},
        {"model_safetensors": s},
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_folder_form_is_the_same_model(form, state, config, tmp_path):
    changed, files = form(state, config)
    folder = folder_with(tmp_path / "model", changed, **files)
    assert torch.equal(logits(folder), logits(GOOD))


@pytest.mark.parametrize("nesting", ["encoder_config", "encoder", "model"])
def test_bundle_files(nesting, state, config, tmp_path):
    if nesting == "encoder_config":
        bundle = {"model": state, "encoder_config": config, "optimizer": None}
    else:
        bundle = {"model": state, "training_config": {nesting: config}}
    torch.save(bundle, tmp_path / "bundle.pt")
    assert torch.equal(logits(tmp_path / "bundle.pt"), logits(GOOD))


def test_bundle_in_the_format_of_old_torch(state, config, tmp_path):
    bundle = {"model": state, "encoder_config": config}
    torch.save(bundle, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(tmp_path / "old.pth"), logits(GOOD))


def test_bare_safetensors_beside_its_config():
    assert torch.equal(logits(GOOD / "model.safetensors"), logits(GOOD))


def test_bf16_weights_are_read_as_float32(state, config, tmp_path):
    halves = {name: each.bfloat16() for name, each in state.items()}
    folder = folder_with(tmp_path / "m", config, model_safetensors=halves)
    wide = {name: each.float() for name, each in halves.items()}
    reference = folder_with(tmp_path / "w", config, model_safetensors=wide)
    assert torch.equal(logits(folder), logits(reference))


def without(state, *names):
    return {name: each for name, each in state.items() if name not in names}


DAMAGE = {
    "no weights": (lambda s, c: (c, {}), "no weights in"),
    "missing tensor": (
        lambda s, c: (c, {"model_safetensors": without(s, "final_ln.weight")}),
        "1 missing: final_ln.weight",
    ),
    "extra layers in the file": (
        lambda s, c: (c | {"num_hidden_layers": 3}, {"model_safetensors": s}),
        "not in the model: blocks.3",
    ),
    "layers missing from the file": (
        lambda s, c: (c | {"num_hidden_layers": 8}, {"model_safetensors": s}),
        "missing: blocks.6",
    ),
    "misshapen": (
        lambda s, c: (c | {"intermediate_size": 40}, {"model_safetensors": s}),
        r"blocks.0.mlp.w_down.weight is \(32, 48\), expected \(32, 40\)",
    ),
    "renamed keys": (
        lambda s, c: (c, {"model_safetensors": prefixed(s, "encoder.")}),
        "not in the model: encoder",
    ),
    "no config": (lambda s, c: (None, {"model_safetensors": s}), "no configuration for"),
    "required field missing": (
        lambda s, c: (
            {k: v for k, v in c.items() if k != "hidden_size"},
            {"model_safetensors": s},
        ),
        "hidden_size: Field required",
    ),
    "bundle without a state": (lambda s, c: (c, {"model_pt": {"step": 3}}), "state dict under"),
}


@pytest.mark.parametrize(("form", "says"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_does_not_fit_is_refused_by_name(form, says, state, config, tmp_path):
    changed, files = form(state, config)
    folder = folder_with(tmp_path / "model", changed, **files)
    with pytest.raises(ModelError, match=says):
        load_model(str(folder))


class NotATensor:
    """Something that only code could unpickle."""


def test_a_pickle_that_needs_code_is_refused(config, tmp_path):
    folder = folder_with(tmp_path / "m", config, model_pt={"model": {}, "x": NotATensor()})
    with pytest.raises(ModelError, match="runs no code"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "text", "truncated"])
def test_damaged_files_are_named(name, content, state, config, tmp_path):
    folder = folder_with(tmp_path / "m", config)
    path = folder / name
    if content is None:
        (save_file if name.endswith("safetensors") else torch.save)(state, path)
        content = path.read_bytes()[:-1000]
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{path} is not a readable"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("init", "says"),
    [
        ("nowhere", "there is no model at 'nowhere'"),
        ("demo://2049", "did you mean 'demo://2048'"),
        ("hf://foo", "hf://org/repo"),
    ],
)
def test_unknown_places(init, says):
    with pytest.raises(ModelError, match=says):
        load_model(init)


def test_a_broken_config_is_named(tmp_path):
    shutil.copytree(GOOD, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not readable JSON"):
        load_model(str(tmp_path / "m"))


def test_hugging_face_folders_come_from_the_cache(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(repo=repo, **options)
        (tmp_path / "sub").mkdir()
        shutil.copytree(GOOD, tmp_path / "sub" / "deep")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert torch.equal(logits("hf://org/repo/sub/deep@v1.2"), logits(GOOD))
    assert (asked["repo"], asked["revision"]) == ("org/repo", "v1.2")
    wanted = {"sub/deep/config.json", "sub/deep/model*.safetensors", "sub/deep/tokenizer*"}
    assert wanted <= set(asked["allow_patterns"])
    assert all(each.startswith("sub/deep/") for each in asked["allow_patterns"])


def test_a_model_without_weights_has_shapes(config, tmp_path):
    folder = folder_with(tmp_path / "m", config)
    adapter = load_model(str(folder), weights=False)
    assert adapter.device.type == "meta"
    assert (adapter.n_layers, adapter.d_model, adapter.n_heads) == (6, 32, 4)


def test_sites_that_the_model_lacks_are_refused_by_name():
    adapter = load_model(str(GOOD))
    with pytest.raises(CaptureError, match=r"no module 'blocks\.0\.mlp\.w_upp'; did you mean"):
        adapter.points("module:blocks.0.mlp.w_upp", (0,))
    assert adapter.parameters("attn_sinks") is None


def test_boards_beyond_the_vocabulary_are_refused():
    adapter = load_model(str(GOOD))
    adapter.check_tokens(n_tokens=16, largest_token=16)
    with pytest.raises(CaptureError, match="token 17"):
        adapter.check_tokens(n_tokens=16, largest_token=17)
    with pytest.raises(CaptureError, match="positions for 16"):
        adapter.check_tokens(n_tokens=17, largest_token=1)
