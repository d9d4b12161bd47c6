"""Train the built-in transcoders: `python -m actcli.demo.train_facts_transcoders [--output DIR]`.

1. `demo://facts` runs over generated sentences; what the MLP of layer 4 reads and adds is captured.
2. Two transcoders of it learn on the same tokens: a Matryoshka BatchTopK one that reads the input
   with gain, and a JumpReLU one that reads it without.
3. Each is stored in its format, read back, and measured as stored on sentences of another seed.
4. A card is written beside each.

Tensor legend: N tokens, H width that is read, O width that is written.
"""

import argparse
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from actcli.builtin import TEXT_MODEL
from actcli.demo.card_transcoders import gemma_scope_card, matryoshka_card
from actcli.demo.measure_transcoders import TranscoderFigures, measure_transcoder
from actcli.demo.transcoders_files import write_gemma_scope, write_run_folder
from actcli.demo.transcoders_tokens import (
    GAINED,
    LAYER,
    NORMED,
    WRITTEN,
    Tokens,
    capture_tokens,
)
from actcli.demo.transcoders_train import Recipe, Trained, train_jumprelu, train_matryoshka
from actcli.saes import open_dictionary

log = logging.getLogger("train_facts_transcoders")

ASSETS = Path(__file__).parent / "assets"
MATRYOSHKA, GEMMA_SCOPE = "facts-matryoshka", "facts-gemma-scope"
MEASURE_SEED, N_MEASURED_SENTENCES = 1_000_001, 8_000
STORED = torch.bfloat16
"""The Matryoshka transcoder's dtype; the other's is float32, as the format has it."""

_TOKENS_AT_ONCE = 4096


def main() -> None:
    """Read the command line and make the files."""
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    make_assets(args.output, seed=args.seed, recipe=Recipe(n_steps=args.steps))


def make_assets(
    output: Path, *, seed: int, recipe: Recipe, n_measured: int = N_MEASURED_SENTENCES
) -> None:
    """Train, store, measure what is stored on some sentences, and write all under `output`."""
    tokens = capture_tokens(seed=seed, n_sentences=recipe.n_sentences)
    fresh = capture_tokens(seed=MEASURE_SEED, n_sentences=n_measured)
    log.info("%d tokens to learn, %d to measure", len(tokens), len(fresh))
    facts = _facts(recipe, seed=seed, n_tokens=len(tokens))
    trained = train_matryoshka(tokens, recipe=recipe, seed=seed)
    figures = store_matryoshka(output / MATRYOSHKA, trained, fresh=fresh, recipe=recipe, seed=seed)
    card = matryoshka_card(figures, facts=facts | _own_facts(trained, _matryoshka_choices(recipe)))
    (output / MATRYOSHKA / "README.md").write_text(card, encoding="utf-8")
    trained = train_jumprelu(tokens, recipe=recipe, seed=seed)
    figures = store_jumprelu(output / GEMMA_SCOPE, trained, fresh=fresh)
    card = gemma_scope_card(figures, facts=facts | _own_facts(trained, _jumprelu_choices(recipe)))
    (output / GEMMA_SCOPE / "README.md").write_text(card, encoding="utf-8")


def store_matryoshka(
    folder: Path, trained: Trained, *, fresh: Tokens, recipe: Recipe, seed: int
) -> TranscoderFigures:
    """Write a Matryoshka run folder, and measure what it holds on fresh tokens."""
    write_run_folder(
        folder,
        trained.weights,
        dtype=STORED,
        config=_config(recipe, seed=seed, width=len(trained.weights.b_dec_O)),
        training_log=_training_log(trained, n_steps=recipe.n_steps),
    )
    return measure_transcoder(
        open_dictionary(str(folder)),
        fresh.sites[GAINED],
        fresh.sites[WRITTEN],
        is_bos_N=fresh.is_bos_N,
    )


def store_jumprelu(folder: Path, trained: Trained, *, fresh: Tokens) -> TranscoderFigures:
    """Write a Gemma Scope folder, named by the L0 on fresh tokens, and measure what it holds."""
    x_NH, y_NO = fresh.sites[NORMED], fresh.sites[WRITTEN]
    parts = torch.split(x_NH, _TOKENS_AT_ONCE)
    n_active = sum(int((trained.weights.acts(part.float()) > 0).sum()) for part in parts)
    write_gemma_scope(folder, trained.weights, layer=LAYER, mean_l0=n_active / len(x_NH))
    return measure_transcoder(open_dictionary(str(folder)), x_NH, y_NO, is_bos_N=fresh.is_bos_N)


def _config(recipe: Recipe, *, seed: int, width: int) -> dict[str, Any]:
    """Return what is true of the run, by the keys of a Matryoshka run folder."""
    return {
        "seed": seed,
        "model_name": TEXT_MODEL,
        "layer": LAYER,
        "source_layer": LAYER,
        "target_layer": LAYER,
        "source_site": "mlp_in",
        "target_site": "mlp_out",
        "source_hook_point": f"blocks.{LAYER}.hook_mlp_in",
        "target_hook_point": f"blocks.{LAYER}.hook_mlp_out",
        "act_size": width,
        "source_act_size": width,
        "target_act_size": width,
        "dict_size": recipe.n_features,
        "prefix_sizes": list(recipe.prefix_sizes),
        "top_k": recipe.k,
        "top_k_aux": recipe.dead.k,
        "aux_penalty": recipe.dead.penalty,
        "n_batches_to_dead": recipe.dead.n_batches,
        "l1_coeff": 0,
        "input_unit_norm": False,
        "sae_type": "matryoshka-transcoder",
        "dtype": str(STORED),
        "model_dtype": "torch.bfloat16",
        "device": "cpu",
        "batch_size": recipe.batch_size,
        "num_tokens": recipe.n_steps * recipe.batch_size,
        "lr": recipe.learning_rate,
        "min_lr": recipe.lowest_rate,
        "warmup_steps": recipe.warmup_steps,
        "beta1": recipe.betas[0],
        "beta2": recipe.betas[1],
        "max_grad_norm": recipe.gradient_norm,
        "name": MATRYOSHKA,
    }


def _training_log(trained: Trained, *, n_steps: int) -> dict[str, Any]:
    """Return the last step's figures; `dead_features` sums silent batches, as that format does."""
    metrics = {
        "loss": trained.losses[-1],
        "l2_loss": trained.last.l2,
        "l0_norm": trained.last.l0,
        "fvu": trained.last.fvu,
        "dead_features": float(trained.learner.firing.n_silent_D.sum()),
    }
    timestamp = datetime.now(UTC).isoformat(timespec="seconds")
    return {"step": n_steps, "metrics": metrics, "timestamp": timestamp}


def _facts(recipe: Recipe, *, seed: int, n_tokens: int) -> dict[str, str]:
    """Return how both were made, as the rows of a table."""
    return {
        "Seed": f"{seed}; of the sentences measured on {MEASURE_SEED}",
        "Machine": f"cpu, {torch.get_num_threads()} thread(s); torch {torch.__version__}",
        "Tokens": f"{n_tokens:,} of {recipe.n_sentences:,} sentences, kept in memory",
        "Training": f"{recipe.n_steps:,} batches of {recipe.batch_size:,} of these tokens, drawn "
        f"with repetition; Adam, betas {recipe.betas}, gradient norm at most "
        f"{recipe.gradient_norm:g}",
        "Learning rate": f"{recipe.learning_rate:g} at most; rises over {recipe.warmup_steps} "
        f"steps, then falls along a cosine to {recipe.lowest_rate:g}",
        "At first": f"every feature is above the threshold, {recipe.start:g}, on about "
        f"{recipe.share:.2%} of the tokens",
        "Dead features": f"after {recipe.dead.n_batches} silent batches; {recipe.dead.k} of them a "
        f"token learn the residual, coefficient {recipe.dead.penalty:g}",
    }


def _own_facts(trained: Trained, choices: str) -> dict[str, str]:
    """Return the rows that differ."""
    recent = trained.losses[-100:]
    return {
        "Sparsity": choices,
        "Last training loss": f"{sum(recent) / len(recent):.4f}, mean of the last {len(recent)}",
        "Time": f"{trained.seconds:.0f} s",
    }


def _matryoshka_choices(recipe: Recipe) -> str:
    return f"{recipe.k} activations a token are kept, on average over a batch"


def _jumprelu_choices(recipe: Recipe) -> str:
    return (
        f"L0 aimed at {recipe.target_l0:g}, coefficient {recipe.sparsity:g}; "
        f"rectangle {recipe.bandwidth:g} wide"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m actcli.demo.train_facts_transcoders", description=__doc__
    )
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sentences and the start")
    parser.add_argument("--steps", type=int, default=Recipe().n_steps, help="batches to learn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
