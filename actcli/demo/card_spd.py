"""The decomposition's card, written from the measured figures."""

from collections.abc import Sequence

from actcli.demo.measure_spd import ACTIVE, SpdFigures


def spd_card(figures: SpdFigures, *, n_measured: int, facts: dict[str, str]) -> str:
    """Return the card as Markdown; `facts` are the rows of its table on how it was made.

    It was measured on a text of `n_measured` tokens.
    """
    modules = figures.modules.values()
    sections = [
        "# Capitals, decomposed",
        _WHAT.format(modules=len(modules), components=sum(each.n_components for each in modules)),
        "## How faithful it is",
        _FAITHFUL.format(tokens=n_measured),
        _kept_table(figures),
        "## Module by module",
        _MODULES.format(
            active=ACTIVE,
            highest=max(each.delta for each in modules),
            mean=sum(each.n_active for each in modules) / len(modules),
        ),
        _module_table(figures),
        "## How it was made",
        _HOW,
        _table(("", ""), list(facts.items())),
        "## Files",
        _FILES,
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


_WHAT = """\
The query and key projections of `demo://facts`, all {modules} of them, written as sums of rank-one
components ({components:,} in all) that were trained to be needed seldom. It is here so that
`actcli qk-contrib` has a real decomposition to read, in the folder form of an SPD run; a modest
one. Component c of a module reads `a_c = x . V[:, c]` and writes `a_c * U[c]`: together
`x @ V @ U`, which is the projection up to the delta, `W - (V @ U).T`. A causal importance between 0
and 1 says on each token how far a component is needed; it depends on `a_c` alone."""

_FAITHFUL = """\
The model runs on components only, without any delta, in all modules at once. KL: how far its
predictions are from those of the untouched model, nats a token, mean over {tokens:,} tokens of
sentences from another seed than the training's. Output error: squared error of what the projections
write, over what they would write for the same input squared, mean over the modules. Capitals: for
which share of the countries it still answers the capital. All with the components as stored,
computed in float32."""

_MODULES = """\
Delta: its Frobenius norm over that of the weight, at most {highest:.4f}. Active: causal importance
above {active:g}; {mean:.1f} components a module and token on average. Ever active: on any token of
the text."""

_HOW = """\
`python -m actcli.demo.train_facts_spd` made these files, with its defaults, and measured what this
card says. The training is stochastic parameter decomposition (Bushnaq, Braun and Sharkey, 2025,
arXiv:2506.20790) in a modest form. The components start as the singular directions of each weight,
in the metric of what the module reads. The loss has four parts: the squared delta; the sum of the
importances to a power that falls; and, in a run whose masks are drawn evenly between importance and
1 (every other row has no delta and the importances themselves as masks), the KL divergence of the
predictions and the squared error of the modules' outputs."""

_FILES = """\
`model_*.pth`: float16 tensors, by the names that SPD runs use: `_components.*.V` (inputs, C) and
`.U` (C, outputs), and the importance functions `ci_fn._ci_fns.*.layers.{0,2}.{W,b}`, a perceptron
with an exact GELU for each component; importance is their result clamped to 0..1. Unlike other
runs it holds **no weights of the target**: `final_config.yaml` names `demo://facts`, which ships
beside it. Of that config only what describes the run is there, not every field of the original
programs."""

_LIMITS = """\
The masked model is close, not equal: its predictions need less than the projections write, so the
output error of the active components is larger than their KL suggests. A ledger over all components
and the delta is exact. Many importances lie well between 0 and 1 and act as weights: to keep the
active components whole is worse than to keep each as far as it is important. The importances were
trained on packed rows of these sentences and mean nothing on other text. Components may span all
heads of a layer. Few steps were taken: some components are surely mixtures of what a longer
training would part."""


def _kept_table(figures: SpdFigures) -> str:
    rows = [
        (kept, f"{found.divergence:.3g}", f"{found.output_error:.3g}", f"{found.capitals:.1%}")
        for kept, found in figures.kept.items()
    ]
    return _table(("Kept", "KL", "Output error", "Capitals"), rows)


def _module_table(figures: SpdFigures) -> str:
    rows = [
        (
            f"`{name}`",
            f"{each.n_components}",
            f"{each.delta:.4f}",
            f"{each.n_active:.2f}",
            f"{each.total_importance:.2f}",
            f"{each.n_ever_active}",
        )
        for name, each in figures.modules.items()
    ]
    header = ("Module", "Components", "Delta", "Active", "Sum of importances", "Ever active")
    return _table(header, rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
