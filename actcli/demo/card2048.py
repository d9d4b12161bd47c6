"""The model card, written from the measured figures."""

from collections.abc import Sequence

from actcli.demo.game2048 import FOUR_PROBABILITY
from actcli.demo.measure2048 import THRESHOLD, Figures, GammaRange, Outliers, Scores
from actcli.models.encoder2048 import EncoderConfig

N_DIMS_SHOWN = 8


def model_card(
    figures: Figures, *, config: EncoderConfig, n_parameters: int, facts: dict[str, str]
) -> str:
    """Return the card as Markdown; `facts` are the rows of its table on how the model was made."""
    return (
        "\n\n".join(
            [
                "# 2048 encoder",
                _WHAT.format(
                    layers=config.num_hidden_layers,
                    hidden=config.hidden_size,
                    heads=config.num_attention_heads,
                    kv_heads=config.n_kv_heads,
                    intermediate=config.intermediate_size,
                    parameters=n_parameters,
                ),
                "## How well it plays",
                _play(figures),
                "## How it was made",
                _HOW.format(share_of_fours=FOUR_PROBABILITY),
                _table(("", ""), list(facts.items())),
                "## RMSNorm gammas",
                _GAMMAS,
                _gamma_table(figures.gammas),
                f"## Activations beyond {THRESHOLD:g}",
                _OUTLIERS.format(threshold=THRESHOLD),
                *(_outlier_section(outliers) for outliers in figures.outliers),
                "## The data beside it",
                _DATA,
            ]
        )
        + "\n"
    )


_WHAT = """\
A small bidirectional transformer that reads the 16 cells of a 2048 board and scores the four moves
(up, down, left, right). It is here so that `actcli` has a real, trained model to look into; it is
not a strong player. {layers} layers, hidden size {hidden}, {heads} query heads on {kv_heads}
key/value heads, SwiGLU of {intermediate}, RMSNorm, {parameters:,} parameters in float32."""

_HOW = """\
`python -m actcli.demo.train2048` made these files, with its defaults, and measured what this card
says. The teacher is a search: the best over our move, every tile that may appear and our next move,
of an evaluation of rows and columns (free cells, equal neighbours, large tiles in the top left
corner). The model learns the softmax of the teacher's values, first on the teacher's games, with
some random moves mixed in, then also on the boards that the model itself meets, judged by the
teacher. A side task (which tile is in each cell after each move, read from the last block but one)
speeds it up; its head is thrown away. A new tile is a 4 with probability {share_of_fours:g}.
No weight was changed by hand."""

_GAMMAS = """\
All started at 1. They have their own, higher learning rate; nothing is decayed."""

_OUTLIERS = """\
Elements with |x| > {threshold:g} at the two norm outputs (gamma applied), counted over every layer,
cell and hidden dimension on boards spread over the held-out steps. They came about in training."""

_DATA = """\
`demo://2048-steps` holds moves of the teacher in games that the model was not trained on, at even
distances through the games. Every field is as the teacher saw it: `branch_evs` are its values
(in units of its evaluation, 0 where illegal), `move_dir` its move, `board_eval` the static
evaluation. `tile_65536_mask` is 0 throughout; the largest tile in the games is far smaller."""


def _play(figures: Figures) -> str:
    agreement = figures.agreement
    ratio = figures.greedy_scores.mean / figures.random_scores.mean
    return "\n\n".join(
        [
            _table(
                ("Player", "Games", "Mean score", "Standard error"),
                [
                    _score_row("the model, best legal logit", figures.greedy_scores),
                    _score_row("random legal moves", figures.random_scores),
                    _score_row("the teacher", figures.teacher_scores),
                ],
            ),
            f"The model scores {ratio:.1f} times as much as random play. On {agreement.n_boards:,} "
            f"boards of held-out\ngames its best legal move is the teacher's in "
            f"{agreement.share:.1%} of cases; a random legal move would be in\n"
            f"{agreement.chance:.1%}, the best single order of preference "
            f"({agreement.fixed_order}) in {agreement.fixed_order_share:.1%}.",
        ]
    )


def _score_row(name: str, scores: Scores) -> tuple[str, ...]:
    return name, f"{scores.n_games}", f"{scores.mean:,.0f}", f"{scores.standard_error:,.0f}"


def _gamma_table(gammas: list[GammaRange]) -> str:
    rows = [
        (g.module, f"{g.lowest:.3f}", f"{g.mean:.3f}", f"{g.highest:.3f}", f"{g.n_exactly_one}")
        for g in gammas
    ]
    return _table(("Module", "Lowest", "Mean", "Highest", "Exactly 1"), rows)


def _outlier_section(outliers: Outliers) -> str:
    shares = list(outliers.share_by_dim.items())
    shown = ", ".join(f"{dim} ({share:.0%})" for dim, share in shares[:N_DIMS_SHOWN])
    if shown and len(shares) > N_DIMS_SHOWN:
        shown += ", …"
    layers = [
        (f"{layer.layer}", f"{layer.share:.4%}", f"{layer.largest:.2f}")
        for layer in outliers.layers
    ]
    return "\n\n".join(
        [
            f"### `{outliers.site}`: {outliers.share:.4%} of elements, in {len(shares)} hidden "
            "dimensions",
            f"Dimensions, with their share of the outliers: {shown or 'none'}.",
            _table(("Layer", "Beyond", "Largest magnitude"), layers),
        ]
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
