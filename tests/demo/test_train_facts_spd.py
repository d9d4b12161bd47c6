"""How the built-in decomposition learns, and how it is written."""

import pytest
import torch

from actcli.demo.spd import Sizes
from actcli.demo.train_facts_spd import Recipe, load_target, train
from actcli.demo.write_spd import read_run, write_run


@pytest.fixture(scope="module")
def target():
    return load_target()


@pytest.fixture(scope="module")
def model(target):
    return target[0]


@pytest.fixture(scope="module")
def tokenizer(target):
    return target[1]


FEWER = Sizes(n_q=128, n_k=64, n_hidden=2)


def short(n_steps):
    return Recipe(n_steps=n_steps, batch_size=2, n_tokens=16, learning_rate=4e-3, power=(1.0, 1.0))


def test_training_lowers_the_loss(model, tokenizer):
    _, losses = train(model, tokenizer, sizes=FEWER, recipe=short(40), seed=3)
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_training_repeats_itself(model, tokenizer):
    components, losses = train(model, tokenizer, sizes=FEWER, recipe=short(4), seed=3)
    again, same_losses = train(model, tokenizer, sizes=FEWER, recipe=short(4), seed=3)
    assert losses == same_losses
    for name, each in components.items():
        assert all(map(torch.equal, each.parameters(), again[name].parameters()))
    _, others = train(model, tokenizer, sizes=FEWER, recipe=short(1), seed=4)
    assert others[0] != losses[0]


def test_a_written_run_comes_back_in_half_precision(model, tokenizer, tmp_path):
    components, _ = train(model, tokenizer, sizes=FEWER, recipe=short(1), seed=3)
    fields = {"seed": 3, "n_steps": 1, "batch_size": 2, "n_tokens": 16}
    (tmp_path / "model_9.pth").write_bytes(b"of an older run")
    write_run(tmp_path, components, sizes=FEWER, fields=fields)
    assert {path.name for path in tmp_path.iterdir()} == {"model_1.pth", "final_config.yaml"}
    read = read_run(tmp_path)
    assert list(read) == list(components)
    for name, each in components.items():
        for stored, value in zip(read[name].parameters(), each.parameters(), strict=True):
            assert torch.equal(stored, value.half().float())
