"""Singular vectors as components, on models with grouped and fused projections."""

import numpy as np
import pytest
import torch

from actcli.decompositions import open_decomposition
from actcli.decompositions.factors import sides_of
from actcli.errors import UsageError
from tests.decompositions.cases import opened


@pytest.mark.parametrize("spec", ["svd", "svd-head", "svd:48"])
@pytest.mark.parametrize("layer", [0, 3])
def test_all_of_them_give_the_weights(spec, layer):
    adapter, _run, layers = opened("mha_noisy" if ":" in spec else "gqa_noisy")
    decomposition = open_decomposition(spec, adapter)
    assert decomposition.layers() == (0, 1, 2, 3)
    both = sides_of(decomposition, layers[layer])
    for factors, half in zip(both, (layers[layer].q, layers[layer].k), strict=True):
        product = (factors.V_HC @ factors.U_CO).T
        torch.testing.assert_close(product, half.weight_OH, rtol=0, atol=2e-6)
        assert factors.ids_C == tuple(range(len(factors.U_CO)))


def test_few_of_them_are_the_best_of_that_rank():
    adapter, _run, layers = opened("gqa_noisy")
    weight_OH = layers[2].k.weight_OH.double().numpy()
    values = np.linalg.svd(weight_OH, compute_uv=False)
    decomposition = open_decomposition("svd:5", adapter)
    factors = decomposition.factors(layers[2], "k")
    assert factors.V_HC.shape == (48, 5)
    gap = weight_OH - (factors.V_HC @ factors.U_CO).T.double().numpy()
    assert np.linalg.norm(gap) == pytest.approx(np.sqrt((values[5:] ** 2).sum()), rel=1e-5)
    np.testing.assert_allclose(factors.U_CO.norm(dim=1), values[:5], rtol=1e-5)
    np.testing.assert_allclose(factors.V_HC.norm(dim=0), 1, rtol=1e-5)
    assert (factors.V_HC.gather(0, factors.V_HC.abs().argmax(0, keepdim=True)) > 0).all()
    assert decomposition.factors(layers[2], "k") is factors
    assert decomposition.ci_modules(layers[2], "k") == ()
    assert decomposition.causal_importance({}, layers[2], "k") is None


def test_those_of_a_head_write_in_it_alone():
    adapter, _run, layers = opened("gqa_noisy")
    factors = open_decomposition("svd-head:3", adapter).factors(layers[1], "k")
    assert factors.U_CO.shape == (6, 16)
    assert not factors.U_CO[:3, 8:].any()
    assert not factors.U_CO[3:, :8].any()
    for head in range(2):
        weight_DH = layers[1].k.weight_OH[8 * head :][:8].double().numpy()
        values = np.linalg.svd(weight_DH, compute_uv=False)
        own = factors.U_CO[3 * head :][:3, 8 * head :][:, :8]
        np.testing.assert_allclose(own.norm(dim=1), values[:3], rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("svd:17", r"svd:17: k of layer 0 has rank 16 at most; give svd:16"),
        (
            "svd-head:9",
            r"svd-head:9: k of layer 0 has rank 8 at most in each head; give svd-head:8",
        ),
    ],
)
def test_refuses_a_rank_that_there_is_not(spec, message):
    adapter, _run, layers = opened("gqa_noisy")
    with pytest.raises(UsageError, match=message):
        open_decomposition(spec, adapter).factors(layers[0], "k")
