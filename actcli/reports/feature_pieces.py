"""The context of an activation as pieces of text, each with what the feature does there.

Files of the Matryoshka program have no texts of single tokens: there a context is what stands
before the text of the token and the one before it, that text, and what stands behind.
"""

from typing import NamedTuple

from actcli.reports.feature_samples import FeatureSample


class Piece(NamedTuple):
    """A token of a context, or, where that is all that is known, a stretch of text."""

    text: str
    activation: float | None
    """None where it is not known."""

    is_peak: bool
    """Whether it is the token whose activation is the sample's."""


def pieces_of(sample: FeatureSample) -> list[Piece]:
    """Return the context of a sample, piece by piece; empty if its text is not known."""
    texts, acts, start = sample.context_texts, sample.context_activations, sample.context_start
    if texts is None or start is None:
        return _stretches(sample)
    if acts is None or len(acts) != len(texts):
        acts = (None,) * len(texts)
    peak = sample.position - start
    return [
        Piece(text, act, place == peak)
        for place, (text, act) in enumerate(zip(texts, acts, strict=True))
    ]


def _stretches(sample: FeatureSample) -> list[Piece]:
    context, text = sample.context_text, sample.text
    places = _places(context, text) if text else []
    if not places:
        whole = Piece(context, None, False)
        peak = Piece(text, sample.activation_value, True)
        return [each for each in (whole, peak) if each.text]
    expected = _share(sample) * len(context)
    first = min(places, key=lambda place: abs(place + len(text) - expected))
    stop = first + len(text)
    pieces = [
        Piece(context[:first], None, False),
        Piece(text, sample.activation_value, True),
        Piece(context[stop:], None, False),
    ]
    return [each for each in pieces if each.text]


def _places(context: str, text: str) -> list[int]:
    return [place for place in range(len(context)) if context.startswith(text, place)]


def _share(sample: FeatureSample) -> float:
    """About which share of the context ends with the token.

    A context reaches equally far to both sides unless the text ends: so the token is in its middle,
    or, near the beginning, at its position. Of places with its ids the nearest to that is taken.
    """
    context, tokens = sample.context_tokens, sample.tokens
    if not context:
        return 1.0
    expected = min(sample.position, (len(context) - 1) / 2)
    ends = range(max(len(tokens), 1) - 1, len(context))
    fitting = [end for end in ends if context[end + 1 - len(tokens) : end + 1] == tokens]
    end = min(fitting, key=lambda place: abs(place - expected), default=expected)
    return (end + 1) / len(context)
