"""Features found by way of bfloat16 are those that float32 finds."""

import pytest
import torch

from actcli.saes.activations import Gated, GroupMax, Threshold, TopK
from actcli.saes.decoder import weighted_rows
from actcli.saes.encoder import Encoder
from actcli.saes.prefilter import Prefilter

N, WIDTH, D = 300, 96, 512


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _weights():
    return torch.randn(WIDTH, D) / WIDTH**0.5, torch.randn(D) / 4


def _both(W_ID, b_D, activation, z_NI, **options):
    """By both ways, as sets of elements with their values."""
    found = []
    for prefilter in (False, True):
        encoder = Encoder(W_ID, b_D, activation, prefilter=prefilter, **options)
        assert encoder.is_prefiltered == prefilter
        active = encoder(z_NI)
        assert encoder.is_prefiltered == prefilter
        keys_M = active.tokens_M * D + active.features_M
        assert (keys_M.diff() > 0).all()
        assert active.values_M.dtype == torch.float32
        assert (active.values_M != 0).all()
        found.append((keys_M, active.values_M))
    return found


def _assert_same(found, *, close=1e-5):
    (keys_M, values_M), (others_M, theirs_M) = found
    assert keys_M.tolist() == others_M.tolist()
    assert len(keys_M) > 0
    torch.testing.assert_close(values_M, theirs_M, rtol=close, atol=close)


def _exact(W_ID, b_D, z_NI):
    return z_NI.double() @ W_ID.double() + b_D.double()


@pytest.mark.parametrize(
    "activation",
    [
        Threshold(torch.rand(D) + 1),
        Threshold(torch.tensor(1.5)),
        Threshold(torch.rand(D) + 1, relu=False),
        Threshold(torch.rand(D) * 4 - 0.3),
        Gated(torch.randn(D) - 2, torch.randn(D) / 4, torch.randn(D) - 2),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_both_ways(activation, scaled):
    """Every elementwise activation, with a scale and without; in chunks of any size."""
    W_ID, b_D = _weights()
    scale_D = torch.rand(D) + 0.5 if scaled else None
    z_NI = torch.randn(N, WIDTH)
    for buffer_bytes in (1 << 22, 40 * D):
        found = _both(W_ID, b_D, activation, z_NI, scale_D=scale_D, buffer_bytes=buffer_bytes)
        _assert_same(found)
        pre_ND = _exact(W_ID, b_D, z_NI) * (1 if scale_D is None else scale_D)
        acts_ND = activation(pre_ND.float())
        assert found[0][0].tolist() == acts_ND.flatten().nonzero()[:, 0].tolist()


def test_none_is_lost_near_the_threshold():
    """Thresholds within 2e-6 of the values: bfloat16 alone would err on half of them."""
    W_ID, b_D = _weights()
    z_NI = torch.randn(N, WIDTH)
    pre_ND = _exact(W_ID, b_D, z_NI)
    threshold_D = (pre_ND[7].abs() + 0.5).float()
    W_ID = W_ID * (pre_ND[7] < 0).float().mul(-2).add(1)
    b_D = b_D * (pre_ND[7] < 0).float().mul(-2).add(1) + 0.5
    for shift, all_active in ((2e-6, False), (-2e-6, True)):
        activation = Threshold(threshold_D * (1 + shift))
        found = _both(W_ID, b_D, activation, z_NI)
        _assert_same(found)
        assert ((found[1][0] // D == 7).sum() == D) == all_active


def test_large_offset():
    """A constant a thousand times the rest, which bfloat16 rounds by more than the rest."""
    W_ID, b_D = _weights()
    z_NI = torch.randn(N, WIDTH) + 1000
    middle_D = _exact(W_ID, b_D, z_NI).mean(0).float()
    bias_D = b_D - middle_D
    activation = Threshold(torch.full((D,), 2.0))
    found = [Encoder(W_ID, bias_D, activation, prefilter=prefilter)(z_NI) for prefilter in (0, 1)]
    exact_ND = _exact(W_ID, bias_D, z_NI)
    for each in found:
        keys = set((each.tokens_M * D + each.features_M).tolist())
        sure = set((exact_ND > 2.01).flatten().nonzero()[:, 0].tolist())
        maybe = set((exact_ND > 1.99).flatten().nonzero()[:, 0].tolist())
        assert sure <= keys <= maybe


def test_the_bound_is_needed_and_holds():
    """Roundings that all point the same way reach half of the bound; none is lost."""
    width, features = 4096, 64
    z_NI = torch.full((8, width), 1 + 2.0**-8 - 2.0**-12)  # rounds down by nearly 2^-8
    W_ID = torch.full((width, features), 1 + 2.0**-8 - 2.0**-12) / width
    value = float(z_NI[0].double() @ W_ID[:, 0].double())
    activation = Threshold(torch.tensor(value - 1e-5))
    found = Encoder(W_ID, torch.zeros(features), activation, prefilter=True)
    assert found.is_prefiltered
    assert len(found(z_NI).values_M) == 8 * features
    rounded = float((z_NI[:1].bfloat16().float() @ W_ID.bfloat16().float())[0, 0])
    assert rounded < value - 5e-3


def test_biases_that_bfloat16_cannot_write():
    """1.0055 - 1.005 is positive, but -1.005 in bfloat16 is -1.0078."""
    z_NI, W_ID = torch.ones(2, 129), torch.full((129, 4), 2.0**-7)
    W_ID[-1] = 0.00549316  # five digits of bfloat16
    bias_D = torch.full((4,), -1.005)
    for floor in (0.0, 1.0):
        encoder = Encoder(W_ID, bias_D + floor, Threshold(torch.tensor(floor)), prefilter=True)
        assert encoder.is_prefiltered
        assert len(encoder(z_NI).values_M) == 8


def test_candidates_are_few():
    """The margin is narrow: most features are told by bfloat16 alone."""
    W_ID, b_D = _weights()
    z_NI = torch.randn(N, WIDTH)
    prefilter = Prefilter.of(W_ID, b_D, torch.tensor(2.5), scale_D=None)
    tokens_C, features_C, products_C = prefilter(z_NI, most=N * D)
    exact_ND = _exact(W_ID, b_D, z_NI)
    active = int((exact_ND > 2.5).sum())
    assert active <= len(tokens_C) < 1.3 * active
    torch.testing.assert_close(products_C + b_D[features_C], exact_ND[tokens_C, features_C].float())


def test_too_many_candidates():
    """Dense features go through float32, and after some chunks at once."""
    W_ID, b_D = _weights()
    encoder = Encoder(W_ID, b_D + 9, Threshold(), prefilter=True, buffer_bytes=80 * D)
    z_NI = torch.randn(N, WIDTH)
    active = encoder(z_NI)
    expected_ND = Threshold()(torch.addmm(b_D + 9, z_NI, W_ID))
    assert not encoder.is_prefiltered
    assert len(active.values_M) == int((expected_ND != 0).sum())
    assert active.tokens_M.tolist() == expected_ND.nonzero()[:, 0].tolist()


def test_tokens_beyond_the_bound():
    """Lengths near the ends of float32 are not told in bfloat16; zeros are."""
    W_ID, b_D = _weights()
    activation = Threshold(torch.tensor(0.2))
    z_NI = torch.randn(4, WIDTH)
    z_NI[1] = 0
    for factor in (1e-30, 1.0, 1e30):
        found = [Encoder(W_ID, b_D, activation, prefilter=each)(z_NI * factor) for each in (0, 1)]
        assert found[0].tokens_M.tolist() == found[1].tokens_M.tolist()
        assert found[0].features_M.tolist() == found[1].features_M.tolist()
    tiny = [
        Encoder(W_ID * 1e-9, b_D * 0, Threshold(), prefilter=each)(z_NI * 1e-30) for each in (0, 1)
    ]
    assert len(tiny[0].values_M) > D  # denormal numbers, which bfloat16 units take for 0
    assert tiny[0].features_M.tolist() == tiny[1].features_M.tolist()
    assert Prefilter.of(W_ID * 1e30, b_D, 0.0, scale_D=None) is None
    assert Prefilter.of(W_ID, b_D, 0.0, scale_D=torch.zeros(D)) is None
    assert Prefilter.of(W_ID, b_D, -torch.inf, scale_D=None) is None


@pytest.mark.parametrize(
    "activation",
    [
        TopK(5),
        TopK(5, relu=False),
        TopK(5, by="magnitude", relu=False),
        TopK(400),
        GroupMax(16),
        Threshold(relu=False),
        Threshold(torch.full((D,), -1.0), relu=False),
    ],
)
def test_other_activations(activation):
    """They go through float32, in chunks, and give what the formula gives."""
    W_ID, b_D = _weights()
    z_NI = torch.randn(N, WIDTH)
    expected_ND = activation(torch.addmm(b_D, z_NI, W_ID))
    active = Encoder(W_ID, b_D, activation, buffer_bytes=64 * D)(z_NI)
    tokens_M, features_M = expected_ND.nonzero(as_tuple=True)
    assert active.tokens_M.tolist() == tokens_M.tolist()
    assert active.features_M.tolist() == features_M.tolist()
    torch.testing.assert_close(active.values_M, expected_ND[tokens_M, features_M])


def test_no_token_and_no_feature():
    """Nothing in, nothing out."""
    W_ID, b_D = _weights()
    for prefilter in (False, True):
        encoder = Encoder(W_ID, b_D, Threshold(torch.tensor(1e9)), prefilter=prefilter)
        assert len(encoder(torch.randn(3, WIDTH)).values_M) == 0
        assert len(encoder(torch.randn(0, WIDTH)).values_M) == 0


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_decoder(share):
    """Few features by rows, many by a dense product."""
    acts_ND = torch.randn(N, D) * (torch.rand(N, D) < share)
    acts_ND[5] = 0
    W_DO = torch.randn(D, 7)
    tokens_M, features_M = acts_ND.nonzero(as_tuple=True)
    values_M = acts_ND[tokens_M, features_M]
    found_NO = weighted_rows(tokens_M, features_M, values_M, W_DO, n_tokens=N)
    torch.testing.assert_close(found_NO, acts_ND @ W_DO, rtol=1e-4, atol=1e-4)
