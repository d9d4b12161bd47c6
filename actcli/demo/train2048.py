"""Make the built-in model and data: `python -m actcli.demo.train2048 [--out DIR] [--seed N]`.

1. The teacher plays games that are held out; some of their moves become the shipped steps.
2. The teacher plays training games, with some random moves mixed in, and the model learns.
3. Round by round the model plays, the teacher says what it would have done, and the model learns
   from that too: so it also knows the boards that its own mistakes lead to.
4. The model is measured on the held-out steps and in fresh games; weights, config, steps and the
   model card are written.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from actcli.demo.card2048 import model_card
from actcli.demo.learn2048 import Learner, Lessons, Recipe, join, lessons_on
from actcli.demo.measure2048 import measure
from actcli.demo.play2048 import distracted, greedy, positions_from, seeds_from, teacher
from actcli.demo.steps2048 import Rows, teacher_games, thinned
from actcli.models.encoder2048 import Encoder2048, EncoderConfig

log = logging.getLogger("train2048")

ASSETS = Path(__file__).parent / "assets"
N_THREADS = 2

CONFIG = EncoderConfig(
    input_vocab_size=17,
    hidden_size=96,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=192,
    layer_norm_eps=1e-6,
    head_type="action_policy",
)

HELD_OUT_SEED, TEACHER_SEED, STUDENT_SEED, SCORE_SEED = 0, 10_000_000, 20_000_000, 30_000_000


class Work(NamedTuple):
    """How much of everything; `scaled` makes a short trial of it."""

    n_held_out_games: int = 64
    n_held_out_rows: int = 16_384
    n_parallel: int = 48
    n_teacher_positions: int = 200_000
    slip_share: float = 0.05
    n_rounds: int = 4
    n_round_positions: int = 50_000
    n_first_steps: int = 3_000
    n_round_steps: int = 750
    n_score_games: int = 256

    @property
    def n_steps(self) -> int:
        """Optimisation steps of the first lesson and of all rounds."""
        return self.n_first_steps + self.n_rounds * self.n_round_steps

    def scaled(self, scale: float) -> "Work":
        """Return the work with training positions and steps multiplied by `scale`."""
        return self._replace(
            **{
                name: max(1, round(getattr(self, name) * scale))
                for name in ("n_teacher_positions", "n_round_positions", "n_first_steps")
            },
            n_round_steps=max(1, round(self.n_round_steps * scale)),
        )


class Clock:
    """Wall time of each named stage, in seconds; a stage may be entered again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        log.info("%s: %.0f s so far", name, self.seconds[name])


def main() -> None:
    """Read the command line and make the files."""
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(N_THREADS)
    make_assets(args.out, seed=args.seed, work=Work().scaled(args.scale))


def make_assets(out: Path, *, seed: int, work: Work) -> None:
    """Play, train, measure and write."""
    clock = Clock()
    with clock.stage("play the held-out games"):
        rows, teacher_scores_G = teacher_games(
            seeds_from(HELD_OUT_SEED, count=work.n_held_out_games)
        )
        held_out = thinned(rows, n_rows=work.n_held_out_rows)
    model = train(seed=seed, work=work, clock=clock)
    with clock.stage("measure"):
        figures = measure(
            model,
            held_out=held_out,
            teacher_scores_G=teacher_scores_G,
            first_seed=SCORE_SEED,
            n_games=work.n_score_games,
        )
    facts = _facts(work, seed=seed, seconds_by_stage=clock.seconds)
    card = model_card(
        figures,
        config=CONFIG,
        n_parameters=sum(weight.numel() for weight in model.parameters()),
        facts=facts,
    )
    write_assets(out, model=model, held_out=held_out, card=card)


def train(*, seed: int, work: Work, clock: Clock) -> Encoder2048:
    """Train a fresh model on the teacher's games and then on its own, judged by the teacher."""
    torch.manual_seed(seed)
    model = Encoder2048(CONFIG)
    learner = Learner(model, recipe=Recipe(), n_steps=work.n_steps, seed=seed)
    with clock.stage("play and judge training games"):
        lessons = _lessons_of_teacher(work, seed=seed)
    with clock.stage("train"):
        loss = learner.study(lessons, n_steps=work.n_first_steps)
    for number in range(work.n_rounds):
        log.info("round %d, loss %.4f", number + 1, loss)
        with clock.stage("play and judge training games"):
            lessons = join([lessons, _lessons_of_student(model, work=work, number=number)])
        with clock.stage("train"):
            loss = learner.study(lessons, n_steps=work.n_round_steps)
    log.info("last loss %.4f", loss)
    return model.eval()


def write_assets(out: Path, *, model: Encoder2048, held_out: Rows, card: str) -> None:
    """Write `2048/` (config, weights, card) and `2048-steps/` (steps.npy) under `out`."""
    model_dir, steps_dir = out / "2048", out / "2048-steps"
    for folder in (model_dir, steps_dir):
        folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(CONFIG.model_dump(exclude_none=True), indent=2) + "\n"
    (model_dir / "config.json").write_text(config)
    save_file(model.state_dict(), model_dir / "model.safetensors")
    (model_dir / "model.safetensors").chmod(0o644)
    (model_dir / "README.md").write_text(card)
    np.save(steps_dir / "steps.npy", held_out)


def _lessons_of_teacher(work: Work, *, seed: int) -> Lessons:
    rng = np.random.default_rng(seed)
    player = distracted(teacher, rng=rng, share=work.slip_share)
    seeds_G = seeds_from(TEACHER_SEED, count=work.n_parallel)
    return lessons_on(positions_from(player, seeds_G=seeds_G, n_positions=work.n_teacher_positions))


def _lessons_of_student(model: Encoder2048, *, work: Work, number: int) -> Lessons:
    seeds_G = seeds_from(STUDENT_SEED + number * 1_000_000, count=work.n_parallel)
    return lessons_on(
        positions_from(greedy(model), seeds_G=seeds_G, n_positions=work.n_round_positions)
    )


def _facts(work: Work, *, seed: int, seconds_by_stage: dict[str, float]) -> dict[str, str]:
    """Return how the model was made, as the rows of a table."""
    recipe = Recipe()
    positions = work.n_teacher_positions + work.n_rounds * work.n_round_positions
    return {
        "Seed": str(seed),
        "Machine": f"{torch.get_num_threads()} CPU cores, no GPU; torch {torch.__version__}",
        "Boards to learn from": f"{positions:,}, of which "
        f"{work.n_rounds * work.n_round_positions:,} met by the model in {work.n_rounds} rounds",
        "Optimisation": f"Adam, {work.n_steps:,} batches of {recipe.batch_size}, no weight decay",
        "Learning rate": f"{recipe.learning_rate:g}, gammas {recipe.gamma_rate_factor:g} times "
        "that; rises, then falls along a cosine",
        "Held-out games": f"{work.n_held_out_games}; of their moves {work.n_held_out_rows:,} kept",
    } | {f"Wall time, {stage}": f"{seconds:.0f} s" for stage, seconds in seconds_by_stage.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m actcli.demo.train2048", description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and slips")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work, for trials")
    return parser.parse_args()


if __name__ == "__main__":
    main()
