"""Decompose the built-in text model: `python -m actcli.demo.train_facts_spd [--output DIR]`.

1. The weights of every query and key projection are written as sums of rank-one components.
2. The components learn, on generated sentences, to be needed seldom, while the model that runs on
   them, masked at random wherever they are not needed, predicts what the untouched model predicts.
3. They are stored as float16, read back, and measured as stored.
4. Components and importance functions, a config in the form of an SPD run, and a card are written.

The target's own weights are not stored a second time: the config names `demo://facts`.

Tensor legend: B batch, T tokens of a row; the others as in `actcli.demo.spd`.
"""

import argparse
import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from actcli.demo.card_spd import spd_card
from actcli.demo.facts_text import sentences
from actcli.demo.measure_spd import measure
from actcli.demo.spd import (
    Components,
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
from actcli.demo.write_spd import read_run, write_run

log = logging.getLogger("train_facts_spd")

ASSETS = Path(__file__).parent / "assets"
MEASURE_SEED, N_MEASURED_BATCHES = 1_000_001, 8


class Recipe(NamedTuple):
    """The choices of the optimisation."""

    n_steps: int = 1_400
    batch_size: int = 10
    n_tokens: int = 48
    """Tokens of a row, as the target learnt them."""
    learning_rate: float = 5e-3
    warmup_share: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_norm: float = 1.0
    faithfulness: float = 10.0
    """Coefficient of the squared delta over the squared weight, mean over the modules."""
    local: float = 0.5
    """Coefficient of the modules' own relative squared error; that of the KL divergence is 1."""
    minimality: float = 1e-3
    """Coefficient of the sum of importances to the power, over all modules, mean over tokens."""
    power: tuple[float, float] = (1.0, 0.5)
    """At the first and at the last step."""


class Loss(NamedTuple):
    """The parts of the loss, without their coefficients."""

    divergence: Tensor
    local: Tensor
    faithfulness: Tensor
    minimality: Tensor

    def total(self, recipe: Recipe) -> Tensor:
        """Return the weighted sum."""
        return (
            self.divergence
            + recipe.local * self.local
            + recipe.faithfulness * self.faithfulness
            + recipe.minimality * self.minimality
        )


def main() -> None:
    """Read the command line and make the files."""
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    make_assets(args.output, seed=args.seed, recipe=Recipe(n_steps=args.steps))


def make_assets(output: Path, *, seed: int, recipe: Recipe) -> None:
    """Decompose, store, measure what is stored, and write all that ships under `output`."""
    folder, sizes = output / "facts-spd", Sizes()
    model, tokenizer = load_target()
    start, start_cpu = time.perf_counter(), time.process_time()
    components, losses = train(model, tokenizer, sizes=sizes, recipe=recipe, seed=seed)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    write_run(folder, components, sizes=sizes, fields=_config_fields(recipe, seed=seed))
    batches = measured_batches(tokenizer)
    figures = measure(model, read_run(folder), tokenizer=tokenizer, batches=batches)
    log.info("%.0f s (%.0f s of one CPU), %s", seconds, cpu_seconds, figures.kept)
    facts = _facts(recipe, sizes=sizes, seed=seed, losses=losses)
    facts["Time"] = f"{seconds:.0f} s, {cpu_seconds:.0f} s of one CPU"
    n_measured = sum(ids_BT.numel() for ids_BT in batches)
    card = spd_card(figures, n_measured=n_measured, facts=facts)
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_target() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Return the built-in text model, computed in float32, and its tokenizer."""
    folder = ASSETS / "facts"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def measured_batches(tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Return the batches of token ids (B, T) that the card's figures are of."""
    rows = token_rows(tokenizer, recipe=Recipe(), seed=MEASURE_SEED)
    return list(islice(rows, N_MEASURED_BATCHES))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sizes: Sizes,
    recipe: Recipe,
    seed: int,
) -> tuple[dict[str, Components], list[float]]:
    """Decompose the query and key projections of a frozen model.

    Returns:
        The components by the dotted path of their module, and the loss of every step.
    """
    torch.manual_seed(seed)
    model.requires_grad_(False)
    rows = token_rows(tokenizer, recipe=recipe, seed=seed)
    components = initial_components(model, ids_BT=torch.cat(list(islice(rows, 8))), sizes=sizes)
    weights = [weight for each in components.values() for weight in each.parameters()]
    optimizer = torch.optim.Adam(weights, lr=recipe.learning_rate, betas=recipe.betas)
    losses: list[float] = []
    for step, ids_BT in enumerate(islice(rows, recipe.n_steps)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step / recipe.n_steps, recipe=recipe)
        loss = loss_of(model, components, ids_BT=ids_BT, power=_power(step, recipe=recipe))
        total = loss.total(recipe)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]  # not typed upstream
        torch.nn.utils.clip_grad_norm_(weights, recipe.gradient_norm)
        optimizer.step()
        losses.append(total.item())
        if (step + 1) % 100 == 0:
            _report(step + 1, recipe=recipe, loss=loss)
    return components, losses


def loss_of(
    model: LlamaForCausalLM, components: dict[str, Components], *, ids_BT: Tensor, power: float
) -> Loss:
    """Return the loss on a batch; masks are drawn anew from torch's generator."""
    target_logits, inputs = run_target(model, ids_BT=ids_BT)
    masks, importance = {}, torch.zeros(())
    for name, each in components.items():
        raw_BTC = each.raw_importances(each.activations(inputs[name]))
        masks[name] = _drawn_masks(lower_leaky(raw_BTC))
        # The small number keeps the slope of the power finite at 0.
        importance = importance + (upper_leaky(raw_BTC) + 1e-6).pow(power).sum(-1).mean()
    logits, local = run_masked(model, ids_BT=ids_BT, components=components, masks=masks)
    return Loss(
        divergence=divergence(target_logits, logits),
        local=local,
        faithfulness=_relative_delta(model, components),
        minimality=importance,
    )


def token_rows(
    tokenizer: PreTrainedTokenizerBase, *, recipe: Recipe, seed: int
) -> Iterator[Tensor]:
    """Yield batches of token ids (B, T): rows start at `<bos>` and are full of sentences."""
    id_of = tokenizer.get_vocab()
    texts = sentences(seed=seed)
    while True:
        rows = []
        for _ in range(recipe.batch_size):
            row: list[int] = []
            while len(row) < recipe.n_tokens:
                row += [id_of[word] for word in ("<bos>", *next(texts).split(), "<eos>")]
            rows.append(row[: recipe.n_tokens])
        yield torch.tensor(rows)


def _drawn_masks(importances_BTC: Tensor) -> Masks:
    """Draw each mask evenly between its importance and 1, and the delta's between 0 and 1.

    Every other row gets the least that this allows: the importances alone, and no delta.
    """
    is_drawn_B11 = (torch.arange(len(importances_BTC)) % 2)[:, None, None].float()
    raised_BTC = (1 - importances_BTC) * torch.rand_like(importances_BTC) * is_drawn_B11
    delta_BT1 = torch.rand(*importances_BTC.shape[:2], 1) * is_drawn_B11
    return Masks(importances_BTC + raised_BTC, delta_BT1)


def _relative_delta(model: LlamaForCausalLM, components: dict[str, Components]) -> Tensor:
    """Return the squared delta over the squared weight, mean over the modules."""
    parts = [
        components[name].delta(module.weight).square().sum() / module.weight.square().sum()
        for name, module in linear_modules(model).items()
    ]
    return torch.stack(parts).mean()


def _power(step: int, *, recipe: Recipe) -> float:
    first, last = recipe.power
    return first + (last - first) * step / recipe.n_steps


def _rate(share: float, *, recipe: Recipe) -> float:
    """Rise linearly, then fall along a cosine to a fiftieth; `share` of the steps are done."""
    if share < recipe.warmup_share:
        return (share + 0.01) / (recipe.warmup_share + 0.01)
    done = (share - recipe.warmup_share) / (1 - recipe.warmup_share)
    return 0.51 + 0.49 * math.cos(math.pi * done)


def _report(step: int, *, recipe: Recipe, loss: Loss) -> None:
    log.info(
        "step %d of %d: KL %.4f, local %.4f, faithfulness %.5f, minimality %.1f",
        step,
        recipe.n_steps,
        *(part.item() for part in loss),
    )


def _config_fields(recipe: Recipe, *, seed: int) -> dict[str, int]:
    return {
        "seed": seed,
        "n_steps": recipe.n_steps,
        "batch_size": recipe.batch_size,
        "n_tokens": recipe.n_tokens,
    }


def _facts(recipe: Recipe, *, sizes: Sizes, seed: int, losses: list[float]) -> dict[str, str]:
    """Return how the decomposition was made, as the rows of a table."""
    recent = losses[-100:]
    return {
        "Seed": f"{seed}; of the text measured on {MEASURE_SEED}",
        "Machine": f"cpu, {torch.get_num_threads()} thread(s); torch {torch.__version__}",
        "Components": f"{sizes.n_q} in each query projection, {sizes.n_k} in each key projection; "
        f"{sizes.n_hidden} hidden units in each importance function",
        "Training": f"{recipe.n_steps:,} batches of {recipe.batch_size} rows of {recipe.n_tokens} "
        f"tokens; Adam, betas {recipe.betas}, gradient norm at most {recipe.gradient_norm:g}",
        "Learning rate": f"{recipe.learning_rate:g} at most; rises over {recipe.warmup_share:.0%} "
        "of the steps, then falls along a cosine to a fiftieth",
        "Coefficients": f"KL 1, outputs {recipe.local:g} (relative), delta "
        f"{recipe.faithfulness:g} (relative), importances {recipe.minimality:g} with a power from "
        f"{recipe.power[0]:g} to {recipe.power[1]:g}",
        "Last training loss": f"{sum(recent) / len(recent):.4f}, mean of the last {len(recent)}",
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m actcli.demo.train_facts_spd", description=__doc__
    )
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of components and sentences")
    parser.add_argument("--steps", type=int, default=Recipe().n_steps, help="batches to learn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
