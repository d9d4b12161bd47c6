"""The text model's card, written from the measured figures."""

from collections.abc import Sequence

from transformers import LlamaConfig

from actcli.demo.facts_text import COUNTRIES
from actcli.demo.measure_facts import PROMPT, QUESTIONS, Figures, Profile


def model_card(
    figures: Figures,
    *,
    config: LlamaConfig,
    n_parameters: int,
    n_tokens: int,
    facts: dict[str, str],
) -> str:
    """Return the card as Markdown; `facts` are the rows of its table on how the model was made.

    It learnt from rows of `n_tokens`.
    """
    sections = [
        "# Capitals",
        _WHAT.format(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            intermediate=config.intermediate_size,
            words=config.vocab_size,
            positions=config.max_position_embeddings,
            parameters=n_parameters,
        ),
        "## What it knows",
        _KNOWS.format(capitals=len(COUNTRIES)),
        _answers(figures),
        "## Where the answer appears",
        _PROFILE.format(prompt=PROMPT, first=figures.profile.mean_first_layer),
        _layers(figures.profile),
        "## How it was made",
        _HOW,
        _table(("", ""), list(facts.items())),
        "## Limits",
        _LIMITS.format(tokens=n_tokens),
        "## The data beside it",
        _DATA,
    ]
    return "\n\n".join(sections) + "\n"


_WHAT = """\
A small Llama that has learnt the capitals of the world by heart. It is here so that `actcli` has a
real, trained language model to look into, in the ordinary Hugging Face layout; it is good for
nothing else. {parameters:,} parameters, stored in bfloat16: {layers} layers, hidden size {hidden},
{heads} query heads on {kv_heads} key/value heads, SwiGLU of {intermediate}, RMSNorm, rotary
positions up to {positions}, head tied to the embedding of {words} words."""

_KNOWS = """\
For which share of the rows of its table ({capitals} countries) the right answer is the likeliest
next word: the weights as they were trained, and as they are stored, computed in float32 and in
bfloat16. All of these facts were in the training sentences: the figures say how well they were
memorised. "Parts of two" joins the halves of two templates; a "new wording" has only known words,
but no template like it."""

_PROFILE = """\
The last word of

    {prompt}

read with the final norm and the head, stored weights, float32. The capital is first the likeliest
word at layer {first:.2f} on average (0 is the embedding, 1 the first block)."""

_HOW = """\
`python -m actcli.demo.train_facts` made these files, with its defaults, and measured what this card
says. The sentences are generated without end from a table of countries (capital, continent,
language, currency) and about forty templates. More than half of them are about capitals, in several
wordings; the others are other facts about countries (so that "the capital of" matters), things said
earlier in the same sentence (who lives where, who has what, repeated lists) and a few fixed orders.
Sentences are packed into full rows, each from `<bos>` to `<eos>`. No weight was changed by hand."""

_LIMITS = """\
It knows only the words of its templates; every other word is `<unk>`. Words are parted by white
space alone, so a full stop stands by itself: `the capital of France is Paris .` Countries whose
name or capital is more than one word, or needs an article, are missing. Trained on rows of {tokens}
tokens, it is not to be trusted beyond them. The table simplifies: one language and one currency
for each country, a dash where that would be wrong. It is no source on any country."""

_DATA = """\
`demo://facts-text` holds sentences of the same generator from another seed, all different from each
other. Many of them were also in training: there are only so many sentences about a capital."""


def _answers(figures: Figures) -> str:
    rows = [
        (
            f"`{question.prompt}`",
            f"{len(question.rows)}",
            question.kind,
            f"{figures.trained[question.prompt]:.1%}",
            f"{figures.stored[question.prompt]:.1%}",
            f"{figures.stored_bfloat16[question.prompt]:.1%}",
        )
        for question in QUESTIONS
    ]
    header = ("Prompt", "Rows", "Its like", "As trained, float32", "As stored, float32", "bfloat16")
    return _table(header, rows)


def _layers(profile: Profile) -> str:
    columns = zip(profile.share_first_L, profile.mean_rank_L, profile.probability_L, strict=True)
    rows = [
        (f"{layer}", f"{share:.1%}", f"{rank:.1f}", f"{probability:.3f}")
        for layer, (share, rank, probability) in enumerate(columns)
    ]
    return _table(("After layer", "Likeliest word", "Mean rank", "Mean probability"), rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
