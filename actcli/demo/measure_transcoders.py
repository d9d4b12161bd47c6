"""How well a transcoder predicts, and how sparsely: what the cards of the built-in ones say.

Tensor legend: N tokens, H width that is read, O width that is written.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from actcli.analysis.sae_pass import Candidate, DictionaryPass
from actcli.analysis.sae_results import PassResult
from actcli.reports.sae_metrics import PrefixReport, ReconstructionReport
from actcli.saes.dictionary import Dictionary


class TranscoderFigures(NamedTuple):
    """What a card says of a transcoder."""

    n_tokens: int
    fvu: float
    """Of all tokens."""
    fvu_without_bos: float
    """Of the tokens other than `<bos>`."""
    mean_l0: float
    """Active features of a token."""
    n_features: int
    n_dead: int
    """Features that were active on none of these tokens."""
    prefixes: dict[int, float]
    """The FVU of the first so many features alone; none where there are no nested groups."""


def measure_transcoder(
    dictionary: Dictionary, x_NH: Tensor, y_NO: Tensor, *, is_bos_N: Tensor
) -> TranscoderFigures:
    """Measure a transcoder with the code that `sae-eval` judges any other with.

    Args:
        dictionary: as stored.
        x_NH: what the transcoder reads.
        y_NO: what it is to predict.
        is_bos_N: which tokens are `<bos>`.
    """
    rest_N = ~is_bos_N
    found = _judged(dictionary, x_NH, y_NO)
    return TranscoderFigures(
        n_tokens=len(x_NH),
        fvu=_fvu(found.reconstruction),
        fvu_without_bos=_fvu(_judged(dictionary, x_NH[rest_N], y_NO[rest_N]).reconstruction),
        mean_l0=found.sparsity.mean_l0,
        n_features=dictionary.n_features,
        n_dead=found.utilization.dead_count,
        prefixes={each.n_features: _fvu(each) for each in found.prefixes},
    )


def _judged(dictionary: Dictionary, x_NH: Tensor, y_NO: Tensor) -> PassResult:
    judge = DictionaryPass([Candidate(dictionary, "x", "y")], keep_acts=False)
    one_sample_N = np.zeros(len(x_NH), dtype=np.int64)  # no error over samples is asked for
    judge.add({"x": x_NH, "y": y_NO}, one_sample_N)
    return judge.results()[0]


def _fvu(report: ReconstructionReport | PrefixReport) -> float:
    assert report.fvu is not None  # what an MLP writes varies
    return report.fvu
