"""hf:// paths: only what is needed is downloaded."""

import shutil

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from actcli.errors import ModelError, UsageError
from tests.saes.cases import CKPT, opened

SCOPE = CKPT / "gemma_scope" / "gemma-scope-2b-pt-transcoders"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository, what was asked for, and a cache that holds it."""
    source, cache, asked = tmp_path / "source", tmp_path / "cache", {}
    shutil.copytree(SCOPE, source / "layer_8", dirs_exist_ok=True)
    shutil.move(source / "layer_8" / "layer_8" / "width_16k", source / "layer_8" / "width_16k")
    shutil.copytree(source / "layer_8", source / "layer_9")
    shutil.copytree(CKPT / "sae_lens" / "standard", source / "saes" / "standard")
    (source / "README.md").write_text("x")
    cache.mkdir()

    def list_repo_files(_api, repo, *, revision):
        asked.update(repo=repo, revision=revision)
        return [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]

    def snapshot_download(repo, *, revision, allow_patterns, local_files_only):
        asked.update(patterns=allow_patterns, local=local_files_only)
        for name in allow_patterns or ():
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, cache / name)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", list_repo_files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_one_folder_of_many(hub):
    found = opened("hf://google/some-transcoders@abc", layer=9)
    assert hub["patterns"] == ["layer_9/width_16k/average_l0_52/params.npz"]
    assert (hub["repo"], hub["revision"]) == ("google/some-transcoders", "abc")
    assert found.n_features == 80
    assert found.origin.reads.layer == 9


def test_a_folder_with_its_configuration(hub):
    assert opened("hf://org/repo/saes/standard").origin.format == "saelens"
    assert sorted(hub["patterns"]) == [
        "saes/standard/cfg.json", "saes/standard/sae_weights.safetensors"
    ]  # fmt: skip


def test_a_file(hub):
    path = "layer_8/width_16k/average_l0_52/params.npz"
    opened(f"hf://org/repo/{path}", revision="v2")
    assert (hub["patterns"], hub["revision"]) == ([path], "v2")


def test_several(hub):
    with pytest.raises(UsageError, match="hf://org/repo holds several dictionaries: layer_8/"):
        opened("hf://org/repo")
    assert "patterns" not in hub


def test_nothing_at_that_path(hub):
    with pytest.raises(ModelError, match="the repository has nothing at 'layer_3'"):
        opened("hf://org/repo/layer_3")
    with pytest.raises(ModelError, match="names a revision, --revision v3 another one"):
        opened("hf://org/repo@v2", revision="v3")
    with pytest.raises(ModelError, match="is not of the form hf://"):
        opened("hf://org")


def test_without_network_the_cache_is_read(hub, monkeypatch):
    opened("hf://org/repo/saes/standard")

    def offline(*_args, **_options):
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", offline)
    assert opened("hf://org/repo/saes/standard").origin.format == "saelens"
    assert hub["local"] is True
    with pytest.raises(ModelError, match="there is no dictionary at 'hf://org/repo/layer_8'"):
        opened("hf://org/repo/layer_8")


def test_a_lost_connection_reads_the_cache(hub, monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    opened("hf://org/repo/saes/standard")
    lost = next(each for each in HfHubHTTPError.__mro__[1:] if issubclass(each, Exception))

    def no_route(*_args, **_options):
        raise lost("name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", no_route)
    assert opened("hf://org/repo/saes/standard").n_features == 80


def test_a_repository_that_is_not_there(monkeypatch):
    from huggingface_hub.errors import HFValidationError

    def missing(*_args, **_options):
        raise HFValidationError("no such repository")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", missing)
    with pytest.raises(ModelError, match="cannot fetch hf://org/repo: no such repository"):
        opened("hf://org/repo")
