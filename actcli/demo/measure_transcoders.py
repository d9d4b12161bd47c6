"""How well a transcoder predicts, and how sparsely: what the cards of the built-in ones say.

Tensor legend: N tokens, H width that is read, O width that is written, D features,
    B tokens at a time, P prefixes (the first stands for all features).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from actcli.demo.transcoders import Weights

_TOKENS_AT_ONCE = 4096


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


@torch.inference_mode()
def measure_transcoder(
    weights: Weights,
    x_NH: Tensor,
    y_NO: Tensor,
    *,
    is_bos_N: Tensor,
    prefix_sizes: Sequence[int] = (),
) -> TranscoderFigures:
    """Measure a transcoder.

    The FVU is the standard one, the sum of |y - prediction|^2 over the tokens divided by that of
    |y - mean y|^2, the mean over the same tokens; sums in float64.

    Args:
        weights: as stored.
        x_NH: what the transcoder reads.
        y_NO: what it is to predict.
        is_bos_N: which tokens are `<bos>`.
        prefix_sizes: sizes of the nested groups, one after another.
    """
    count_D = torch.zeros(len(weights.b_enc_D), dtype=torch.int64)
    ends = list(accumulate(prefix_sizes))
    errors: list[Tensor] = []
    for x_BH, y_BO in zip(
        torch.split(x_NH, _TOKENS_AT_ONCE), torch.split(y_NO, _TOKENS_AT_ONCE), strict=True
    ):
        acts_BD = weights.acts(x_BH.float())
        count_D += (acts_BD > 0).sum(dim=0)
        cuts = [weights.decode(acts_BD, n_features=end) for end in (None, *ends)]
        errors.append(torch.stack([_squares(y_BO.double() - cut) for cut in cuts], dim=1))
    errors_NP = torch.cat(errors)
    totals = errors_NP.sum(dim=0) / _about_mean(y_NO)
    rest_N = ~is_bos_N
    return TranscoderFigures(
        n_tokens=len(x_NH),
        fvu=totals[0].item(),
        fvu_without_bos=(errors_NP[rest_N, 0].sum() / _about_mean(y_NO[rest_N])).item(),
        mean_l0=int(count_D.sum()) / len(x_NH),
        n_features=len(count_D),
        n_dead=int((count_D == 0).sum()),
        prefixes=dict(zip(ends, totals[1:].tolist(), strict=True)),
    )


def _squares(rows_NO: Tensor) -> Tensor:
    return rows_NO.square().sum(dim=1)


def _about_mean(y_NO: Tensor) -> Tensor:
    """Return the sum of the squared distances from the mean row."""
    exact_NO = y_NO.double()
    return _squares(exact_NO - exact_NO.mean(dim=0)).sum()
