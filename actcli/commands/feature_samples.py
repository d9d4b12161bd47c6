"""`sae-eval --samples`: a dictionary's activation samples as files.

The folder has the layout of the Matryoshka program's `activation_samples`, so that either program
reads what the other wrote: `feature_00042_samples.json` of each feature, `collection_summary.json`
of all. Beside them stands `features.html`, a page to read them in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from actcli.analysis.feature_contexts import ChosenSamples, ContextActs
    from actcli.analysis.feature_samples import TopSamples
    from actcli.capture.token_stream import TokenStream
    from actcli.reports.feature_samples import FeatureRecord, SamplesSummary
    from actcli.reports.sae_subject import DictionaryDescription
    from actcli.saes.dictionary import SparseActs
    from actcli.samples.tokenizer import TextTokenizer

Similar = Callable[[Sequence[int], int], Sequence[Sequence[tuple[int, float]]]]
"""For features and a number n, the n features nearest to each, nearest first, with cosines:
`sae_cosines.nearest_features` of the decoder."""

PAGE = "features.html"

_DENSE_NUMBERS = 1 << 24  # features of the tokens that are encoded at once


@dataclass(frozen=True)
class SamplesOptions:
    """Which features and how much of each are written."""

    features: tuple[int, ...] | None = None
    """These features; None for those with the largest activations."""

    n_features: int | None = 100
    """How many of those; None for all that were ever above the threshold."""

    n_samples: int = 10
    """Contexts of each feature, at most as many as `TopSamples` keeps."""

    context: int = 20
    """Half as many tokens stand on either side of the token."""

    n_similar: int = 5
    """How many features with a similar decoder row are named beside each."""


@dataclass(frozen=True)
class WrittenSamples:
    """What was written, to be told."""

    folder: Path
    n_features: int
    page: Path
    summary: "SamplesSummary"


def check_samples_target(folder: Path, *, force: bool) -> None:
    """Refuse a folder that samples cannot go to, before any work is done for them.

    Raises:
        DumpError: it holds samples and there is no `force`, or it cannot be made or written into.
    """
    from actcli.render.feature_files import check_samples_folder

    check_samples_folder(folder, force=force)


def write_samples(
    top: "TopSamples",
    *,
    folder: Path,
    stream: "TokenStream",
    x: str,
    encode: "Callable[[Tensor], SparseActs] | None",
    tokenizer: "TextTokenizer | None",
    options: SamplesOptions | None = None,
    similar: Similar | None = None,
    description: "DictionaryDescription | None" = None,
    force: bool = False,
) -> WrittenSamples:
    """Write samples, summary and page of a dictionary whose pass is over.

    Args:
        top: what the pass collected: `TopSamples.add` was given every batch.
        folder: where they go.
        stream: the tokens of that pass; read once more if `encode` is given.
        x: the key of the dictionary's input in the stream.
        encode: `Dictionary.encode`, to shade all tokens of the contexts, which alone are encoded
            again; with None only the strongest token of each is shaded.
        tokenizer: gives tokens their texts; where there is none, numbers stand.
        options: which and how many.
        similar: finds features with similar decoder rows.
        description: which dictionary it is.
        force: whether samples that the folder holds are replaced.

    Raises:
        UsageError: a feature that was asked for does not exist.
        ActcliError: a file cannot be written.
    """
    check_samples_target(folder, force=force)
    options = options or SamplesOptions()
    chosen = _choose(top, options)
    contexts = None if encode is None else read_contexts(chosen, stream, x=x, encode=encode)
    near = similar(chosen.features, options.n_similar) if similar and chosen.features else None
    records = _records(top, chosen, stream, tokenizer, contexts, near)
    return _write(folder, records, _summary(top, chosen, stream, description))


def _choose(top: "TopSamples", options: SamplesOptions) -> "ChosenSamples":
    from actcli.analysis.feature_contexts import choose_samples

    return choose_samples(
        top,
        features=options.features,
        n_features=options.n_features,
        n_samples=options.n_samples,
        context=options.context,
    )


def _records(
    top: "TopSamples",
    chosen: "ChosenSamples",
    stream: "TokenStream",
    tokenizer: "TextTokenizer | None",
    contexts: "ContextActs | None",
    near: Sequence[Sequence[tuple[int, float]]] | None,
) -> "list[FeatureRecord]":
    from actcli.analysis.feature_records import feature_records
    from actcli.commands.feature_texts import texts_of_tokens

    texts_of = texts_of_tokens(tokenizer)
    return feature_records(
        top, chosen, ids_of=stream.ids_of, texts_of=texts_of, contexts=contexts, similar=near
    )


def _summary(
    top: "TopSamples",
    chosen: "ChosenSamples",
    stream: "TokenStream",
    description: "DictionaryDescription | None",
) -> "SamplesSummary":
    from actcli.analysis.feature_records import summary_of

    return summary_of(top, chosen, source=stream.name, dictionary=description)


def _write(
    folder: Path, records: "list[FeatureRecord]", summary: "SamplesSummary"
) -> WrittenSamples:
    from actcli.render.feature_files import write_folder
    from actcli.render.feature_page import feature_page
    from actcli.render.records import write_file

    write_folder(folder, records, summary)
    name = None if summary.dictionary is None else summary.dictionary.name
    title = "Features" if name is None else f"Features of {name}"
    page = folder / PAGE
    write_file(page, feature_page(records, summary, title=title).html.encode())
    return WrittenSamples(folder, len(records), page, summary)


def read_contexts(
    chosen: "ChosenSamples",
    stream: "TokenStream",
    *,
    x: str,
    encode: "Callable[[Tensor], SparseActs]",
) -> "ContextActs":
    """Go through the tokens again and encode those that stand in a chosen context."""
    from actcli.analysis.feature_contexts import ContextActs

    contexts = ContextActs(chosen)
    at_once = max(1, _DENSE_NUMBERS // chosen.n_features)
    for batch in stream.batches():
        wanted = contexts.wants(batch.samples_N, batch.positions_N).nonzero()[0]
        for start in range(0, len(wanted), at_once):
            rows = wanted[start : start + at_once]
            acts = encode(batch.acts[x][rows])
            contexts.add(acts, batch.samples_N[rows], batch.positions_N[rows])
    return contexts
