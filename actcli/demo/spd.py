"""Rank-one components of linear modules, their causal importances, and a model that runs on them.

A module's weight W (O, H) is written as `W.T ~ V @ U`: component c reads `a_c = x . V[:, c]` and
writes `a_c * U[c]`. What the sum misses is the delta, `W - (V @ U).T`. A causal importance between
0 and 1 says, token by token, how far a component is needed there; here it is a function of that
component's own `a_c`, a perceptron with one hidden layer for each component. The form and the names
are those of stochastic parameter decomposition (Bushnaq, Braun and Sharkey, 2025,
arXiv:2506.20790), written anew.

Tensor legend: B batch, T tokens, H inputs of a module, O its outputs, C components, M hidden units
of an importance function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

LEAK = 0.01
"""Slope that the two hard sigmoids keep where they are flat, so that components can come back."""


class Sizes(NamedTuple):
    """How many components a module gets, and the hidden width of their importance functions."""

    n_q: int = 144
    n_k: int = 80
    n_hidden: int = 4


class Masks(NamedTuple):
    """How much of a module's components, and of its delta, is let through, token by token."""

    components_BTC: Tensor
    delta_BT1: Tensor | float = 0.0


class Components(nn.Module):
    """The components of one module, with their importance functions."""

    def __init__(self, V_HC: Tensor, U_CO: Tensor, *, n_hidden: int) -> None:
        """Start from given factors; every importance begins at about 1, whatever the input."""
        super().__init__()
        n_components = V_HC.shape[1]
        self.V_HC = nn.Parameter(V_HC.clone())
        self.U_CO = nn.Parameter(U_CO.clone())
        self.W_in_CM = nn.Parameter(torch.randn(n_components, n_hidden))
        self.b_in_CM = nn.Parameter(torch.zeros(n_components, n_hidden))
        self.W_out_CM = nn.Parameter(torch.randn(n_components, n_hidden) * 0.1)
        self.b_out_C = nn.Parameter(torch.ones(n_components))

    def activations(self, x_BTH: Tensor) -> Tensor:
        """Return what the components read, (B, T, C)."""
        return x_BTH @ self.V_HC

    def raw_importances(self, acts_BTC: Tensor) -> Tensor:
        """Return the importances before their sigmoid, (B, T, C): any real number."""
        hidden_BTCM = functional.gelu(acts_BTC[..., None] * self.W_in_CM + self.b_in_CM)
        return (hidden_BTCM * self.W_out_CM).sum(dim=-1) + self.b_out_C

    def importances(self, x_BTH: Tensor) -> Tensor:
        """Return the causal importances for inputs, (B, T, C), from 0 to 1."""
        return lower_leaky(self.raw_importances(self.activations(x_BTH)))

    def delta(self, weight_OH: Tensor) -> Tensor:
        """Return what the components miss of the weight, (O, H)."""
        return weight_OH - (self.V_HC @ self.U_CO).T

    def masked(self, x_BTH: Tensor, *, output_BTO: Tensor, masks: Masks) -> Tensor:
        """Return what the module would write of its true output, with masks on its parts."""
        acts_BTC = self.activations(x_BTH)
        kept_BTO = (acts_BTC * masks.components_BTC) @ self.U_CO
        if isinstance(masks.delta_BT1, float) and masks.delta_BT1 == 0.0:
            return kept_BTO
        return kept_BTO + masks.delta_BT1 * (output_BTO - acts_BTC @ self.U_CO)


def lower_leaky(raw: Tensor) -> Tensor:
    """Clamp to 0..1; gradients leak below 0: the sigmoid of what masks are made of."""
    below = raw.clamp(max=0)
    return raw.clamp(0, 1) + LEAK * (below - below.detach())


def upper_leaky(raw: Tensor) -> Tensor:
    """Clamp below 0, slope `LEAK` above 1: the sigmoid of what is to be small."""
    return raw.clamp(0, 1) + LEAK * (raw - 1).clamp(min=0)


def linear_modules(model: LlamaForCausalLM) -> dict[str, nn.Linear]:
    """Return the modules that are decomposed, by dotted path: every q_proj and k_proj."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("q_proj", "k_proj"))
    }


@torch.no_grad()
def initial_components(
    model: LlamaForCausalLM, *, ids_BT: Tensor, sizes: Sizes
) -> dict[str, Components]:
    """Return components whose sum is the weight, for inputs like those of `ids_BT`.

    They are the singular directions of the weight in the metric of the inputs: activations are
    uncorrelated and of mean square 1, and the outputs they write are orthogonal. Components beyond
    the rank read random directions and write nothing yet.
    """
    inputs = read_inputs(model, ids_BT=ids_BT)
    made = {}
    for name, module in linear_modules(model).items():
        n_components = sizes.n_q if name.endswith("q_proj") else sizes.n_k
        V_HC, U_CO = _singular(module.weight, inputs[name].flatten(0, 1), n=n_components)
        made[name] = Components(V_HC, U_CO, n_hidden=sizes.n_hidden)
    return made


@torch.no_grad()
def read_inputs(model: LlamaForCausalLM, *, ids_BT: Tensor) -> dict[str, Tensor]:
    """Return what each decomposed module reads, (B, T, H), in a run of the untouched model."""
    return run_target(model, ids_BT=ids_BT)[1]


@torch.no_grad()
def run_target(model: LlamaForCausalLM, *, ids_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the untouched model's logits (B, T, words), and what each module reads."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str, x_BTH: Tensor, output_BTO: Tensor) -> Tensor:
        inputs[name] = x_BTH
        return output_BTO

    with _replaced_outputs(model, by=keep):
        logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits, inputs


def run_masked(
    model: LlamaForCausalLM,
    *,
    ids_BT: Tensor,
    components: dict[str, Components],
    masks: dict[str, Masks],
) -> tuple[Tensor, Tensor]:
    """Run the model on masked components, in all modules at once.

    Returns:
        Its logits (B, T, words); and, a mean over the modules, the squared error of their outputs
        over the squared outputs that they would have had for the inputs of this very run.
    """
    errors: list[Tensor] = []

    def mask(name: str, x_BTH: Tensor, output_BTO: Tensor) -> Tensor:
        masked_BTO = components[name].masked(x_BTH, output_BTO=output_BTO, masks=masks[name])
        error = (masked_BTO - output_BTO).square().mean()
        errors.append(error / output_BTO.detach().square().mean())
        return masked_BTO

    with _replaced_outputs(model, by=mask):
        logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits, torch.stack(errors).mean()


def divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Return the mean KL divergence of predictions from the target's, nats a token."""
    target_logp, logp = target_logits.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (target_logp.exp() * (target_logp - logp)).sum(dim=-1).mean()


@contextmanager
def _replaced_outputs(
    model: LlamaForCausalLM, *, by: Callable[[str, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """For a while, let `by(name, input, output)` say what the decomposed modules return."""

    def hook_of(name: str) -> Callable[..., Tensor]:
        return lambda _module, args, output_BTO: by(name, args[0], output_BTO)

    named = linear_modules(model).items()
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in named]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _singular(weight_OH: Tensor, x_NH: Tensor, *, n: int) -> tuple[Tensor, Tensor]:
    """Return n components V (H, n), U (n, O): see `initial_components`."""
    root_HH = _root_of_moment(x_NH)
    left_HR, size_R, right_RO = torch.linalg.svd(root_HH @ weight_OH.T, full_matrices=False)
    rank = min(n, *weight_OH.shape)
    V_HR = torch.linalg.solve(root_HH, left_HR[:, :rank])
    U_RO = size_R[:rank, None] * right_RO[:rank]
    spare_HS = functional.normalize(torch.randn(len(root_HH), n - rank), dim=0)
    spare_HS = torch.linalg.solve(root_HH, spare_HS)
    return torch.cat([V_HR, spare_HS], dim=1), functional.pad(U_RO, (0, 0, 0, n - rank))


def _root_of_moment(x_NH: Tensor) -> Tensor:
    """Return the symmetric root of the second moment, with a ridge so that it can be inverted."""
    moment_HH = x_NH.T @ x_NH / len(x_NH)
    ridge = 1e-3 * moment_HH.diagonal().mean()
    size_H, axes_HH = torch.linalg.eigh(moment_HH + ridge * torch.eye(len(moment_HH)))
    root_HH: Tensor = (axes_HH * size_H.sqrt()) @ axes_HH.T
    return root_HH
