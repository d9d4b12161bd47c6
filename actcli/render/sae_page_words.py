"""What the page of an evaluation says of each number, typeset."""

from collections.abc import Iterator

from actcli.reports.sae_glossary import METRICS, Metric

UPSTREAM_GROUP = "As the Matryoshka program computes them"

_UPSTREAM = {
    "reconstruction.fvu": (
        "mean e^2 / (var t + 1e-8) of each batch, one mean of all elements; batches averaged"
    ),
    "reconstruction.mse": "mean e^2 of each batch, averaged",
    "reconstruction.mae": "mean |e| of each batch, averaged",
    "reconstruction.cosine_similarity": "of each batch as one vector, averaged",
    "sparsity.mean_l0": "features above 0 of a token",
    "absorption.score": (
        "share of decoder pairs with |cosine| above 0.9; of more than 8192 features, a random 8192"
    ),
    "feature_utilization.dead_count": ("always 0: that program does not store what it would need"),
}


def upstream_metrics() -> Iterator[Metric]:
    """Return the figures of `EvaluationReport.upstream`, with that program's definitions."""
    for path, words in _UPSTREAM.items():
        yield METRICS[path]._replace(words=words)


def typeset(words: str) -> str:
    """Return a definition with signs in the place of their ASCII."""
    return words.replace("^2", "²").replace(" - ", " − ")
