"""The whole making of the assets, on a very small scale, and what the model learns from."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actcli.demo.game2048 import move_all, pack, unpack
from actcli.demo.learn2048 import TEMPERATURE, Learner, Recipe, lessons_on, symmetries
from actcli.demo.play2048 import positions_from, random_player, seeds_from
from actcli.demo.teacher2048 import judge
from actcli.demo.train2048 import CONFIG, Clock, Work, train, write_assets
from actcli.models.encoder2048 import Encoder2048


@pytest.fixture(scope="module")
def boards():
    player = random_player(np.random.default_rng(0))
    return positions_from(player, seeds_G=seeds_from(0, count=4), n_positions=200)


def test_targets_are_the_softmax_of_the_legal_values(boards):
    lessons, opinion = lessons_on(boards), judge(boards)
    for target, values, legal in zip(lessons.targets, opinion.values, opinion.legal, strict=True):
        odds = [np.exp((values[m] - values.max()) / TEMPERATURE) * legal[m] for m in range(4)]
        assert target.tolist() == pytest.approx([odd / sum(odds) for odd in odds], abs=1e-6)


def test_boards_after_a_mirrored_move_are_the_mirrored_boards(boards):
    lessons = lessons_on(boards)
    cells, moves = (symmetry[1].numpy() for symmetry in symmetries())
    of_mirrored = unpack(move_all(pack(unpack(boards)[:, cells])).boards)
    assert (of_mirrored == lessons.after.numpy()[:, moves][:, :, cells]).all()


def test_batches_hold_mirrored_boards_with_all_that_belongs_to_them(boards):
    learner = Learner(Encoder2048(CONFIG), recipe=Recipe(), n_steps=1, seed=0)
    (batch,) = learner._batches(lessons_on(boards), n_batches=1)
    shown = pack(batch.tokens.numpy().astype(np.uint8))
    afresh = lessons_on(shown)
    assert not np.isin(shown, boards).all()
    assert torch.equal(batch.after, afresh.after.long())
    assert batch.targets.numpy() == pytest.approx(afresh.targets.numpy(), abs=1e-5)


def test_finished_games_teach_nothing(boards):
    stuck = pack(np.array([[1, 2, 1, 2, 2, 1, 2, 1] * 2], dtype=np.uint8))
    assert len(lessons_on(np.concatenate([boards, stuck])).tokens) == len(boards)


def test_the_rate_of_the_gammas_is_higher_and_all_falls_to_zero():
    recipe = Recipe()
    learner = Learner(Encoder2048(CONFIG), recipe=recipe, n_steps=100, seed=0)
    factors = [learner._rate_at(step) for step in range(101)]
    assert max(factors) == pytest.approx(1.0, abs=0.01)
    assert factors[0] < 0.5
    assert factors[100] == pytest.approx(0)
    others, gammas = learner.optimizer.param_groups
    assert gammas["initial_lr"] == recipe.gamma_rate_factor * others["initial_lr"]
    assert all(weight.dim() == 1 and (weight == 1).all() for weight in gammas["params"])


def test_training_is_the_same_twice_and_writes_what_it_trained(tmp_path):
    work = Work(
        n_parallel=4, n_teacher_positions=64, n_rounds=1, n_round_positions=16,
        n_first_steps=2, n_round_steps=1,
    )  # fmt: skip
    first, second = (train(seed=3, work=work, clock=Clock()).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = Encoder2048(CONFIG)
    model.load_state_dict(first, strict=True)
    write_assets(tmp_path, model=model, held_out=np.zeros(3), card="card")
    written = load_file(tmp_path / "2048" / "model.safetensors")
    assert all(torch.equal(first[name], written[name]) for name in first)


def test_a_trial_scales_the_training_only():
    trial, full = Work().scaled(0.1), Work()
    assert trial.n_steps == pytest.approx(full.n_steps / 10)
    assert trial.n_held_out_rows == full.n_held_out_rows
