"""Where attention heads look in a text: numbers by which heads can be sorted.

Every number is a mean over all tokens of all samples given, each token as a query; padding is
neither query nor key. With w the weights of query q over the keys and s = 1 - sum(w) the mass of
its sink (zero in a model without sinks):

    entropy_bits    -sum_k w_k log2 w_k - s log2 s: of the whole distribution, sink included
    mean_distance   sum_k w_k |q - k| / sum_k w_k, in tokens
    first_mass      w_0, over the queries q > 0: the first token of a causal model sees itself alone
    previous_mass   w_(q-1), over the queries q > 0
    self_mass       w_q
    sink_mass       s

Masses are shares of 1, sink included.

Tensor legend: L layers, A heads, T queries, S keys, Q queries of all samples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.attention import Floats, entropy_bits
from actcli.reports.attention import AttentionReport, TextHeadReport, TextMaps


def measure_text_heads(
    maps: TextMaps, *, heads: Sequence[int] | None = None, source: str
) -> AttentionReport:
    """Compute the numbers of every layer and head; see the module for their definitions.

    Args:
        maps: the attention.
        heads: those to report; all by default.
        source: the dump, for the report.
    """
    by_sample = [
        _numbers(weights_LATS, sinks_LAT)
        for weights_LATS, sinks_LAT in zip(maps.weights, maps.sinks, strict=True)
    ]
    means_LA = {
        name: _mean_over_queries([each[name] for each in by_sample]) for name in by_sample[0]
    }
    wanted = set(maps.heads if heads is None else heads)
    reports = tuple(
        TextHeadReport(
            layer=layer + 1,
            head=head,
            **{
                name: None if each is None else float(each[i, j]) for name, each in means_LA.items()
            },
        )
        for i, layer in enumerate(maps.layers)
        for j, head in enumerate(maps.heads)
        if head in wanted
    )
    return AttentionReport(input=source, samples=maps.samples, heads=reports)


def _numbers(
    weights_LATS: NDArray[np.float32], sinks_LAT: NDArray[np.float32]
) -> dict[str, Floats]:
    """Of one sample, (L, A, Q) each: Q is T, or T - 1 for what the first query cannot have."""
    weights = weights_LATS.astype(np.float64)
    places = np.arange(weights.shape[-1])
    return {
        "entropy_bits": entropy_bits(weights_LATS, sinks_LAT),
        "mean_distance": _mean_distance(weights),
        "first_mass": weights[:, :, 1:, 0],
        "previous_mass": weights[:, :, places[1:], places[:-1]],
        "self_mass": weights[:, :, places, places],
        "sink_mass": sinks_LAT.astype(np.float64),
    }


def _mean_distance(weights_LATS: Floats) -> Floats:
    places = np.arange(weights_LATS.shape[-1])
    distance_TS = abs(places[:, None] - places).astype(np.float64)
    total = weights_LATS.sum(axis=-1)
    moved = np.einsum("lats,ts->lat", weights_LATS, distance_TS)
    mean_LAT: Floats = np.divide(moved, total, out=np.zeros_like(total), where=total > 0)
    return mean_LAT


def _mean_over_queries(by_sample: Sequence[Floats]) -> Floats | None:
    """The mean (L, A) over the queries of all samples together; None if there are none."""
    values_LAQ = np.concatenate(by_sample, axis=-1)
    if not values_LAQ.shape[-1]:
        return None
    mean_LA: Floats = values_LAQ.mean(axis=-1)
    return mean_LA
