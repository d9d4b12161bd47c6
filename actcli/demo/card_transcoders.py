"""The cards of the built-in transcoders, written from the measured figures."""

from actcli.demo.measure_transcoders import TranscoderFigures


def matryoshka_card(figures: TranscoderFigures, *, facts: dict[str, str]) -> str:
    """Return a card as Markdown; `facts` are the rows of its table on how it was made."""
    ends = list(figures.prefixes)
    return _card(
        "# A Matryoshka transcoder of layer 4 of facts",
        what=_MATRYOSHKA.format(n=figures.n_features, ends=", ".join(map(str, ends))),
        figures=figures,
        how=_HOW + "\n\n" + _HOW_MATRYOSHKA,
        facts=facts,
        files=_MATRYOSHKA_FILES,
    )


def gemma_scope_card(figures: TranscoderFigures, *, facts: dict[str, str]) -> str:
    """Return a card as Markdown; `facts` are the rows of its table on how it was made."""
    return _card(
        "# A JumpReLU transcoder of layer 4 of facts, as Gemma Scope stores them",
        what=_GEMMA_SCOPE.format(n=figures.n_features),
        figures=figures,
        how=_HOW + "\n\n" + _HOW_JUMPRELU,
        facts=facts,
        files=_GEMMA_SCOPE_FILES,
    )


def _card(
    title: str,
    *,
    what: str,
    figures: TranscoderFigures,
    how: str,
    facts: dict[str, str],
    files: str,
) -> str:
    sections = [
        title,
        what,
        "## How good it is",
        _MEASURED.format(tokens=figures.n_tokens),
        _table(_figure_rows(figures)),
        "## How it was made",
        how,
        _table(facts),
        "## Files",
        files,
        "## Limits",
        _LIMITS.format(bound=3 / figures.n_tokens),
    ]
    return "\n\n".join(sections) + "\n"


_MATRYOSHKA = """\
It predicts what the MLP of layer 4 (counted from 0) of `demo://facts` adds to the residual stream
(the site `mlp_out`), from what that MLP reads, **with** the norm's gain (the site `mlp_input`).
{n:,} features in nested groups: the first {ends} of them are each a transcoder of their own. It is
here so that `actcli sae-eval` has a dictionary to judge, beside `demo://facts-gemma-scope`, which
was trained on the same tokens."""

_GEMMA_SCOPE = """\
It predicts what the MLP of layer 4 (counted from 0) of `demo://facts` adds to the residual stream
(the site `mlp_out`), from what that MLP reads, **without** the norm's gain (the site
`mlp_input_normed`; its mean square is 1 on every token). {n:,} features. It is no part of Gemma
Scope, and of no Gemma: it lies in the form of that collection, so that `actcli sae-eval` has one to
compare with `demo://facts-matryoshka`, which was trained on the same tokens."""

_MEASURED = """\
As stored, computed in float32, on {tokens:,} tokens of sentences of another seed than the
training's. Each sentence is a text of its own; its `<bos>` is among the tokens, there and in the
training. FVU: the sum over the tokens of the squared error, over that of the squared distance of
the target from its mean. L0: active features of a token. Dead: active on none of these tokens."""

_HOW = """\
`python -m actcli.demo.train_facts_transcoders` made these files, with its defaults, and measured
what this card says. The activations are those of the model in bfloat16, as it is stored. Inputs and
targets were divided by their root mean square (the targets' about their mean), which went into the
weights at the end; the loss is in these units. The decoder's rows had norm 1 meanwhile. Every
feature starts at a token, drawn so that they lie apart: it reads its direction and writes the
target's."""

_HOW_MATRYOSHKA = """\
BatchTopK (Bussmann, Leask and Nanda, 2024, arXiv:2412.06410) and Matryoshka groups (Bussmann et
al., 2025, arXiv:2503.17547): the loss is the mean over the nested prefixes of their mean squared
error, plus that of the dead features at what the others leave. The threshold is the running mean
(0.99) of the smallest activation that was kept in a batch."""

_HOW_JUMPRELU = """\
JumpReLU (Rajamanoharan et al., 2024, arXiv:2407.14435): one threshold for each feature, with a
rectangle of a small width for pseudo-derivatives. The loss is the mean squared error, plus the
square of L0 over the L0 aimed at less 1, L0 the mean over a batch, plus the mean squared error of
the dead features at what the others leave. The aim was not met, nor was it meant to be: the price
has a slope in the thresholds alone, and so weighs little on an encoder that wants fewer features;
it was set so that the two transcoders are roughly equally sparse. Compare them with their L0 in
mind."""

_MATRYOSHKA_FILES = """\
`checkpoint.pt`: a dictionary of bfloat16 tensors, `W_enc` (read, features), `b_enc`, `W_dec`
(features, written), `b_dec` and one `threshold`: `h = relu(x @ W_enc + b_enc)`, `a = h` where it is
above the threshold, else 0, `y = a @ W_dec + b_dec`. `config.json`: keys as in the run folders of
such trainings, those that are true of this one; `prefix_sizes` are the sizes of the groups, one by
one. `training_log.json`: the last step; its `dead_features` is, as in those folders, the sum over
the features of the batches since each was last active, not a number of features."""

_GEMMA_SCOPE_FILES = """\
`layer_4/width_1k/average_l0_*/params.npz`: float32 arrays `W_enc` (read, features), `b_enc`,
`W_dec` (features, written), `b_dec` and `threshold` (features): `h = x @ W_enc + b_enc`, `a = h`
where it is above its threshold, else 0, `y = a @ W_dec + b_dec`. The number in the folder's name is
the mean L0 of the table above, rounded. `config.json` beside it says where it reads and writes,
which no file of Gemma Scope 1 does."""

_LIMITS = """\
The sentences come from templates, so fresh ones are much like those of the training, and some are
the same; on other text the figures mean nothing. A tiny model's MLP is easy to predict: the FVU is
far below what is usual for large ones. A feature that was not seen active may still be, on fewer
than {bound:.2g} of such tokens (95 %)."""


def _figure_rows(figures: TranscoderFigures) -> dict[str, str]:
    rows = {
        "FVU": f"{figures.fvu:.5f}",
        "FVU without `<bos>`": f"{figures.fvu_without_bos:.5f}",
        "Mean L0": f"{figures.mean_l0:.3f}",
        "Dead": f"{figures.n_dead} of {figures.n_features:,} "
        f"({figures.n_dead / figures.n_features:.1%})",
    }
    for end, fvu in figures.prefixes.items():
        rows[f"FVU of the first {end:,} features"] = f"{fvu:.5f}"
    return rows


def _table(rows: dict[str, str]) -> str:
    lines = [("", ""), ("---", "---"), *rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
