"""SPD runs: their model, their factors and causal importances, against values of SPD's own code."""

import json

import numpy as np
import pytest
import torch
import transformers

from actcli.decompositions import load_target, open_decomposition, target_of
from actcli.decompositions.factors import sides_of
from actcli.errors import ModelError, UsageError
from actcli.models import load_model
from actcli.models.qk import qk_layer, qk_layers, qk_texts
from actcli.models.source import LoadOptions
from tests.decompositions.cases import (
    CASES,
    GOLDEN_RUNS,
    RUNS,
    config_of,
    exact_components,
    module_inputs,
    opened,
    parts,
    sizes_of,
    state_of,
    write_run,
)
from tests.decompositions.slow_targets import SMALL, SlowTarget, random_target

IDS = [3, 1, 4, 1, 5, 9, 2]


def next_token_logits(adapter, ids):
    with torch.no_grad():
        return adapter.net(input_ids=torch.tensor(ids)[None]).logits[0].double()


def written(folder, sizes, modules, **config):
    """A run of a random target, whose components give the weights exactly."""
    target = random_target(sizes)
    state = {f"target_model.{key}": value for key, value in target.items()}
    config = {"pretrained_model_class": f"spd.models.{sizes['model_type']}"} | config
    return target, write_run(folder, state | exact_components(target, modules), config, sizes)


@pytest.mark.parametrize("run", GOLDEN_RUNS)
@pytest.mark.parametrize(("sample", "query", "layer"), CASES)
def test_golden_activations_importances_and_logits(run, sample, query, layer):
    adapter, decomposition, _layers = opened(run)
    ids, case = parts()["input_ids"][sample], f"{run}/s{sample}_q{query}_l{layer}"
    text = qk_texts(adapter, torch.tensor(ids), [layer])[layer]
    truth = parts()[f"{case}/ground_truth"]
    np.testing.assert_allclose(text.logits_ATS[:, query, : query + 1], truth, rtol=0, atol=1e-5)
    for side, factors in zip("qk", sides_of(decomposition, text.layer), strict=True):
        acts_TC = text.attn_input_TH @ factors.V_HC
        np.testing.assert_allclose(acts_TC, parts()[f"{case}/{side}_acts"], rtol=0, atol=6e-6)
        modules = decomposition.ci_modules(text.layer, side)
        inputs = module_inputs(adapter, modules, ids)
        ci_TC = decomposition.causal_importance(inputs, text.layer, side)
        np.testing.assert_allclose(ci_TC, parts()[f"{case}/{side}_ci"], rtol=0, atol=6e-6)


def test_only_exact_components_give_the_weights():
    gaps = {}
    for run in ("mha_exact", "mha_noisy"):
        _adapter, decomposition, layers = opened(run)
        factors, weight_OH = decomposition.factors(layers[1], "k"), layers[1].k.weight_OH
        assert factors.ids_C == tuple(range(52))
        gap = (factors.V_HC @ factors.U_CO).T - weight_OH
        gaps[run] = float(gap.norm() / weight_OH.norm())
    assert gaps["mha_exact"] < 1e-5
    assert 0.05 < gaps["mha_noisy"] < 0.2


def test_which_modules_importances_read():
    _adapter, layerwise, layers = opened("mha_noisy")
    assert layerwise.ci_modules(layers[2], "k") == ("model.layers.2.self_attn.k_proj",)
    _adapter, whole, layers = opened("gqa_noisy")
    assert len(whole.ci_modules(layers[2], "k")) == 8
    assert whole.layers() == (0, 1, 2, 3)
    assert whole.name == "spd:gqa_noisy"


@pytest.mark.parametrize("run", ["gqa_noisy", "bias_noisy"])
def test_the_model_of_a_golden_run(run):
    target = {
        key.removeprefix("target_model."): value
        for key, value in state_of(run).items()
        if key.startswith("target_model.")
    }
    slow = SlowTarget(target, sizes_of(run)).logits(IDS)
    adapter, _decomposition, _layers = opened(run)
    torch.testing.assert_close(next_token_logits(adapter, IDS), slow, rtol=0, atol=2e-5)
    assert adapter.max_tokens == 32


@pytest.mark.parametrize(
    ("sizes", "modules"),
    [
        ({"model_type": "LlamaSimple", "rotary_adjacent_pairs": True}, ("q_proj", "k_proj")),
        ({"model_type": "LlamaSimple", "use_grouped_query_attention": False}, ("c_attn",)),
        (
            {
                "model_type": "LlamaSimple",
                "use_grouped_query_attention": False,
                "rotary_adjacent_pairs": True,
            },
            ("c_attn",),
        ),
        ({"model_type": "GPT2Simple"}, ("q_proj", "k_proj")),
    ],
    ids=["llama adjacent", "llama fused", "llama fused adjacent", "gpt2"],
)
def test_targets_of_other_classes(tmp_path, sizes, modules):
    sizes = SMALL | sizes
    names = [f"h.{i}.attn.{module}" for i in range(2) for module in modules]
    target, spec = written(tmp_path / "run", sizes, names)
    adapter = load_target(spec)
    slow = SlowTarget(target, sizes).logits(IDS)
    torch.testing.assert_close(next_token_logits(adapter, IDS), slow, rtol=0, atol=1e-4)
    decomposition = open_decomposition(spec, adapter)
    for layer in qk_layers(adapter, decomposition.layers()).values():
        for factors, half in zip(sides_of(decomposition, layer), (layer.q, layer.k), strict=True):
            product = (factors.V_HC @ factors.U_CO).T
            torch.testing.assert_close(product, half.weight_OH, rtol=0, atol=1e-5)


def test_a_fused_module_of_a_model_of_transformers(tmp_path):
    config = transformers.GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=3, n_positions=16)
    net = transformers.GPT2LMHeadModel(config).eval()
    net.save_pretrained(tmp_path / "gpt2")
    own = {key: value.clone() for key, value in net.state_dict().items()}
    module = "transformer.h.1.attn.c_attn"
    turned = {f"{module}.weight": own[f"{module}.weight"].T}  # Conv1D
    state = {f"target_model.{key}": value for key, value in own.items()}
    spec = write_run(
        tmp_path / "run",
        state | exact_components(turned, [module]),
        {
            "pretrained_model_class": "transformers.GPT2LMHeadModel",
            "pretrained_model_name": "../gpt2",
        },
    )
    assert target_of(spec) == str(tmp_path / "run" / "../gpt2")
    adapter = load_target(spec)
    decomposition, layers = open_decomposition(spec, adapter), qk_layers(adapter, [0, 1])
    assert decomposition.layers() == (1,)
    q, k = sides_of(decomposition, layers[1])
    assert torch.equal(q.V_HC, k.V_HC)
    for factors, half in ((q, layers[1].q), (k, layers[1].k)):
        torch.testing.assert_close((factors.V_HC @ factors.U_CO).T, half.weight_OH)
    with pytest.raises(UsageError, match="neither Q nor K of layer 0; its layers are 1"):
        sides_of(decomposition, layers[0])


def facts_run(folder):
    """Components of the queries of one layer of the built-in text model, without its weights."""
    net = load_model("demo://facts").net
    module = "model.layers.1.self_attn.q_proj"
    weight = net.get_submodule(module).weight.detach()
    config = {
        "pretrained_model_class": "transformers.LlamaForCausalLM",
        "pretrained_model_name": "demo://facts",
    }
    return write_run(folder, exact_components({f"{module}.weight": weight}, [module]), config)


def test_a_run_that_names_its_target_and_decomposes_one_side(tmp_path):
    spec = facts_run(tmp_path / "run")
    assert target_of(spec) == "demo://facts"
    adapter = load_target(spec)
    decomposition, layer = open_decomposition(spec, adapter), qk_layer(adapter, 1)
    q, k = sides_of(decomposition, layer)
    assert k is None
    torch.testing.assert_close((q.V_HC @ q.U_CO).T, layer.q.weight_OH, rtol=0, atol=1e-5)
    assert decomposition.ci_modules(layer, "q") == ()
    assert decomposition.causal_importance({}, layer, "q") is None
    assert decomposition.ci_modules(layer, "k") == ()


def test_the_target_may_be_given(tmp_path):
    spec = write_run(tmp_path / "run", state_of("mha_noisy"), config_of("mha_noisy"))
    with pytest.raises(ModelError, match=r"how many heads.*--target FOLDER"):
        load_target(spec)
    place = RUNS.parent / "pretrain" / "tiny_mha"
    for target in (place, place / "model_config.yaml"):
        adapter = load_target(spec, target=str(target))
        factors = open_decomposition(spec, adapter, target=str(target)).factors(
            qk_layer(adapter, 0), "q"
        )
        assert factors.V_HC.shape == (48, 56)


def test_options_of_loading():
    spec = f"spd:{RUNS / 'mha_noisy'}"
    net = load_target(spec, options=LoadOptions(dtype="bf16")).net
    assert {each.dtype for each in net.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in net.buffers()} == {torch.float32}
    with pytest.raises(UsageError, match="leave out --device-map"):
        load_target(spec, options=LoadOptions(device_map="auto"))


def test_weights_of_the_target_from_its_own_run(tmp_path):
    state = state_of("mha_noisy")
    target = {
        key.removeprefix("target_model."): value
        for key, value in state.items()
        if key.startswith("target_model.")
    }
    (tmp_path / "trained" / "checkpoints").mkdir(parents=True)
    for step, scale in ((9, 1.0), (10, 2.0)):
        torch.save(
            {key: value * scale for key, value in target.items()},
            tmp_path / "trained" / "checkpoints" / f"model_step_{step}.pt",
        )
    parts_only = {key: value for key, value in state.items() if key.startswith("_components")}
    config = config_of("mha_noisy") | {"pretrained_model_name": "../trained"}
    spec = write_run(tmp_path / "run", parts_only, config, sizes_of("mha_noisy"))
    weight = load_target(spec).net.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert torch.equal(weight, 2 * target["h.0.attn.q_proj.weight"])


def test_names_of_older_versions(tmp_path):
    state = {}
    for key, value in state_of("mha_noisy").items():
        old = key.replace("target_model.", "patched_model.").replace("ci_fn._ci_fns.", "_gates.")
        if key.startswith("target_model.") and key.endswith(("q_proj.weight", "k_proj.weight")):
            old = old.replace(".weight", ".original.weight")
        if key.startswith("_components."):
            _room, module, name = key.split(".")
            old = f"patched_model.{module.replace('-', '.')}.components.{name}"
        state[old] = value
    config = config_of("mha_noisy")
    kind = config.pop("ci_config")["fn_type"]
    spec = write_run(
        tmp_path / "run", state, config | {"gate_type": kind}, sizes_of("mha_noisy"), step=7
    )
    adapter = load_target(spec)
    decomposition, layer = open_decomposition(spec, adapter), qk_layer(adapter, 3)
    ids = parts()["input_ids"][1]
    inputs = module_inputs(adapter, decomposition.ci_modules(layer, "q"), ids)
    ci_TC = decomposition.causal_importance(inputs, layer, "q")
    np.testing.assert_allclose(ci_TC, parts()["mha_noisy/s1_q11_l3/q_ci"], rtol=0, atol=6e-6)


def test_the_highest_step_wins_and_a_file_may_be_named(tmp_path):
    state = state_of("mha_noisy")
    spec = write_run(tmp_path / "run", state, config_of("mha_noisy"), sizes_of("mha_noisy"), step=9)
    later = {key: value * (2 if key.endswith(".V") else 1) for key, value in state.items()}
    write_run(tmp_path / "run", later, config_of("mha_noisy"), step=10)
    adapter = load_target(spec)
    layer = qk_layer(adapter, 0)
    first = open_decomposition(f"{spec}/model_9.pth", adapter).factors(layer, "q")
    last = open_decomposition(spec, adapter).factors(layer, "q")
    assert torch.equal(last.V_HC, 2 * first.V_HC)


def test_later_layout_of_the_configuration(tmp_path):
    config = config_of("mha_noisy")
    meta = {
        "pd": {key: config[key] for key in ("ci_config", "sigmoid_type")},
        "target": {"spec": {"kind": "LlamaSimpleMLP", "run_path": "elsewhere"}},
    }
    spec = write_run(tmp_path / "run", state_of("mha_noisy"), meta, sizes_of("mha_noisy"))
    (tmp_path / "run" / "final_config.yaml").rename(tmp_path / "run" / "run_meta.yaml")
    adapter = load_target(spec)
    layer = qk_layer(adapter, 0)
    assert open_decomposition(spec, adapter).ci_modules(layer, "q") == (layer.q.module,)


def test_refuses_a_folder_without_weights(tmp_path):
    (tmp_path / "final_config.yaml").write_text(json.dumps(config_of("mha_noisy")))
    for call in (load_target, lambda spec: open_decomposition(spec, opened("mha_noisy")[0])):
        with pytest.raises(ModelError, match=r"no SPD run with weights: expected model_<step>"):
            call(f"spd:{tmp_path}")


def test_refuses_weights_of_another_model(tmp_path):
    adapter, _decomposition, layers = opened("mha_noisy")
    state = state_of("mha_noisy")
    state["target_model.h.1.attn.k_proj.weight"] *= 1.1
    spec = write_run(tmp_path / "run", state, config_of("mha_noisy"), sizes_of("mha_noisy"))
    other = open_decomposition(spec, adapter)
    assert other.factors(layers[1], "q") is not None
    with pytest.raises(ModelError, match=r"of another model: .*k_proj .* differ by up to"):
        other.factors(layers[1], "k")
    grouped = open_decomposition(f"spd:{RUNS / 'gqa_noisy'}", adapter)
    with pytest.raises(ModelError, match=r"are \[16, 48\] and \[48, 48\]"):
        grouped.factors(layers[1], "k")


def test_refuses_modules_that_the_model_lacks(tmp_path):
    with pytest.raises(ModelError, match=r"model.layers.1.self_attn.q_proj") as info:
        open_decomposition(facts_run(tmp_path / "run"), opened_gpt2(tmp_path))
    assert "GPT2LMHeadModel has no such module" in str(info.value)


def opened_gpt2(folder):
    config = transformers.GPT2Config(vocab_size=31, n_embd=24, n_layer=2, n_head=3, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    return load_model(str(folder / "gpt2"))


def test_refuses_what_is_not_finite(tmp_path):
    adapter, _decomposition, layers = opened("mha_noisy")
    state = state_of("mha_noisy")
    state["_components.h-1-attn-q_proj.U"][7, 2] = float("nan")
    spec = write_run(tmp_path / "run", state, config_of("mha_noisy"), sizes_of("mha_noisy"))
    damaged = open_decomposition(spec, adapter)
    with pytest.raises(ModelError, match=r"U of h.1.attn.q_proj in .* in 1 of 56 components \(7\)"):
        damaged.factors(layers[1], "q")
    assert damaged.factors(layers[0], "q") is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ci_config": {"mode": "global", "fn_type": "global_reverse_residual"}}, "knows mlp"),
        ({"sigmoid_type": "hard_sigmoid"}, "'hard_sigmoid', which actcli cannot compute"),
    ],
)
def test_refuses_unknown_importances(tmp_path, change, message):
    adapter, _decomposition, layers = opened("mha_noisy")
    config = config_of("mha_noisy") | change
    spec = write_run(tmp_path / "run", state_of("mha_noisy"), config, sizes_of("mha_noisy"))
    decomposition = open_decomposition(spec, adapter)
    assert decomposition.factors(layers[0], "q") is not None
    with pytest.raises(ModelError, match=message):
        decomposition.ci_modules(layers[0], "q")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "Llama"}, r"class Llama, .* knows LlamaSimpleMLP, LlamaSimple, GPT2Simple"),
        ({"n_head": None}, r"model_config.yaml says n_head=None; .* positive integer"),
        ({"n_layer": 5}, r"lack model.layers.4.input_layernorm.weight"),
        ({"n_layer": 3}, r"have, beyond what its configuration says, model.layers.3"),
        (
            {"n_intermediate": 90},
            r"of another shape than its configuration says model.layers.0.mlp",
        ),
    ],
)
def test_refuses_sizes_that_do_not_fit(tmp_path, change, message):
    sizes = sizes_of("mha_noisy") | change
    spec = write_run(tmp_path / "run", state_of("mha_noisy"), config_of("mha_noisy"), sizes)
    with pytest.raises(ModelError, match=message):
        load_target(spec)


def test_refuses_damaged_files(tmp_path):
    spec = write_run(tmp_path / "run", {"a": torch.ones(2)}, config_of("mha_noisy"))
    with pytest.raises(ModelError, match=r"holds no _components.<module>.V"):
        open_decomposition(spec, opened("mha_noisy")[0])
    write_run(tmp_path / "run", {"_components.h-0-attn-q_proj.V": torch.ones(2, 2)}, {"a": 1})
    with pytest.raises(ModelError, match=r"h.0.attn.q_proj has not both V and U"):
        open_decomposition(spec, opened("mha_noisy")[0])
    (tmp_path / "run" / "model_0.pth").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="cannot read the weights in"):
        open_decomposition(spec, opened("mha_noisy")[0])
    (tmp_path / "run" / "final_config.yaml").write_text("a: [")
    with pytest.raises(ModelError, match=r"cannot read .*final_config.yaml"):
        load_target(spec)


def test_a_target_that_is_not_on_this_machine(tmp_path):
    config = {
        "pretrained_model_class": "transformers.GPT2LMHeadModel",
        "pretrained_model_name": "openai-community/gpt2",
    }
    spec = write_run(tmp_path / "run", state_of("mha_noisy"), config)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel openai-community/gpt2, .*--target"):
        load_target(spec)


def test_no_target_weights_anywhere(tmp_path):
    state = {key: value for key, value in state_of("mha_noisy").items() if "target" not in key}
    spec = write_run(tmp_path / "run", state, config_of("mha_noisy"), sizes_of("mha_noisy"))
    with pytest.raises(ModelError, match="holds no weights of its target"):
        load_target(spec)
