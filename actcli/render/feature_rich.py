"""Activation samples as rich examples: text as it is, and with the activations written into it.

`The capital of <<<Germany (act: 9.25)>>> is`: the form in which prompts for automatic
interpretation show a feature to a language model.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from actcli.errors import SamplesError
from actcli.reports.feature_pieces import Piece, pieces_of
from actcli.reports.feature_samples import FeatureRecord, FeatureSample


def rich_lines(records: Iterable[FeatureRecord], *, n_samples: int | None = None) -> Iterator[str]:
    """Yield a line of JSON for each feature.

    Args:
        records: the features.
        n_samples: examples of each at most; None for all.

    Raises:
        SamplesError: an activation has no text.
    """
    for record in records:
        examples = [rich_example(each) for each in record.top_samples[:n_samples]]
        line = {"feature": record.feature, "examples": examples}
        yield json.dumps(line, ensure_ascii=False, allow_nan=False)


def rich_example(sample: FeatureSample) -> dict[str, Any]:
    """Return `raw`, `marked` and `max_activation` of a context.

    Every token at which the feature is active is marked, as far as that is known; spaces at its
    ends stay outside of the mark.

    Raises:
        SamplesError: the context has no text.
    """
    pieces = pieces_of(sample)
    if not pieces:
        raise SamplesError(
            f"the samples of feature {sample.feature_idx} have no texts, for token ids were not "
            f"known: collect them from a dump with token_ids, or with --init MODEL"
        )
    return {
        "raw": "".join(piece.text for piece in pieces),
        "marked": "".join(map(_marked, pieces)),
        "max_activation": sample.activation_value,
    }


def _marked(piece: Piece) -> str:
    if not piece.activation:
        return piece.text
    core = piece.text.strip() or piece.text
    before, _, after = piece.text.partition(core)
    return f"{before}<<<{core} (act: {piece.activation:.2f})>>>{after}"
