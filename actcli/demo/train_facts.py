"""Make the built-in text model: `python -m actcli.demo.train_facts [--output DIR] [--seed N]`.

1. A word-level tokenizer is written from the exact vocabulary of the sentences.
2. A small Llama learns to predict the next word of generated sentences, packed into full rows.
3. The weights are stored as bfloat16, read back, and measured as stored: how many capitals they
   answer, and from which layer on the answer can be read.
4. Weights, config, tokenizer, model card and a sample text of other sentences are written.

Tensor legend: B batch, T tokens of a row.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actcli.demo.card_facts import model_card
from actcli.demo.facts_text import distinct_sentences, sentences, words
from actcli.demo.measure_facts import Figures, profile, shares_answered

log = logging.getLogger("train_facts")

ASSETS = Path(__file__).parent / "assets"
TEXT_SEED, N_TEXT_SENTENCES = 1_000_000, 1_500
SPECIAL = ("<unk>", "<bos>", "<eos>", "<pad>")


class Recipe(NamedTuple):
    """The choices of the optimisation."""

    n_steps: int = 4_000
    batch_size: int = 32
    n_tokens: int = 48
    """Tokens of a row; sentences are packed, so none is padding."""
    learning_rate: float = 1.5e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_norm: float = 1.0


class Shape(NamedTuple):
    """The size of the model."""

    hidden: int = 128
    n_layers: int = 8
    n_heads: int = 4
    n_kv_heads: int = 2
    intermediate: int = 352
    n_positions: int = 128


def main() -> None:
    """Read the command line and make the files."""
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    recipe = Recipe(n_steps=args.steps)
    make_assets(args.output, seed=args.seed, device=args.device, recipe=recipe)


def make_assets(output: Path, *, seed: int, device: str, recipe: Recipe) -> None:
    """Train, store, measure what is stored, and write all that ships under `output`."""
    folder, tokenizer = output / "facts", word_tokenizer()
    start = time.perf_counter()
    model, loss = train(tokenizer, shape=Shape(), recipe=recipe, seed=seed, device=device)
    seconds = time.perf_counter() - start
    trained = shares_answered(model, tokenizer=tokenizer)
    write_model(folder, model=model, tokenizer=tokenizer)
    stored = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    figures = Figures(
        trained=trained,
        stored=shares_answered(stored, tokenizer=tokenizer),
        profile=profile(stored, tokenizer=tokenizer),
        stored_bfloat16=shares_answered(stored.bfloat16(), tokenizer=tokenizer),
    )
    log.info("%.0f s, loss %.4f, %s", seconds, loss, figures)
    card = model_card(
        figures,
        config=model.config,
        n_parameters=model.num_parameters(),
        n_tokens=recipe.n_tokens,
        facts=_facts(recipe, seed=seed, device=device, loss=loss, seconds=seconds),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_text(output / "facts-text" / "sentences.txt")


def train(
    tokenizer: PreTrainedTokenizerFast,
    *,
    shape: Shape,
    recipe: Recipe,
    seed: int,
    device: str = "cpu",
) -> tuple[LlamaForCausalLM, float]:
    """Train a fresh float32 model; it comes back on the CPU, ready to be asked.

    Returns:
        The model, and its cross-entropy in nats, mean of the last hundred batches.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM(_config(tokenizer, shape=shape)).train()
    optimizer, schedule = _optimizer(model, recipe=recipe)
    losses: list[float] = []
    for ids_BT in islice(_batches(tokenizer, recipe=recipe, seed=seed), recipe.n_steps):
        loss = model(input_ids=ids_BT.to(device), labels=ids_BT.to(device)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            log.info("step %d of %d, loss %.4f", len(losses), recipe.n_steps, _last(losses))
    return model.cpu().eval(), _last(losses)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token a word, words parted by white space, `<bos>` before them."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos>:1 $B:1",
        special_tokens=[("<bos>", vocabulary["<bos>"])],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # not typed upstream
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=Shape().n_positions,
    )


def write_model(
    folder: Path, *, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write config, tokenizer and weights, these as bfloat16; the model itself stays as it is."""
    weights = {name: value.bfloat16() for name, value in model.state_dict().items()}
    halved = LlamaForCausalLM(model.config).bfloat16()
    halved.load_state_dict(weights)
    halved.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # The name that older releases know too; the new ones take both.
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_text(path: Path) -> None:
    """Write sentences of another seed than the model's, all different, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = distinct_sentences(seed=TEXT_SEED, count=N_TEXT_SENTENCES)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _config(tokenizer: PreTrainedTokenizerFast, *, shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.n_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _batches(tokenizer: PreTrainedTokenizerFast, *, recipe: Recipe, seed: int) -> Iterator[Tensor]:
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


def _optimizer(
    model: LlamaForCausalLM, *, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW, which decays the matrices only, and its learning rate over the steps."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    gammas = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gammas, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
    warmup = max(1, round(recipe.warmup_share * recipe.n_steps))

    def rate_at(step: int) -> float:
        """Rise linearly, then fall along a cosine to a fiftieth."""
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, recipe.n_steps - warmup))
        return 0.51 + 0.49 * math.cos(math.pi * share)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at)


def _facts(
    recipe: Recipe, *, seed: int, device: str, loss: float, seconds: float
) -> dict[str, str]:
    """Return how the model was made, as the rows of a table."""
    tokens = recipe.n_steps * recipe.batch_size * recipe.n_tokens
    threads = f", {torch.get_num_threads()} thread(s)" if device == "cpu" else ""
    return {
        "Seed": f"{seed}; of the sample text {TEXT_SEED}",
        "Machine": f"{device}{threads}; torch {torch.__version__}",
        "Training tokens": f"{tokens:,}: {recipe.n_steps:,} batches of {recipe.batch_size} rows "
        f"of {recipe.n_tokens}",
        "Optimisation": f"AdamW, betas {recipe.betas}, weight decay {recipe.weight_decay:g} on "
        f"matrices, gradient norm at most {recipe.gradient_norm:g}; float32",
        "Learning rate": f"{recipe.learning_rate:g} at most; rises over {recipe.warmup_share:.0%} "
        "of the steps, then falls along a cosine to a fiftieth",
        "Last training loss": f"{loss:.3f} nats a token (much of a sentence is drawn at random)",
        "Wall time": f"{seconds:.0f} s",
    }


def _last(losses: list[float]) -> float:
    recent = losses[-100:]
    return sum(recent) / len(recent)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m actcli.demo.train_facts", description=__doc__)
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and sentences")
    parser.add_argument("--device", default="cpu", help="where to train")
    parser.add_argument("--steps", type=int, default=Recipe().n_steps, help="batches to learn")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; changes rounding")
    return parser.parse_args()


if __name__ == "__main__":
    main()
