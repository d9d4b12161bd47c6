"""Norms told apart by what they give, against float64."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from actcli.models.norms import as_norm

H = 24


class Rms(nn.Module):
    """RMSNorm with the eps under a name of its own."""

    def __init__(self, eps, *, offset=0.0, name="variance_epsilon"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(H, generator=torch.Generator().manual_seed(1)))
        self._offset, self._name = offset, name
        setattr(self, name, eps)

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + vars(self)[self._name])
        return (normed * (self._offset + self.weight.float())).to(x.dtype)


def random(module):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn(each.shape, generator=generator) + 0.3)
    return module


CASES = {
    "rms": (lambda: Rms(1e-3), "rms", 1e-3, "weight"),
    "rms, tiny eps": (lambda: Rms(1e-6), "rms", 1e-6, "weight"),
    "gemma": (lambda: Rms(1e-2, offset=1.0, name="eps"), "rms", 1e-2, "1 + weight"),
    "torch rms": (lambda: random(nn.RMSNorm(H, eps=1e-4)), "rms", 1e-4, "weight"),
    "torch rms, own eps": (
        lambda: random(nn.RMSNorm(H)),
        "rms",
        torch.finfo(torch.float32).eps,
        "weight",
    ),
    "layer": (lambda: random(nn.LayerNorm(H, eps=1e-3)), "layer", 1e-3, "weight"),
    "layer, no bias": (
        lambda: random(nn.LayerNorm(H, eps=1e-3, bias=False)),
        "layer",
        1e-3,
        "weight",
    ),
    "layer, no gain": (
        lambda: nn.LayerNorm(H, eps=1e-3, elementwise_affine=False),
        "layer",
        1e-3,
        "none",
    ),
}


def slow(module, kind, eps, convention, x):
    x = x.double()
    x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    p = {name: each.detach().double() for name, each in module.named_parameters()}
    gain = {"weight": p.get("weight"), "1 + weight": 1 + p.get("weight", 0), "none": 1.0}
    return x, x * gain[convention] + p.get("bias", 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_norms_are_understood(case, dtype):
    make, kind, eps, convention = CASES[case]
    module = make().to(dtype)
    norm = as_norm(module, H)
    assert (norm.kind, norm.convention, norm.eps) == (kind, convention, eps)
    x = torch.randn(5, 3, H, generator=torch.Generator().manual_seed(2)) * 0.3
    normed, full = slow(module, kind, eps, convention, x)
    assert_allclose(norm.normalised(x), normed, rtol=1e-5, atol=1e-5)
    assert_allclose(norm(x).detach(), full, rtol=1e-5, atol=1e-5)


def test_the_gain_of_one_plus_weight_is_not_rounded():
    module = Rms(1e-3, offset=1.0).to(torch.bfloat16)
    gain = as_norm(module).gain
    assert gain.double().tolist() == (1 + module.weight.detach().double()).tolist()


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(H, H),
        nn.GELU(),
        nn.Identity(),
        nn.Dropout(),
        nn.Embedding(7, H),
        nn.Sequential(nn.LayerNorm(H)),
        nn.BatchNorm1d(H).eval(),
        nn.PReLU(H),
        nn.Softmax(-1),
        nn.Tanh(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_are_no_norms(module):
    assert as_norm(random(module), H) is None


def test_a_module_that_cannot_read_vectors_is_no_norm():
    class Picky(nn.Module):
        def forward(self, x):
            return x.sum(2)

    assert as_norm(Picky(), H) is None
    assert as_norm(nn.LayerNorm(H, elementwise_affine=False), None) is None
