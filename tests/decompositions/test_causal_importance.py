"""Causal importances against slow loops in plain Python, for what the golden runs do not have."""

import math

import numpy as np
import pytest
import torch

from actcli.decompositions.causal_importance import CausalImportances
from actcli.decompositions.spd_config import CiConfig
from actcli.errors import ModelError

N_TOKENS, N_INPUTS, N_COMPONENTS, N_HIDDEN = 3, 5, 4, 2
NAMES = ("h.10.attn.q_proj", "h.2.attn.k_proj")  # in the order of texts


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)))


@pytest.fixture
def inputs():
    return {name: drawn(N_TOKENS, N_INPUTS, seed=each) for each, name in enumerate(NAMES)}


def factors():
    return {
        name: (drawn(N_INPUTS, N_COMPONENTS, seed=each), drawn(N_COMPONENTS, 7))
        for each, name in enumerate(reversed(NAMES))
    }


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def network(x, layers):
    """Numbers in, numbers out: maps (W, b) with GELU between."""
    for number, (W, b) in enumerate(layers):
        x = [gelu(each) for each in x] if number else x
        x = [sum(x[i] * W[i][j] for i in range(len(x))) + b[j] for j in range(len(b))]
    return x


def layers_of(state, prefix, component=None):
    found = []
    for number in (0, 2):
        W, b = state[f"{prefix}.{number}.W"], state[f"{prefix}.{number}.b"]
        W, b = (W, b) if component is None else (W[component], b[component])
        found.append((W.tolist(), b.tolist()))
    return found


@pytest.mark.parametrize("kind", ["mlp", "vector_mlp"])
def test_a_network_per_component(kind, inputs):
    name, n_inputs = NAMES[0], 1 if kind == "mlp" else N_INPUTS
    prefix = f"_ci_fns.{name.replace('.', '-')}.layers"
    state = {
        f"{prefix}.0.W": drawn(N_COMPONENTS, n_inputs, N_HIDDEN),
        f"{prefix}.0.b": drawn(N_COMPONENTS, N_HIDDEN),
        f"{prefix}.2.W": drawn(N_COMPONENTS, N_HIDDEN, 1),
        f"{prefix}.2.b": drawn(N_COMPONENTS, 1),
    }
    functions = CausalImportances(CiConfig(kind, "normal"), state, factors())
    V_HC = factors()[name][0]
    expected = np.zeros((N_TOKENS, N_COMPONENTS))
    for t in range(N_TOKENS):
        for c in range(N_COMPONENTS):
            x = inputs[name][t].tolist()
            given = [sum(a * v for a, v in zip(x, V_HC[:, c].tolist(), strict=True))]
            given = given if kind == "mlp" else x
            (g,) = network(given, layers_of(state, prefix, c))
            expected[t, c] = 1 / (1 + math.exp(-g))
    np.testing.assert_allclose(functions.of(name, inputs), expected, rtol=0, atol=1e-6)
    assert functions.reads(name) == (name,)


def test_one_network_per_module(inputs):
    name = NAMES[1]
    prefix = f"_ci_fns.{name.replace('.', '-')}.layers"
    state = whole_network(prefix, N_INPUTS, N_COMPONENTS)
    functions = CausalImportances(CiConfig("shared_mlp", "normal"), state, factors())
    for t in range(N_TOKENS):
        g = network(inputs[name][t].tolist(), layers_of(state, prefix))
        expected = [1 / (1 + math.exp(-each)) for each in g]
        np.testing.assert_allclose(functions.of(name, inputs)[t], expected, rtol=0, atol=1e-6)


def test_one_network_for_all_modules_in_the_order_of_their_names(inputs):
    prefix = "_global_ci_fn.layers"
    state = whole_network(prefix, 2 * N_INPUTS, 2 * N_COMPONENTS)
    functions = CausalImportances(CiConfig("global_shared_mlp", "normal"), state, factors())
    assert functions.reads(NAMES[1]) == NAMES
    for t in range(N_TOKENS):
        x = [*inputs[NAMES[0]][t].tolist(), *inputs[NAMES[1]][t].tolist()]
        g = network(x, layers_of(state, prefix))
        expected = [1 / (1 + math.exp(-each)) for each in g]
        for number, name in enumerate(NAMES):
            own = expected[number * N_COMPONENTS :][:N_COMPONENTS]
            np.testing.assert_allclose(functions.of(name, inputs)[t], own, rtol=0, atol=1e-6)


def whole_network(prefix, n_in, n_out):
    return {
        f"{prefix}.0.W": drawn(n_in, N_HIDDEN),
        f"{prefix}.0.b": drawn(N_HIDDEN),
        f"{prefix}.2.W": drawn(N_HIDDEN, n_out),
        f"{prefix}.2.b": drawn(n_out),
    }


@pytest.mark.parametrize(
    ("sigmoid", "values"),
    [
        ("leaky_hard", [0, 0, 0.25, 1, 1]),
        ("lower_leaky_hard", [0, 0, 0.25, 1, 1]),
        ("hard", [0, 0, 0.25, 1, 1]),
        ("upper_leaky_hard", [0, 0, 0.25, 1, 1.02]),
        ("normal", [1 / (1 + math.exp(-g)) for g in (-2, 0, 0.25, 1, 3)]),
        (
            "swish_hard",  # g s(10 g) - (g - 1) s(10 (g - 1)), s the logistic function
            [
                g / (1 + math.exp(-10 * g)) - (g - 1) / (1 + math.exp(-10 * (g - 1)))
                for g in (-2, 0, 0.25, 1, 3)
            ],
        ),
    ],
)
def test_sigmoids(sigmoid, values):
    prefix = "_ci_fns.m.layers"
    state = {f"{prefix}.0.W": torch.eye(1), f"{prefix}.0.b": torch.zeros(1)}
    maps = {"m": (torch.zeros(1, 1), torch.zeros(1, 1))}
    functions = CausalImportances(CiConfig("shared_mlp", sigmoid), state, maps)
    given = {"m": torch.tensor([[-2.0], [0.0], [0.25], [1.0], [3.0]])}
    np.testing.assert_allclose(functions.of("m", given)[:, 0], values, rtol=0, atol=1e-6)


def test_refuses_weights_that_are_missing_or_do_not_fit(inputs):
    config = CiConfig("shared_mlp", "normal")
    with pytest.raises(ModelError, match=r"\(shared_mlp\) of h.2.attn.k_proj cannot be computed"):
        CausalImportances(config, {}, factors()).of(NAMES[1], inputs)
    state = whole_network("_global_ci_fn.layers", 2 * N_INPUTS, 3)
    config = CiConfig("global_shared_mlp", "normal")
    with pytest.raises(ModelError, match="3 outputs for 8 components"):
        CausalImportances(config, state, factors()).of(NAMES[1], inputs)
