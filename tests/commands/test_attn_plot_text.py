"""`attn-plot` on dumps of texts: numbers of the model run alone, words, files, and bad input."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from actcli.commands.attn_plot import AttnPlotConfig, attn_plot
from actcli.commands.dump import DumpConfig, dump
from actcli.commands.gammas import GammasConfig, gammas
from actcli.errors import DumpError, UsageError
from tests.analysis.test_attention_text import NAMES, slow_numbers
from tests.models.architectures import ALL, build, save
from tests.samples.made_tokenizers import words

LENGTHS = (11, 4, 1, 7)


def write_ids(path, *, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.full((len(LENGTHS), max(LENGTHS)), -1)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = rng.integers(3, 100, length)
    np.save(path, ids)
    return ids


@pytest.fixture
def make(tmp_path):
    """A dump of random token ids from a tiny model of an architecture."""
    write_ids(tmp_path / "ids.npy")

    def dumped(name, *, init=None, **options):
        init = init or save(name, tmp_path / name)
        path = tmp_path / f"{name}.safetensors"
        given = {"tokens": tmp_path / "ids.npy", "output": path, "force": True} | options
        dump(DumpConfig(init=init, device="cpu", quiet=True, **given))
        return path

    return dumped


def plot(path, tmp_path, **options):
    defaults = {"input": path, "output_dir": tmp_path / "out", "quiet": True}
    attn_plot(AttnPlotConfig(**defaults | options))


def heads_of(path, tmp_path, capsys, **options):
    capsys.readouterr()
    plot(path, tmp_path, layer="all", pictures=False, json_output=True, **options)
    return json.loads(capsys.readouterr().out)["heads"]


def weights_alone(name, ids_T):
    """(L, A, T, S) as the package transformers gives them for a sample alone."""
    net = build(name)
    net.set_attn_implementation("eager")
    with torch.no_grad():
        tokens = torch.from_numpy(ids_T[None])
        given = net(tokens, output_attentions=True).attentions
    return torch.stack([each[0] for each in given]).float().numpy()


NETS = ("gpt2", "llama", "gemma2", "gpt_oss", "olmo2", "bert", "roberta", "modernbert")


@pytest.mark.parametrize("name", NETS)
def test_numbers_are_those_of_each_sample_run_alone(name, make, tmp_path, capsys):
    assert name in ALL
    path, ids = make(name, outputs="attn_weights"), np.load(tmp_path / "ids.npy")
    found = heads_of(path, tmp_path, capsys, samples="0-3")
    alone = [weights_alone(name, ids[row, :length]) for row, length in enumerate(LENGTHS)]
    assert len(found) == alone[0].shape[0] * alone[0].shape[1]
    for each in found:
        weights = [of_sample[each["layer"] - 1, each["head"]] for of_sample in alone]
        expected = slow_numbers(weights, has_sinks=name == "gpt_oss")
        assert {key: each[key] for key in NAMES} == pytest.approx(expected, abs=2e-5)
    assert set(found[0]) == {"layer", "head", *NAMES}, "what only boards have is left out"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_oss", "gpt_neox", "cohere"])
def test_weights_recomputed_from_attn_norm_equal_stored_ones(name, make, tmp_path, capsys):
    stored = heads_of(make(name, outputs="attn_weights"), tmp_path, capsys, samples="0-3")
    computed = heads_of(make(name, outputs="attn_norm"), tmp_path, capsys, samples="0-3")
    for one, other in zip(stored, computed, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_and_ids_where_there_is_no_tokenizer(make, tmp_path, capsys):
    path, ids = make("llama", outputs="attn_weights"), np.load(tmp_path / "ids.npy")
    capsys.readouterr()
    plot(path, tmp_path, samples="1", heads="0,4", quiet=False)
    assert "no tokenizer in" in capsys.readouterr().err
    plot(path, tmp_path, samples="1", grid=True)
    plot(path, tmp_path, samples="1", grid=True, layer="1,3")
    files = ["head_00.png", "head_04.png", "head_avg.png", "layer_01_heads.png"]
    assert names(tmp_path / "out" / "sample_1") == [*files, "layers_heads.png", "tokens.txt"]
    lines = (tmp_path / "out" / "sample_1" / "tokens.txt").read_text().splitlines()
    assert lines == [f"{i}\t{each}\t#{each}" for i, each in enumerate(ids[1, :4])]


HOSTILE = ["</script><script>alert(1)</script>", "$5", "$6", "日本", "{{data}}", "<!--", r"\\"]


def test_words_of_the_tokenizer_and_a_page_that_they_cannot_break(make, tmp_path, capsys):
    init = save("llama", tmp_path / "llama")
    words(tmp_path / "llama", HOSTILE)
    path = make("llama", init=init, tokens=None, prompt=(" ".join(HOSTILE),), outputs="attn_norm")
    page = tmp_path / "a.html"
    capsys.readouterr()
    plot(path, tmp_path, samples="0", html=page, quiet=False)
    assert "no tokenizer" not in capsys.readouterr().err
    plot(path, tmp_path, samples="0", grid=True, layer="all")
    text = page.read_text()
    assert text.count("</script>") == 2
    assert "alert(1)" not in text.partition('id="data">')[0]
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["tokens"] == [[*HOSTILE[:-1], "\\" * 4]]
    lines = (tmp_path / "out" / "sample_0" / "tokens.txt").read_text().splitlines()
    assert [each.split("\t")[2] for each in lines] == data["tokens"][0]


def test_a_dump_of_another_model_is_refused(make, tmp_path):
    path = make("llama", outputs="attn_norm,layer_outputs")
    other = save("mistral", tmp_path / "other")
    with pytest.raises(DumpError, match="made from other weights"):
        plot(path, tmp_path, init=other)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(path), bare)
    plot(bare, tmp_path, init=str(tmp_path / "llama"), samples="1,0", grid=True)
    for name in ("mistral", "bert"):
        with pytest.raises(DumpError, match="does not belong to"):
            plot(bare, tmp_path, init=save(name, tmp_path / "other"), samples="1")
    tensors = load_file(path)
    tensors["token_ids"][1, 2] += 1
    save_file(tensors, bare)
    with pytest.raises(DumpError, match="does not belong to"):
        plot(bare, tmp_path, init=str(tmp_path / "llama"), samples="1")
    with pytest.raises(UsageError, match="give --init"):
        plot(bare, tmp_path)


def test_a_dump_made_in_bf16_belongs_to_its_model(make, tmp_path):
    path = make("llama", outputs="attn_norm", model_dtype="bf16")
    plot(path, tmp_path, samples="0", grid=True)
    plot(path, tmp_path, samples="0", grid=True, init=str(tmp_path / "llama"))


def test_dumps_that_lack_something_are_refused(make, tmp_path):
    path = make("bert", outputs="layer_outputs")
    with pytest.raises(DumpError, match="as in BERT and OLMo-2"):
        plot(path, tmp_path)
    path = make("bert", outputs="attn_weights")
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del tensors["token_ids"]
    save_file(tensors, tmp_path / "bare.safetensors", metadata=metadata)
    with pytest.raises(DumpError, match="no tensor 'boards' and no 'token_ids'"):
        plot(tmp_path / "bare.safetensors", tmp_path)


def test_gammas_of_layer_norms(make, capsys):
    path = make("gpt2", outputs="rmsnorm_gammas")
    capsys.readouterr()
    gammas(GammasConfig(input=path, json_output=True))
    found = json.loads(capsys.readouterr().out)["modules"]
    state = build("gpt2").state_dict()
    assert [each["module"] for each in found] == [
        *(f"transformer.h.{layer}.ln_{norm}" for layer in range(3) for norm in (1, 2)),
        "transformer.ln_f",
    ]
    for each in found:
        assert each["mean"] == pytest.approx(float(state[f"{each['module']}.weight"].mean()))
