"""What a decomposition of the built-in text model leaves of it, and how sparse it is.

Tensor legend: B batch, T tokens, C components.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from actcli.demo.measure_facts import CAPITAL
from actcli.demo.spd import (
    Components,
    Masks,
    divergence,
    linear_modules,
    run_masked,
    run_target,
)

ACTIVE = 0.01
"""A component counts as active on a token when its causal importance is above this."""


class ModuleFigures(NamedTuple):
    """What the card says of one module."""

    n_components: int
    delta: float
    """The norm (Frobenius) of the delta over the weight's."""
    n_active: float
    """Components active on a token, mean."""
    total_importance: float
    """Sum of the importances on a token, mean."""
    n_ever_active: int
    """Components active on any token of the text."""


class KeptFigures(NamedTuple):
    """What the card says of runs that keep only some of the components, and no delta."""

    divergence: float
    """KL divergence from the target's predictions, nats a token."""
    output_error: float
    """Squared error of the modules' outputs over the squared outputs, mean over the modules."""
    capitals: float
    """Share of the capitals answered."""


class SpdFigures(NamedTuple):
    """All that the card says of the decomposition."""

    modules: dict[str, ModuleFigures]
    kept: dict[str, KeptFigures]
    """By what is kept: the keys of `KEPT`."""


def measure(
    model: LlamaForCausalLM,
    components: dict[str, Components],
    *,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Tensor],
) -> SpdFigures:
    """Measure a decomposition on batches of token ids (B, T) of one size, and on the capitals."""
    differences = [_differences(model, components, ids_BT=ids_BT) for ids_BT in batches]
    found = {}
    for kept, each in zip(KEPT, torch.tensor(differences).mean(dim=0).tolist(), strict=True):
        share = share_of_capitals(model, components, tokenizer=tokenizer, kept=kept)
        found[kept] = KeptFigures(divergence=each[0], output_error=each[1], capitals=share)
    return SpdFigures(modules=module_figures(model, components, batches=batches), kept=found)


@torch.inference_mode()
def module_figures(
    model: LlamaForCausalLM, components: dict[str, Components], *, batches: Sequence[Tensor]
) -> dict[str, ModuleFigures]:
    """Measure each module: its delta, and the importances that the texts give."""
    runs = [importances_of(model, components, ids_BT=ids_BT) for ids_BT in batches]
    found = {}
    for name, module in linear_modules(model).items():
        importances_BTC = torch.cat([run[name] for run in runs])
        is_active_BTC = importances_BTC > ACTIVE
        delta = components[name].delta(module.weight)
        found[name] = ModuleFigures(
            n_components=importances_BTC.shape[-1],
            delta=(delta.norm() / module.weight.norm()).item(),
            n_active=is_active_BTC.float().sum(dim=-1).mean().item(),
            total_importance=importances_BTC.sum(dim=-1).mean().item(),
            n_ever_active=int(is_active_BTC.flatten(0, 1).any(dim=0).sum()),
        )
    return found


@torch.inference_mode()
def importances_of(
    model: LlamaForCausalLM, components: dict[str, Components], *, ids_BT: Tensor
) -> dict[str, Tensor]:
    """Return the causal importances (B, T, C) of each module, in a run of the untouched model."""
    _, inputs = run_target(model, ids_BT=ids_BT)
    return {name: each.importances(inputs[name]) for name, each in components.items()}


@torch.inference_mode()
def share_of_capitals(
    model: LlamaForCausalLM,
    components: dict[str, Components],
    *,
    tokenizer: PreTrainedTokenizerBase,
    kept: str,
) -> float:
    """Return for which share of the countries the likeliest next word is the capital."""
    texts = [CAPITAL.prompt.format_map(row._asdict()) for row in CAPITAL.rows]
    ids_BT = tokenizer(texts, return_tensors="pt").input_ids
    vocabulary = tokenizer.get_vocab()
    answer_B = torch.tensor([vocabulary[answer] for answer in CAPITAL.answers])
    logits, _ = run_kept(model, components, ids_BT=ids_BT, kept=kept)
    return (logits[:, -1].argmax(dim=-1) == answer_B).float().mean().item()


@torch.inference_mode()
def run_kept(
    model: LlamaForCausalLM, components: dict[str, Components], *, ids_BT: Tensor, kept: str
) -> tuple[Tensor, Tensor]:
    """Run the model so that every module keeps only those components; no delta.

    Returns:
        The logits, and the relative squared error of the outputs: see `run_masked`.
    """
    importances = importances_of(model, components, ids_BT=ids_BT)
    masks = {name: Masks(KEPT[kept](each)) for name, each in importances.items()}
    return run_masked(model, ids_BT=ids_BT, components=components, masks=masks)


@torch.inference_mode()
def _differences(
    model: LlamaForCausalLM, components: dict[str, Components], *, ids_BT: Tensor
) -> list[tuple[float, float]]:
    """Return, for each of `KEPT`, the KL divergence in nats a token and the outputs' error."""
    target_logits, inputs = run_target(model, ids_BT=ids_BT)
    importances = {name: each.importances(inputs[name]) for name, each in components.items()}
    found = []
    for keep in KEPT.values():
        masks = {name: Masks(keep(each)) for name, each in importances.items()}
        logits, error = run_masked(model, ids_BT=ids_BT, components=components, masks=masks)
        found.append((divergence(target_logits, logits).item(), error.item()))
    return found


def _active(importances_BTC: Tensor) -> Tensor:
    return (importances_BTC > ACTIVE).float()


def _shuffled(importances_BTC: Tensor) -> Tensor:
    """Keep, on each token, as many components as are active there, but any; always the same."""
    drawn_BTC = torch.rand(importances_BTC.shape, generator=torch.Generator().manual_seed(0))
    return _active(importances_BTC).gather(-1, drawn_BTC.argsort(dim=-1))


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "all components": torch.ones_like,
    f"the active ones (importance above {ACTIVE:g})": _active,
    "each as far as it is important": torch.clone,
    "as many as are active, chosen at random": _shuffled,
    "none": torch.zeros_like,
}
"""Which components a run may keep, from their importances (B, T, C)."""
