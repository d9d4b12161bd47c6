"""Activation samples as records: of each feature, and of all together.

Tensor legend: T tokens of a sample.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from actcli import __version__
from actcli.analysis.feature_contexts import ChosenSamples, ContextActs
from actcli.analysis.feature_samples import TopSamples
from actcli.reports.base import Histogram
from actcli.reports.feature_samples import (
    FeatureRecord,
    FeatureSample,
    FeatureStatistics,
    RankedFeature,
    SamplesSummary,
    SimilarFeature,
)
from actcli.reports.sae_subject import DictionaryDescription

_MOST_RANKED = 50

IdsOf = Callable[[int], NDArray[np.integer] | None]
TextsOf = Callable[[Sequence[int]], tuple[str, ...]]


def feature_records(
    top: TopSamples,
    chosen: ChosenSamples,
    *,
    ids_of: IdsOf,
    texts_of: TextsOf,
    contexts: ContextActs | None = None,
    similar: Sequence[Sequence[tuple[int, float]]] | None = None,
) -> list[FeatureRecord]:
    """Return what the files of the chosen features hold.

    Args:
        top: what the pass has kept.
        chosen: which of it is shown.
        ids_of: token ids of a sample (T,), or None where they are not known.
        texts_of: what each of consecutive tokens adds to their text.
        contexts: the features at all tokens of the contexts.
        similar: for each chosen feature those most similar to it, with cosines.
    """
    nearest = similar or [()] * len(chosen.features)
    kept = top.kept()
    edges_D = np.searchsorted(kept.feature_M, np.arange(top.n_features + 1))
    return [
        FeatureRecord(
            statistics=_statistics(
                top, feature, kept.value_M[slice(*edges_D[[feature, feature + 1]])]
            ),
            top_samples=tuple(
                _sample(chosen, row, ids_of=ids_of, texts_of=texts_of, contexts=contexts)
                for row in chosen.rows_of(feature)
            ),
            similar=tuple(
                SimilarFeature(feature_idx=int(other), cosine=float(cosine))
                for other, cosine in near
            ),
        )
        for feature, near in zip(chosen.features, nearest, strict=True)
    ]


def summary_of(
    top: TopSamples,
    chosen: ChosenSamples,
    *,
    source: str | None = None,
    dictionary: DictionaryDescription | None = None,
) -> SamplesSummary:
    """Return what is said of all features together.

    Args:
        top: what the pass has kept.
        chosen: which features have a file.
        source: where the tokens are from.
        dictionary: whose features they are.
    """
    kept = top.kept()
    feature_M, first, n_kept = np.unique(kept.feature_M, return_index=True, return_counts=True)
    largest = kept.value_M[first]
    order = np.lexsort((feature_M, -largest))[:_MOST_RANKED]
    return SamplesSummary(
        total_samples_seen=int(top.sums.above_D.sum()),
        total_samples_stored=len(kept),
        num_features_tracked=len(feature_M),
        avg_samples_per_feature=len(kept) / max(1, len(feature_M)),
        features_with_samples=tuple(feature_M.tolist()),
        top_features_by_activation=tuple(
            RankedFeature(
                feature_idx=int(feature_M[place]),
                max_activation=float(largest[place]),
                num_samples=int(n_kept[place]),
            )
            for place in order.tolist()
        ),
        features_written=chosen.features,
        n_features=top.n_features,
        n_tokens=top.sums.n_tokens,
        threshold=top.threshold,
        most=top.most,
        context_size=chosen.context,
        source=source,
        dictionary=dictionary,
        actcli_version=__version__,
    )


def _statistics(top: TopSamples, feature: int, value_M: NDArray[np.float32]) -> FeatureStatistics:
    sums = top.sums
    doubles_M = value_M.astype(np.float64)
    some = len(doubles_M) > 0
    n_active = int(sums.active_D[feature])
    histogram = sums.histogram(feature)
    return FeatureStatistics(
        feature_idx=feature,
        num_samples=len(doubles_M),
        max_activation=float(doubles_M.max()) if some else 0.0,
        mean_activation=float(doubles_M.mean()) if some else 0.0,
        std_activation=float(doubles_M.std()) if some else None,
        min_activation=float(doubles_M.min()) if some else None,
        activation_count=int(sums.above_D[feature]),
        all_time_max=float(sums.max_D[feature]) if n_active else None,
        active_count=n_active,
        n_tokens=sums.n_tokens,
        density=n_active / sums.n_tokens if sums.n_tokens else None,
        mean_when_active=sums.mean(feature),
        std_when_active=sums.std(feature),
        histogram=histogram and Histogram(edges=tuple(histogram[0]), counts=tuple(histogram[1])),
    )


def _sample(
    chosen: ChosenSamples,
    row: int,
    *,
    ids_of: IdsOf,
    texts_of: TextsOf,
    contexts: ContextActs | None,
) -> FeatureSample:
    samples = chosen.samples
    position, number = int(samples.position_M[row]), int(samples.sample_M[row])
    value = float(samples.value_M[row])
    ids_T = ids_of(number)
    positions = _positions(position, chosen.side, ids_T)
    ids, texts = _tokens(ids_T, positions, texts_of)
    here = position - positions.start
    acts = dict.fromkeys(positions) if contexts is None else contexts.of(row, positions)
    acts[position] = value  # as in the first pass: products of other shapes round otherwise
    return FeatureSample(
        feature_idx=int(samples.feature_M[row]),
        activation_value=value,
        tokens=ids[max(0, here - 1) : here + 1],
        text="".join(texts[max(0, here - 1) : here + 1]),
        position=position,
        context_tokens=ids,
        context_text="".join(texts),
        sample=number,
        context_start=positions.start,
        context_texts=texts if ids else None,
        context_activations=tuple(acts.values()) if ids else None,
    )


def _positions(position: int, side: int, ids_T: NDArray[np.integer] | None) -> range:
    stop = position + side + 1
    return range(max(0, position - side), stop if ids_T is None else min(len(ids_T), stop))


def _tokens(
    ids_T: NDArray[np.integer] | None, positions: range, texts_of: TextsOf
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and texts of a context; the token before it is what its first text stands behind."""
    if ids_T is None:
        return (), ()
    first = max(0, positions.start - 1)
    ids = tuple(map(int, ids_T[first : positions.stop]))
    skipped = positions.start - first
    return ids[skipped:], texts_of(ids)[skipped:]
