"""Encoding and decoding, against the formulas written out densely.

The checkpoints of other libraries are in `test_formats*`.
"""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from actcli.saes.activations import Gated, GroupMax, Threshold, TopK
from actcli.saes.dictionary import Dictionary, Origin, SparseActs
from actcli.saes.normalisations import Standardised


def _dictionary(**changes):
    torch.manual_seed(0)
    parts = {
        "origin": Origin("one", Path("one"), "none", "relu", "float32"),
        "W_enc_ID": torch.randn(6, 30),
        "b_enc_D": torch.randn(30),
        "W_dec_DO": torch.randn(30, 5),
        "b_dec_O": torch.randn(5),
        "activation": Threshold(torch.rand(30)),
    }
    return Dictionary(**{**parts, **changes})


@pytest.fixture(autouse=True)
def _same_draws_each_time():
    """Two orders of a float32 sum are compared: how far they are apart depends on the draw."""
    torch.manual_seed(0)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_formula(shift):
    """Normalisation, centre, scale and skip together; few features active, and nearly all."""
    own = _dictionary(
        centre_I=torch.randn(6),
        scale_D=torch.rand(30) + 0.5,
        W_skip_IO=torch.randn(6, 5),
        normalisation=Standardised(),
        b_enc_D=torch.full((30,), shift - 3),
    )
    x_NI = torch.randn(50, 6) * 3 + 1
    mean_N1 = x_NI.mean(-1, keepdim=True)
    std_N1 = (x_NI - mean_N1).std(-1, keepdim=True)
    z_NI = (x_NI - mean_N1) / (std_N1 + 1e-5) - own.centre_I
    pre_ND = (z_NI @ own.W_enc_ID + own.b_enc_D) * own.scale_D
    acts_ND = own.activation(pre_ND)
    skip_NO = x_NI @ own.W_skip_IO
    acts = own.encode(x_NI)
    torch.testing.assert_close(acts.values_M, acts_ND[acts_ND != 0])
    for stop, r_NO in zip(
        (4, 17, 30), own.decode_prefixes(acts, x_NI, prefixes=(4, 17, 30)), strict=True
    ):
        y_NO = (acts_ND / own.scale_D)[:, :stop] @ own.W_dec_DO[:stop] + own.b_dec_O + skip_NO
        torch.testing.assert_close(r_NO, y_NO * std_N1 + mean_N1, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.decode(acts, x_NI), r_NO)


def test_joined():
    """Parts put together are the features of all tokens."""
    acts_ND = torch.relu(torch.randn(20, 8))
    parts = [SparseActs.of(each) for each in (acts_ND[:3], acts_ND[3:3], acts_ND[3:])]
    for one, other in zip(SparseActs.joined(parts), SparseActs.of(acts_ND), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize(
    "activation",
    [
        Threshold(torch.rand(30)),
        Threshold(),
        Gated(torch.randn(30), torch.randn(30), torch.randn(30)),
        TopK(2),
        GroupMax(2),
    ],
)
def test_on_a_device(activation):
    """All its tensors go there; W_enc keeps the order in which it lies."""
    own = replace(_dictionary(), activation=activation)
    moved = own.to("meta")
    held = [getattr(moved, each.name) for each in fields(moved)]
    held += [getattr(moved.activation, each.name) for each in fields(activation)]
    assert {each.device.type for each in held if isinstance(each, torch.Tensor)} == {"meta"}
    assert [each is None for each in held] == [
        getattr(part, each.name) is None for part in (own, activation) for each in fields(part)
    ]
    turned = replace(own, W_enc_ID=own.W_enc_ID.T.contiguous().T).to("cpu")
    assert turned.W_enc_ID.T.is_contiguous()
    for one, other in zip(turned.encode(x_NI := torch.randn(9, 6)), own.encode(x_NI), strict=True):
        torch.testing.assert_close(one, other)


def test_renamed():
    """Under another name it is the same dictionary."""
    own = _dictionary()
    x_NI = torch.randn(4, 6)
    renamed = own.named("two")
    assert renamed.origin.name == "two"
    assert torch.equal(renamed.encode(x_NI).values_M, own.encode(x_NI).values_M)
