"""The built-in decomposition: what is stored, and what it leaves of the model."""

import math
from itertools import islice

import pytest
import torch
import yaml

from actcli.demo.measure_spd import KEPT, measure, run_kept, share_of_capitals
from actcli.demo.spd import (
    Masks,
    Sizes,
    divergence,
    initial_components,
    linear_modules,
    lower_leaky,
    run_masked,
    run_target,
    upper_leaky,
)
from actcli.demo.train_facts_spd import (
    ASSETS,
    Loss,
    Recipe,
    load_target,
    loss_of,
    measured_batches,
    token_rows,
)
from actcli.demo.write_spd import read_run

FOLDER = ASSETS / "facts-spd"
MAX_BYTES = 3_000_000
ALL, ACTIVE, RANDOM = [
    next(kept for kept in KEPT if kept.startswith(word)) for word in ("all", "the active", "as")
]


@pytest.fixture(scope="module")
def target():
    return load_target()


@pytest.fixture(scope="module")
def model(target):
    return target[0]


@pytest.fixture(scope="module")
def tokenizer(target):
    return target[1]


@pytest.fixture(scope="module")
def tensors():
    [path] = FOLDER.glob("model_*.pth")
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def components():
    return read_run(FOLDER)


@pytest.fixture(scope="module")
def ids(tokenizer):
    """Rows of a seed that was neither trained nor measured on."""
    return torch.cat(list(islice(token_rows(tokenizer, recipe=Recipe(), seed=77), 2)))


@pytest.fixture(scope="module")
def card():
    return (FOLDER / "README.md").read_text()


def card_rows(card):
    """The card's table of modules: five numbers for each."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if "_proj` |" in line]
    return {name.strip("`"): [float(value) for value in values] for name, *values in lines}


def importances_by_hand(tensors, name, x):
    """The importance of each component from the stored tensors, one component at a time."""
    dashed = name.replace(".", "-")
    V = tensors[f"_components.{dashed}.V"].double()
    W0, b0, W2, b2 = (
        tensors[f"ci_fn._ci_fns.{dashed}.layers.{key}"].double()
        for key in ("0.W", "0.b", "2.W", "2.b")
    )
    found = []
    for c in range(V.shape[1]):
        hidden = (x.double() @ V[:, c])[..., None] @ W0[c] + b0[c]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        found.append((hidden @ W2[c] + b2[c])[..., 0].clamp(0, 1))
    return torch.stack(found, dim=-1)


def test_what_ships_is_small_and_holds_no_target_weights(tensors):
    files = {path.name for path in FOLDER.iterdir()}
    assert len(files) == 3
    assert {"README.md", "final_config.yaml"} < files
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES
    assert {key.split(".")[0] for key in tensors} == {"_components", "ci_fn"}
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in tensors.values())


def test_the_shapes_are_those_of_the_model(tensors, model):
    sizes = Sizes()
    found = {}
    for layer in range(8):
        for kind, n in (("q", sizes.n_q), ("k", sizes.n_k)):
            module = model.get_submodule(f"model.layers.{layer}.self_attn.{kind}_proj")
            dashed = f"model-layers-{layer}-self_attn-{kind}_proj"
            ci_fn = f"ci_fn._ci_fns.{dashed}.layers"
            found |= {
                f"_components.{dashed}.V": (module.in_features, n),
                f"_components.{dashed}.U": (n, module.out_features),
                f"{ci_fn}.0.W": (n, 1, sizes.n_hidden),
                f"{ci_fn}.0.b": (n, sizes.n_hidden),
                f"{ci_fn}.2.W": (n, sizes.n_hidden, 1),
                f"{ci_fn}.2.b": (n, 1),
            }
    assert {key: tuple(value.shape) for key, value in tensors.items()} == found


def test_the_config_describes_the_run(card):
    config = yaml.safe_load((FOLDER / "final_config.yaml").read_text())
    sizes = Sizes()
    assert (FOLDER / f"model_{config['steps']}.pth").exists()
    assert config["ci_config"] == {"mode": "layerwise", "fn_type": "mlp", "hidden_dims": [4]}
    assert (config["sigmoid_type"], config["sampling"]) == ("leaky_hard", "continuous")
    assert [each["C"] for each in config["module_info"]] == [sizes.n_q, sizes.n_k]
    assert config["pretrained_model_class"] == "transformers.LlamaForCausalLM"
    assert config["pretrained_model_name"] == config["tokenizer_name"] == "demo://facts"
    assert f"| Seed | {config['seed']};" in card


def test_the_delta_is_small_and_as_the_card_says(tensors, model, card):
    rows = card_rows(card)
    assert len(rows) == 16
    for name, row in rows.items():
        dashed = name.replace(".", "-")
        V, U = (tensors[f"_components.{dashed}.{key}"].double() for key in "VU")
        weight = model.get_submodule(name).weight.double()
        delta = ((weight - (V @ U).T).square().sum() / weight.square().sum()).sqrt().item()
        assert delta == pytest.approx(row[1], abs=6e-5)
        assert delta < 0.03


def test_importances_are_those_of_the_stored_tensors(tensors, components, model, ids):
    _, inputs = run_target(model, ids_BT=ids)
    for name, each in components.items():
        found = each.importances(inputs[name])
        by_hand = importances_by_hand(tensors, name, inputs[name])
        assert (found - by_hand).abs().max() < 1e-4
        assert found.min() >= 0
        assert 0.5 < found.max() <= 1


def test_they_are_as_sparse_as_the_card_says(tensors, model, tokenizer, card):
    batches = measured_batches(tokenizer)
    inputs = [run_target(model, ids_BT=ids_BT)[1] for ids_BT in batches[::4]]
    for name, (n_components, _, n_active, total, n_ever) in card_rows(card).items():
        x = torch.cat([run[name] for run in inputs])
        importances = importances_by_hand(tensors, name, x)
        active = importances > 0.01
        assert active.sum(-1).double().mean().item() == pytest.approx(n_active, rel=0.1)
        assert importances.sum(-1).mean().item() == pytest.approx(total, rel=0.1)
        assert active.flatten(0, 1).any(0).sum() <= n_ever <= n_components
        assert n_active < n_components / 8


def test_the_card_tells_the_measured_figures(model, tokenizer, components, card):
    batches = measured_batches(tokenizer)
    figures = measure(model, components, tokenizer=tokenizer, batches=batches)
    assert list(figures.kept) == list(KEPT)
    for kept, found in figures.kept.items():
        [line] = [line for line in card.splitlines() if line.startswith(f"| {kept} |")]
        told = line.split("|")[2:5]
        assert float(told[0]) == pytest.approx(found.divergence, rel=0.03, abs=2e-5)
        assert float(told[1]) == pytest.approx(found.output_error, rel=0.03, abs=2e-5)
        assert float(told[2].strip(" %")) == pytest.approx(100 * found.capitals, abs=0.9)


def test_all_components_are_nearly_the_model(model, components, ids):
    logits, _ = run_target(model, ids_BT=ids)
    whole, error = run_kept(model, components, ids_BT=ids, kept=ALL)
    assert divergence(logits, whole) < 1e-3
    assert error < 1e-3


def test_the_active_components_do_better_than_as_many_others(model, tokenizer, components, ids):
    logits, _ = run_target(model, ids_BT=ids)
    found = {
        kept: divergence(logits, run_kept(model, components, ids_BT=ids, kept=kept)[0]).item()
        for kept in (ACTIVE, RANDOM)
    }
    assert found[ACTIVE] < 0.1 * found[RANDOM]
    shares = [
        share_of_capitals(model, components, tokenizer=tokenizer, kept=kept)
        for kept in (ACTIVE, RANDOM)
    ]
    assert shares[0] > 0.9 > 0.3 > shares[1]


def test_random_choices_are_as_many():
    importances = torch.rand(3, 5, 40, generator=torch.Generator().manual_seed(1)) - 0.7
    chosen, active = KEPT[RANDOM](importances), KEPT[ACTIVE](importances)
    assert torch.equal(active, (importances > 0.01).float())
    assert torch.equal(chosen.sum(-1), active.sum(-1))
    assert not torch.equal(chosen, active)


def test_initial_components_sum_to_the_weights_and_read_evenly(model, ids):
    sizes = Sizes(n_q=140, n_k=66, n_hidden=2)
    _, inputs = run_target(model, ids_BT=ids)
    for name, each in initial_components(model, ids_BT=ids, sizes=sizes).items():
        weight = linear_modules(model)[name].weight
        assert each.delta(weight).norm() < 1e-4 * weight.norm()
        acts = each.activations(inputs[name]).flatten(0, 1)
        assert 0.5 < acts.square().mean().sqrt() < 1.05
        overlaps = each.U_CO @ each.U_CO.T
        off_diagonal = overlaps - overlaps.diagonal().diag()
        assert off_diagonal.abs().max() < 1e-3 * overlaps.max()


def test_masks_of_one_with_the_delta_give_the_model_back(model, components, ids):
    logits, inputs = run_target(model, ids_BT=ids)
    masks = {
        name: Masks(torch.ones_like(each.activations(inputs[name])), 1.0)
        for name, each in components.items()
    }
    masked, error = run_masked(model, ids_BT=ids, components=components, masks=masks)
    assert (masked - logits).abs().max() < 1e-3
    assert error < 1e-8
    after = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(after, logits)


def test_masks_weigh_the_parts_of_a_module(model, components):
    name = "model.layers.3.self_attn.k_proj"
    each, weight = components[name], model.get_submodule(name).weight
    x, mask = torch.randn(1, 2, 128), torch.rand(1, 2, Sizes().n_k)
    got = each.masked(x, output_BTO=x @ weight.T, masks=Masks(mask, 0.25))
    matrices = torch.einsum("hc,co->coh", each.V_HC, each.U_CO)
    for token in range(2):
        whole = torch.einsum("c,coh->oh", mask[0, token], matrices)
        whole = whole + 0.25 * (weight - matrices.sum(0))
        assert torch.allclose(got[0, token], whole @ x[0, token], atol=1e-4)


def test_the_sigmoids_clamp_and_leak():
    raw = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    low, high = lower_leaky(raw), upper_leaky(raw)
    assert low.tolist() == [0.0, 0.5, 1.0]
    assert high.tolist() == pytest.approx([0.0, 0.5, 1.02])
    [low_slope] = torch.autograd.grad(low.sum(), raw)
    [high_slope] = torch.autograd.grad(high.sum(), raw)
    assert low_slope.tolist() == pytest.approx([0.01, 1.0, 0.0])
    assert high_slope.tolist() == pytest.approx([0.0, 1.0, 0.01])


def test_divergence_is_that_of_the_definition():
    target = torch.tensor([[[0.8, 0.2], [0.5, 0.5]]]).log() + 3
    other = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log() - 1
    by_hand = (0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)) / 2
    assert divergence(target, other).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    recipe = Recipe(local=2.0, faithfulness=3.0, minimality=5.0)
    parts = Loss(*(torch.tensor(value) for value in (1.0, 10.0, 100.0, 1000.0)))
    assert parts.total(recipe).item() == 1 + 20 + 300 + 5000


def test_the_parts_are_what_they_are_called(tensors, model, components, ids, card):
    torch.manual_seed(0)
    loss = loss_of(model, components, ids_BT=ids, power=1.0)
    deltas = [row[1] for row in card_rows(card).values()]
    mean_square = sum(delta**2 for delta in deltas) / len(deltas)
    assert loss.faithfulness.item() == pytest.approx(mean_square, rel=0.05)
    _, inputs = run_target(model, ids_BT=ids)
    by_hand = [importances_by_hand(tensors, name, inputs[name]) for name in components]
    total = sum(each.sum(-1).mean().item() for each in by_hand)
    assert total < loss.minimality.item() < 1.1 * total  # more, by the leak above 1
    assert 0 < loss.divergence.item() < 0.05
    assert 0 < loss.local.item() < 0.2
