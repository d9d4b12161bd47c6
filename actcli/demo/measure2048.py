"""The figures of the model card, measured on held-out boards and fresh games.

Tensor legend: N boards, T tokens, H hidden, M moves, L layers.
"""

from functools import partial
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from actcli.demo.game2048 import unpack
from actcli.demo.play2048 import final_scores, greedy, greedy_moves, random_player, seeds_from
from actcli.demo.steps2048 import Rows, legal_of
from actcli.models.encoder2048 import MOVES, Encoder2048

THRESHOLD = 6.0
N_OUTLIER_BOARDS = 2048
NORMS = {"attn_norm": "attn_norm", "mlp_input": "mlp_norm"}


class Scores(BaseModel):
    """Final scores of a number of games."""

    n_games: int
    mean: float
    standard_error: float
    """Standard deviation over the square root of the number of games."""


class Agreement(BaseModel):
    """How often the model's best legal move is the teacher's."""

    n_boards: int
    share: float
    chance: float
    """Mean of 1 / (legal moves): what a random legal move reaches."""
    fixed_order: str
    """The order of preference of moves that agrees most when its first legal move is played."""
    fixed_order_share: float


class GammaRange(BaseModel):
    """One RMSNorm's weights."""

    module: str
    lowest: float
    mean: float
    highest: float
    n_exactly_one: int
    n_weights: int


class LayerOutliers(BaseModel):
    """Elements beyond the threshold in one layer."""

    layer: int
    share: float
    largest: float


class Outliers(BaseModel):
    """Elements whose magnitude is beyond `THRESHOLD`, at one site, over all layers."""

    site: str
    share: float
    layers: list[LayerOutliers]
    share_by_dim: dict[int, float]
    """Hidden dimension -> its share of the outliers; only those that have any, largest first."""


class Figures(BaseModel):
    """Everything that the model card states about the trained model."""

    agreement: Agreement
    greedy_scores: Scores
    random_scores: Scores
    teacher_scores: Scores
    gammas: list[GammaRange]
    outliers: list[Outliers]


def measure(
    model: Encoder2048,
    *,
    held_out: Rows,
    teacher_scores_G: NDArray[np.int64],
    first_seed: int,
    n_games: int,
) -> Figures:
    """Measure a trained model; `first_seed` and on are seeds of games that nobody trained on."""
    seeds_G = seeds_from(first_seed, count=n_games)
    at_random = random_player(np.random.default_rng(first_seed))
    return Figures(
        agreement=agreement(model, rows=held_out),
        greedy_scores=summary(final_scores(greedy(model), seeds_G=seeds_G)),
        random_scores=summary(final_scores(at_random, seeds_G=seeds_G)),
        teacher_scores=summary(teacher_scores_G),
        gammas=gamma_ranges(model),
        outliers=outliers(model, rows=held_out),
    )


def agreement(model: nn.Module, *, rows: Rows) -> Agreement:
    """Compare the model's best legal move with the move that the teacher played."""
    legal_NM = legal_of(rows)
    moves_N = greedy_moves(model, boards_G=rows["board"], legal_GM=legal_NM)
    order_shares = {
        order: _share_of_order(order, legal_NM=legal_NM, played_N=rows["move_dir"])
        for order in permutations(range(len(MOVES)))
    }
    order = max(order_shares, key=order_shares.__getitem__)
    return Agreement(
        n_boards=len(rows),
        share=float((moves_N == rows["move_dir"]).mean()),
        chance=float((1 / legal_NM.sum(axis=1)).mean()),
        fixed_order=", ".join(MOVES[move] for move in order),
        fixed_order_share=order_shares[order],
    )


def summary(scores_G: NDArray[np.int64]) -> Scores:
    """Return the mean score and its standard error."""
    error = scores_G.std(ddof=1) / len(scores_G) ** 0.5
    return Scores(n_games=len(scores_G), mean=float(scores_G.mean()), standard_error=float(error))


def gamma_ranges(model: nn.Module) -> list[GammaRange]:
    """Describe the weights of every RMSNorm."""
    return [
        _gamma_range(name, weight=norm.weight.detach())
        for name, norm in model.named_modules()
        if isinstance(norm, nn.RMSNorm)
    ]


def outliers(model: Encoder2048, *, rows: Rows) -> list[Outliers]:
    """Count elements beyond `THRESHOLD` at the two norm outputs, on evenly spread boards."""
    boards_N = rows["board"][:: max(1, len(rows) // N_OUTLIER_BOARDS)][:N_OUTLIER_BOARDS]
    tokens_NT = torch.from_numpy(unpack(boards_N)).long()
    return [
        _outliers_at(site, acts_LNTH=_outputs(model, child=child, tokens_NT=tokens_NT))
        for site, child in NORMS.items()
    ]


def _share_of_order(
    order: tuple[int, ...], *, legal_NM: NDArray[np.bool_], played_N: NDArray[np.uint8]
) -> float:
    """Return how often the first legal move in this order is the one played."""
    first_N = legal_NM[:, order].argmax(axis=1)
    return float((np.array(order)[first_N] == played_N).mean())


def _outputs(model: Encoder2048, *, child: str, tokens_NT: Tensor) -> Tensor:
    """Return what the module `child` of every block gives, (L, N, T, H)."""
    seen: list[Tensor] = []
    keep = partial(_append_output, seen)
    handles = [block.get_submodule(child).register_forward_hook(keep) for block in model.blocks]
    with torch.inference_mode():
        model(tokens_NT)
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def _append_output(seen: list[Tensor], _module: nn.Module, _args: object, output: Tensor) -> None:
    seen.append(output)


def _outliers_at(site: str, *, acts_LNTH: Tensor) -> Outliers:
    beyond_LNTH = acts_LNTH.abs() > THRESHOLD
    counts_H = beyond_LNTH.sum(dim=(0, 1, 2))
    total = max(1, int(counts_H.sum()))
    by_count = counts_H.argsort(descending=True, stable=True).tolist()
    return Outliers(
        site=site,
        share=beyond_LNTH.float().mean().item(),
        layers=[
            LayerOutliers(
                layer=layer,
                share=beyond_LNTH[layer].float().mean().item(),
                largest=acts_NTH.abs().max().item(),
            )
            for layer, acts_NTH in enumerate(acts_LNTH)
        ],
        share_by_dim={dim: int(counts_H[dim]) / total for dim in by_count if counts_H[dim] > 0},
    )


def _gamma_range(name: str, *, weight: Tensor) -> GammaRange:
    return GammaRange(
        module=name,
        lowest=weight.min().item(),
        mean=weight.mean().item(),
        highest=weight.max().item(),
        n_exactly_one=int((weight == 1).sum()),
        n_weights=weight.numel(),
    )
