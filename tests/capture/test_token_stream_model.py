"""The tokens of a model that runs: against the plain model on each sample alone."""

import copy

import numpy as np
import pytest
import torch

from actcli.capture.token_rules import TokenRules
from actcli.capture.token_stream import open_dumped_tokens, open_model_tokens
from actcli.capture.token_stream_model import find_place
from actcli.commands.dump import DumpConfig, dump
from actcli.errors import CaptureError, UsageError
from actcli.models import load_model
from actcli.samples.token_file import open_token_file
from tests.capture.helpers import board_samples, make_adapter
from tests.models import architectures

LENGTHS = [5, 17, 1, 9, 9, 12, 2, 16]


def write_ids(folder):
    rng = np.random.default_rng(0)
    ids = np.full((len(LENGTHS), max(LENGTHS)), -1)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = rng.integers(3, architectures.VOCAB, length)
    np.save(folder / "ids.npy", ids)
    return folder / "ids.npy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama")
    architectures.save("llama", made / "llama")
    write_ids(made)
    return made


@pytest.fixture(scope="module")
def adapter(folder):
    return load_model(str(folder / "llama"))


@pytest.fixture
def samples(folder):
    return open_token_file(folder / "ids.npy")


def read(stream):
    batches = [
        batch._replace(acts={key: acts.clone() for key, acts in batch.acts.items()})
        for batch in stream.batches()
    ]
    acts = {key: torch.cat([batch.acts[key] for batch in batches]) for key in stream.places}
    places = np.concatenate([np.stack([b.samples_N, b.positions_N], 1) for b in batches])
    return acts, places, np.concatenate([b.ids_N for b in batches]), len(batches)


def alone(adapter, samples, module, *, side="output"):
    """What a module gives for each sample alone, by a hook of this test."""
    found = []

    def note(_module, args, output=None):
        value = args[0] if output is None else output
        found.append(value[0] if isinstance(value, tuple) else value)

    target = adapter.net.get_submodule(module)
    hook = target.register_forward_pre_hook if side == "input" else target.register_forward_hook
    handle = hook(note)
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            ids = samples.batch(range(row, row + 1)).stored["token_ids"][:, :length]
            adapter.net(input_ids=torch.from_numpy(ids).long())
    handle.remove()
    return [each[0] for each in found]


@pytest.mark.parametrize("batch_tokens", [1, 20, 40, 1000])
def test_sites_of_several_layers(adapter, samples, batch_tokens):
    places = ["mlp_input.0", "mlp_out.-1", "mlp_input.2", "final_hidden"]
    rules = TokenRules(exclude_first=True)
    stream = open_model_tokens(
        adapter, samples, places=places, rules=rules, batch_tokens=batch_tokens
    )
    acts, found, ids, _count = read(stream)
    expected = [(n, t) for n, length in enumerate(LENGTHS) for t in range(1, length)]
    np.testing.assert_array_equal(found, expected)
    modules = {
        "mlp_input.0": "model.layers.0.post_attention_layernorm",
        "mlp_out.-1": "model.layers.2.mlp",
        "mlp_input.2": "model.layers.2.post_attention_layernorm",
        "final_hidden": "model.norm",
    }
    for place, module in modules.items():
        values = alone(adapter, samples, module)
        assert acts[place].dtype == torch.float32
        torch.testing.assert_close(
            acts[place], torch.stack([values[n][t] for n, t in expected]), rtol=1e-4, atol=1e-5
        )
    all_ids = samples.batch(range(len(LENGTHS))).stored["token_ids"]
    np.testing.assert_array_equal(ids, [all_ids[n, t] for n, t in expected])
    assert stream.token_set().n_excluded == len(LENGTHS)


def test_a_dump_of_the_model_counts_the_same_tokens(adapter, samples, folder, tmp_path):
    dump(
        DumpConfig(
            init=str(folder / "llama"),
            tokens=folder / "ids.npy",
            outputs="mlp_input,mlp_out",
            layers="1-2",
            device="cpu",
            quiet=True,
            output=tmp_path / "d.safetensors",
        )
    )
    rules = TokenRules(max_norm_multiple=1.2, most_tokens=40)
    places = ["mlp_input.1", "mlp_out.2"]
    live = open_model_tokens(adapter, samples, places=places, rules=rules, batch_tokens=30)
    stored = open_dumped_tokens(tmp_path / "d.safetensors", keys=places, rules=rules)
    (live_acts, live_places, *_), (acts, found, *_) = read(live), read(stored)
    np.testing.assert_array_equal(live_places, found)
    for place in places:
        torch.testing.assert_close(live_acts[place], acts[place], rtol=1e-4, atol=1e-5)
    assert live.token_set().sha256 == stored.token_set().sha256
    assert stored.model == live.model
    np.testing.assert_array_equal(live.ids_of(3), stored.ids_of(3))


def test_the_size_of_batches_does_not_matter(adapter, samples, monkeypatch):
    monkeypatch.setattr("actcli.capture.token_stream_count.MEDIAN_TOKENS", 20)
    rules = TokenRules(exclude_first=True, max_norm_multiple=1.1, most_tokens=33)
    sets = set()
    for batch_tokens in (1, 25, 60, 10_000):
        stream = open_model_tokens(
            adapter, samples, places=["mlp_input.1"], rules=rules, batch_tokens=batch_tokens
        )
        read(stream)
        found = stream.token_set()
        sets.add((found.sha256, found.n_tokens, found.n_excluded, found.n_samples))
    assert len(sets) == 1


def test_it_may_be_read_again_and_left_early(adapter, samples):
    stream = open_model_tokens(
        adapter, samples, places=["mlp_out.1"], rules=TokenRules(), batch_tokens=20
    )
    next(stream.batches())
    first = read(stream)
    second = read(stream)
    assert torch.equal(first[0]["mlp_out.1"], second[0]["mlp_out.1"])
    assert stream.token_set().n_tokens == sum(LENGTHS)


def test_half_precision_is_not_rounded_again(samples, folder, tmp_path):
    half = copy.deepcopy(architectures.build("llama")).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    adapter = load_model(str(tmp_path / "half"))
    assert next(adapter.net.parameters()).dtype == torch.bfloat16
    stream = open_model_tokens(
        adapter,
        samples,
        places=["mlp_input_normed.1", "mlp_input.1"],
        rules=TokenRules(),
        batch_tokens=1,
    )
    acts, *_rest = read(stream)
    norm_input = torch.cat(
        alone(adapter, samples, "model.layers.1.post_attention_layernorm", side="input")
    ).float()
    eps = adapter.net.config.rms_norm_eps
    expected = norm_input * (norm_input.square().mean(-1, keepdim=True) + eps).rsqrt()
    torch.testing.assert_close(acts["mlp_input_normed.1"], expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(expected, expected.bfloat16().float())


def test_values_that_are_not_finite_are_named(samples, folder):
    adapter = load_model(str(folder / "llama"))
    with torch.no_grad():
        adapter.net.model.layers[1].mlp.down_proj.weight[3] = torch.nan
    stream = open_model_tokens(
        adapter, samples, places=["mlp_out.1"], rules=TokenRules(), batch_tokens=20
    )
    with pytest.raises(
        CaptureError, match=r"'mlp_out\.1' is nan at sample 0, position 0, dimension 3"
    ):
        list(stream.batches())


def test_boards_have_no_ids(tmp_path):
    adapter = make_adapter(tmp_path / "model")
    stream = open_model_tokens(
        adapter, board_samples(5), places=["mlp_input.1"], rules=TokenRules(), batch_tokens=32
    )
    batches = list(stream.batches())
    assert sum(len(batch.samples_N) for batch in batches) == 5 * 16
    assert batches[0].ids_N is None
    assert stream.ids_of(0) is None


def test_places():
    assert find_place("mlp_input.-1", 6) == ("mlp_input", 5)
    assert find_place("module:model.layers.3", 6) == ("module:model.layers.3", None)
    assert find_place("embeddings", 6) == ("embeddings", None)
    for place, words in {
        "mlp_input": "which layer is missing; expected mlp_input.0 to mlp_input.5",
        "mlp_input.6": "there is no layer 6",
        "embeddings.1": "does not repeat by layer",
        "mlp_inptu.1": "did you mean 'mlp_input'",
        "rmsnorm_gammas": "part of the weights",
    }.items():
        with pytest.raises(UsageError, match=words):
            find_place(place, 6)


def test_sites_that_are_not_one_vector_per_token(adapter, samples):
    for place in ("q.1", "attn_weights.0"):
        with pytest.raises(UsageError, match="one vector per token"):
            open_model_tokens(adapter, samples, places=[place], rules=TokenRules(), batch_tokens=9)


def test_known_widths(adapter, samples):
    stream = open_model_tokens(
        adapter, samples, places=["mlp_out.1"], rules=TokenRules(), batch_tokens=9
    )
    widths = stream.known_widths()
    assert widths["mlp_input"] == widths["final_hidden"] == 48
    assert widths["mlp_act"] == 64
