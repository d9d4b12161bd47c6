"""The built-in transcoders: how they learn, and how they are written."""

import json
import math

import numpy as np
import pytest
import torch

from actcli.demo.train_facts_transcoders import make_assets
from actcli.demo.transcoders import (
    Firing,
    Transcoder,
    auxiliary_error,
    folded,
    initial_transcoder,
    scales_of,
    spread_rows,
)
from actcli.demo.transcoders_jumprelu import JumpReluLearner, jump
from actcli.demo.transcoders_matryoshka import (
    MatryoshkaLearner,
    batch_top_k,
    moved_threshold,
    prefix_errors,
)
from actcli.demo.transcoders_step import DeadRule
from actcli.demo.transcoders_tokens import capture_tokens
from actcli.demo.transcoders_train import Recipe, train_jumprelu, train_matryoshka

WIDTH = 128
SHORT = Recipe(
    n_steps=60,
    batch_size=256,
    n_sentences=150,
    n_initial=1_500,
    warmup_steps=10,
    prefix_sizes=(16, 48),
    target_l0=6.0,
)


@pytest.fixture(scope="module")
def tokens():
    return capture_tokens(seed=4, n_sentences=SHORT.n_sentences)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A short training's files, written over those of another one."""
    folder = tmp_path_factory.mktemp("transcoders")
    old = folder / "facts-gemma-scope" / "layer_4" / "width_0k" / "average_l0_99"
    old.mkdir(parents=True)
    (old / "params.npz").write_bytes(b"of an older run")
    make_assets(folder, seed=4, recipe=SHORT, n_measured=40)
    return folder


def params_of(folder):
    [path] = folder.rglob("params.npz")
    with np.load(path) as arrays:
        return path, {key: arrays[key] for key in arrays}


def checkpoint_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("train", [train_matryoshka, train_jumprelu])
def test_training_lowers_the_loss_and_repeats_itself(train, tokens):
    trained = train(tokens, recipe=SHORT, seed=3)
    assert len(trained.losses) == SHORT.n_steps
    assert sum(trained.losses[-5:]) < 0.6 * sum(trained.losses[:5])
    assert train(tokens, recipe=SHORT._replace(n_steps=3), seed=4).losses != trained.losses[:3]
    again = train(tokens, recipe=SHORT, seed=3)
    assert again.losses == trained.losses
    assert all(map(torch.equal, again.weights, trained.weights))


def test_a_run_folder_is_written_in_its_format(made):
    folder = made / "facts-matryoshka"
    checkpoint = checkpoint_of(folder)
    shapes = {key: tuple(value.shape) for key, value in checkpoint.items()}
    assert shapes == {
        "W_enc": (WIDTH, 64),
        "b_enc": (64,),
        "W_dec": (64, WIDTH),
        "b_dec": (WIDTH,),
        "threshold": (),
    }
    assert {value.dtype for value in checkpoint.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["prefix_sizes"] == [16, 48]
    written = json.loads((folder / "training_log.json").read_text())
    assert written["step"] == SHORT.n_steps
    assert 0 < written["metrics"]["l0_norm"] <= SHORT.k


def test_gemma_scope_is_written_in_its_format(made):
    path, arrays = params_of(made / "facts-gemma-scope")
    assert {key: value.shape for key, value in arrays.items()} == {
        "W_enc": (WIDTH, 64),
        "W_dec": (64, WIDTH),
        "b_enc": (64,),
        "b_dec": (WIDTH,),
        "threshold": (64,),
    }
    assert {value.dtype for value in arrays.values()} == {np.dtype(np.float32)}
    assert path.parts[-4:-2] == ("layer_4", "width_0k")
    assert json.loads((path.parent / "config.json").read_text()) == {
        "model_name": "demo://facts",
        "hf_hook_point_in": "blocks.4.ln2.hook_normalized",
        "hf_hook_point_out": "blocks.4.hook_mlp_out",
    }
    card = (made / "facts-gemma-scope" / "README.md").read_text()
    [line] = [line for line in card.splitlines() if line.startswith("| Mean L0")]
    mean_l0 = float(line.split("|")[2])
    assert path.parent.name == f"average_l0_{round(mean_l0)}"


@pytest.mark.parametrize("train", [train_matryoshka, train_jumprelu])
def test_folded_weights_are_the_transcoder_on_scaled_activations(train, tokens):
    recipe = SHORT._replace(n_steps=5)
    trained = train(tokens, recipe=recipe, seed=3)
    site = "mlp_input" if train is train_matryoshka else "mlp_input_normed"
    torch.manual_seed(3)
    drawn = torch.randperm(len(tokens))[: recipe.n_initial]
    x, y = (tokens.sites[key].float() for key in (site, "mlp_out"))
    scales = scales_of(x[drawn], y[drawn])
    transcoder = trained.learner.transcoder
    h = transcoder.hidden(x / scales.x)
    acts = torch.where(h > trained.learner.threshold, h, 0)
    predicted = transcoder.decode(acts) * scales.y
    assert torch.allclose(trained.weights.acts(x), acts, atol=2e-4)
    stored = trained.weights.acts(x) @ trained.weights.W_dec_DO + trained.weights.b_dec_O
    assert torch.allclose(stored, predicted, atol=2e-4)


def test_the_threshold_follows_the_smallest_activation_kept():
    torch.manual_seed(0)
    threshold, by_hand = torch.zeros(()), 0.0
    for _ in range(7):
        acts = torch.rand(5, 6) * (torch.rand(5, 6) > 0.5)
        smallest = min(value for row in acts.tolist() for value in row if value > 0)
        by_hand = 0.99 * by_hand + 0.01 * smallest
        threshold = moved_threshold(threshold, acts)
    assert threshold.item() == pytest.approx(by_hand, rel=1e-5)
    assert moved_threshold(threshold, torch.zeros(5, 6)) is threshold


def test_a_batch_keeps_its_largest():
    torch.manual_seed(0)
    hidden = torch.randn(8, 20)
    kept = batch_top_k(hidden, k=3)
    cut = sorted(hidden.flatten().tolist(), reverse=True)[3 * 8 - 1]
    assert torch.equal(kept, torch.where(hidden >= cut, hidden, 0))
    few = batch_top_k(hidden - 2, k=3)
    assert torch.equal(few, (hidden - 2).relu())


def test_every_prefix_predicts_alone():
    torch.manual_seed(0)
    transcoder = Transcoder(*(torch.randn(shape) for shape in ((4, 6), (6,), (6, 5), (5,))))
    acts, y = torch.rand(7, 6), torch.randn(7, 5)
    errors, residual = prefix_errors(transcoder, acts, y, prefix_sizes=(1, 2, 3))
    for error, end in zip(errors, (1, 3, 6), strict=True):
        predicted = acts[:, :end] @ transcoder.W_dec_DO[:end] + transcoder.b_dec_O
        assert error.item() == pytest.approx((y - predicted).square().mean().item(), rel=1e-5)
    assert torch.allclose(residual, y - transcoder.decode(acts), atol=1e-5)


def test_the_jumps_slopes_are_the_pseudo_derivatives():
    hidden = torch.tensor([[0.9, 1.02, 1.2], [0.98, -3.0, 2.06]], requires_grad=True)
    threshold = torch.tensor([1.0, 1.0, 2.0], requires_grad=True)
    acts, is_active = jump(hidden, threshold, bandwidth=0.2)
    assert is_active.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert torch.equal(acts, hidden * is_active)
    pulls = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    steps = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    (acts * pulls + is_active * steps).sum().backward()
    by_hand = [0.0, 0.0, 0.0]
    for n in range(2):
        for d in range(3):
            if abs(hidden[n, d].item() - threshold[d].item()) < 0.1:
                slope = pulls[n, d].item() * threshold[d].item() + steps[n, d].item()
                by_hand[d] -= slope / 0.2
    assert sum(value != 0 for value in by_hand) == 3
    assert threshold.grad.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert torch.equal(hidden.grad, pulls * is_active)


def test_the_losses_are_those_of_their_docstrings(tokens):
    x, y = tokens.sites["mlp_input_normed"][:90].float(), tokens.sites["mlp_out"][:90].float()
    torch.manual_seed(1)
    transcoder = initial_transcoder(x, y, n_features=12, share=0.2, threshold=0.4)
    dead = DeadRule(n_batches=1)
    learner = JumpReluLearner(
        transcoder, target_l0=2, sparsity=3.0, bandwidth=0.1, threshold=0.4, dead=dead
    )
    step = learner.loss(x, y)
    h = transcoder.hidden(x)
    acts = torch.where(h > learner.threshold, h, 0)
    l0 = (acts > 0).sum().item() / 90
    mse = (y - transcoder.decode(acts)).square().mean().item()
    assert step.l0 == pytest.approx(l0)
    assert step.l2 == pytest.approx(mse, rel=1e-4)
    assert step.total.item() == pytest.approx(mse + 3 * (l0 / 2 - 1) ** 2, rel=1e-4)
    assert step.fvu == pytest.approx(mse * 128 / y.var(dim=0, unbiased=False).sum().item())
    nested = MatryoshkaLearner(transcoder, k=2, prefix_sizes=(4, 8), dead=dead)
    step, acts = nested.loss(x, y), batch_top_k(h, k=2)
    cuts = [acts[:, :end] @ transcoder.W_dec_DO[:end] + transcoder.b_dec_O for end in (4, 12)]
    errors = [(y - cut).square().mean().item() for cut in cuts]
    assert step.total.item() == pytest.approx(sum(errors) / 2, rel=1e-4)
    assert nested.threshold.item() == pytest.approx(0.01 * acts[acts > 0].min().item(), rel=1e-4)


def test_dead_features_predict_what_the_others_leave():
    torch.manual_seed(0)
    transcoder = Transcoder(*(torch.randn(shape) for shape in ((4, 6), (6,), (6, 5), (5,))))
    hidden, residual = torch.randn(7, 6), torch.randn(7, 5)
    is_dead = torch.tensor([True, False, True, True, False, False])
    found = auxiliary_error(transcoder, hidden, residual, is_dead_D=is_dead, k=2)
    errors = []
    for n in range(7):
        best = sorted([0, 2, 3], key=lambda d: -hidden[n, d].item())[:2]
        predicted = sum(max(0.0, hidden[n, d].item()) * transcoder.W_dec_DO[d] for d in best)
        errors.append((predicted - residual[n]).square().mean().item())
    assert found.item() == pytest.approx(sum(errors) / 7, rel=1e-5)
    none = auxiliary_error(transcoder, hidden, residual, is_dead_D=is_dead & False, k=2)
    assert none.item() == 0


def test_silent_batches_are_counted():
    firing = Firing(3, n_batches_to_dead=2)
    for active in ([1.0, 0, 0], [0, 2.0, 0], [0, 3.0, 0]):
        firing.add(torch.tensor([[0.0, 0, 0], active]))
    assert firing.n_silent_D.tolist() == [2, 0, 3]
    assert firing.is_dead_D.tolist() == [True, False, True]


def test_features_start_apart_and_active_on_a_share_of_the_tokens(tokens):
    x, y = tokens.sites["mlp_input"].float(), tokens.sites["mlp_out"].float()
    torch.manual_seed(0)
    drawn = spread_rows(x, count=100)
    assert len({tuple(row) for row in x[drawn].tolist()}) == 100
    transcoder = initial_transcoder(x, y, n_features=40, share=0.05, threshold=0.3)
    share = (transcoder.hidden(x) > 0.3).double().mean(dim=0)
    assert share.max() < 0.15  # tokens may be the same
    assert share.median().item() == pytest.approx(0.05, abs=0.002)
    assert torch.allclose(transcoder.W_dec_DO.norm(dim=1), torch.ones(40), atol=1e-5)


def test_the_decoder_keeps_its_norms():
    torch.manual_seed(0)
    transcoder = Transcoder(*(torch.randn(shape) for shape in ((4, 6), (6,), (6, 5), (5,))))
    transcoder.normalise()
    assert torch.allclose(transcoder.W_dec_DO.norm(dim=1), torch.ones(6))
    transcoder.W_dec_DO.grad = torch.randn(6, 5)
    transcoder.flatten_gradient()
    along = (transcoder.W_dec_DO.grad * transcoder.W_dec_DO).sum(dim=1)
    assert along.abs().max() < 1e-5
    assert transcoder.W_dec_DO.grad.norm() > 1


def test_folding_scales_reading_and_writing():
    transcoder = Transcoder(torch.ones(2, 3), torch.ones(3), torch.ones(3, 4), torch.ones(4))
    weights = folded(
        transcoder,
        threshold=torch.tensor(0.5),
        scales=scales_of(torch.tensor([[3.0, -3.0]]), torch.tensor([[1.0, 5.0], [3.0, 1.0]])),
    )
    assert weights.W_enc_HD.unique().item() == pytest.approx(1 / 3)
    y_scale = math.sqrt((1 + 1 + 4 + 4) / 4)
    assert weights.W_dec_DO.unique().item() == pytest.approx(y_scale)
    assert weights.b_dec_O.unique().item() == pytest.approx(y_scale)
    assert weights.b_enc_D.unique().item() == 1
