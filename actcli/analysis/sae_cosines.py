"""Geometry of a dictionary: which features point the same way.

`decoder_redundancy` is the share of pairs of decoder rows with |cosine| above a threshold: all
pairs, each decision exact in float64, none left out (the Matryoshka program takes 8,192 rows at
random). `cosine_report` says how close each feature is to its nearest. Neither is the feature
absorption of Chanin et al. 2024 (arXiv:2409.14507): see `sae_first_letter`.

    cos_ij = w_i . w_j / (|w_i| |w_j|)         redundancy = #{i < j: |cos_ij| > t} / (D (D - 1) / 2)

How it is done in a tenth of the time that all products take: `sae_cosine_pairs`.

Tensor legend: D features, I input width, O output width, F features asked for, R rows with a
direction, N listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_cosine_maxima import row_maxima
from actcli.analysis.sae_cosine_pairs import Found, PairSearch, groups
from actcli.analysis.sae_cosine_rows import Directions, chunks
from actcli.errors import UsageError
from actcli.reports.sae_weights import AbsorptionReport, CosinePair, CosineReport, Percentiles
from actcli.saes.dictionary import Dictionary

_ELEMENTS = 1 << 24
"""Products held at a time by `nearest_features`."""


@dataclass(frozen=True)
class Redundancy:
    """Of the decoder, and of its nested parts."""

    report: AbsorptionReport
    by_prefix: tuple[float | None, ...]
    """For each prefix: the share of the pairs within it; None for a single feature."""


@dataclass(frozen=True)
class CosineFeatures:
    """What `cosine_report` sums up, for each feature (D,), float64; NaN where undefined."""

    max_decoder_cosine: NDArray[np.float64]
    max_decoder_abs_cosine: NDArray[np.float64]
    max_encoder_cosine: NDArray[np.float64]
    encoder_decoder_cosine: NDArray[np.float64]
    encoder_norm: NDArray[np.float64]
    decoder_norm: NDArray[np.float64]
    encoder_bias: NDArray[np.float64]
    mean_abs_decoder_cosine: float | None


def decoder_redundancy(
    W_dec_DO: Tensor,
    *,
    threshold: float = 0.9,
    prefixes: Sequence[int] = (),
    most: int = 100,
    dtype: torch.dtype | None = None,
    pruned: int | None = None,
) -> Redundancy:
    """Count the pairs of decoder rows with |cosine| above a threshold.

    Args:
        W_dec_DO: (D, O), on any device.
        threshold: From 0 to 1; a pair at the threshold does not count.
        prefixes: Features of each nested part, rising.
        most: How many of the strongest pairs are listed.
        dtype: Of the products that judge most pairs; None takes the faster one. Results are equal.
        pruned: How many coordinates the first of them has, 0 for all; None finds out.

    Raises:
        UsageError: the threshold is outside 0..1.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"a |cosine| lies between 0 and 1, so the threshold cannot be {threshold}")
    W_dec_DO = _with_float64(W_dec_DO)
    n = len(W_dec_DO)
    directions = Directions(W_dec_DO)
    group_D = groups(prefixes, n, W_dec_DO.device)
    found = PairSearch(
        directions,
        threshold=threshold,
        most=most,
        group_D=group_D,
        n_groups=len(prefixes) + 1,
        dtype=dtype,
        pruned=pruned,
    ).run()
    return _redundancy(found, directions, group_D, threshold=threshold, prefixes=prefixes)


def cosine_report(dictionary: Dictionary, *, pair_statistics: bool = False) -> CosineReport:
    """Return how close each feature is to its nearest and to its own encoder.

    Args:
        dictionary: The dictionary.
        pair_statistics: Whether the mean |cosine| of all pairs is wanted too.
    """
    found = cosine_features(dictionary, pair_statistics=pair_statistics)
    encoder_norm, decoder_norm = percentiles(found.encoder_norm), percentiles(found.decoder_norm)
    if encoder_norm is None or decoder_norm is None:
        raise UsageError(f"{dictionary.origin.name} has no features at all")
    return CosineReport(
        max_decoder_cosine=percentiles(found.max_decoder_cosine),
        max_decoder_abs_cosine=percentiles(found.max_decoder_abs_cosine),
        max_encoder_cosine=percentiles(found.max_encoder_cosine),
        encoder_decoder_cosine=percentiles(found.encoder_decoder_cosine),
        encoder_norm=encoder_norm,
        decoder_norm=decoder_norm,
        encoder_bias=percentiles(found.encoder_bias),
        mean_abs_decoder_cosine=found.mean_abs_decoder_cosine,
    )


def cosine_features(dictionary: Dictionary, *, pair_statistics: bool = False) -> CosineFeatures:
    """Return what `cosine_report` sums up, feature by feature.

    A feature whose row is 0 has no cosine, and is nobody's nearest; a single one has no nearest.
    """
    encoder_DI = _with_float64(dictionary.W_enc_ID.T).contiguous()
    of_encoder = Directions(encoder_DI)
    encoder_max_R = row_maxima(of_encoder).signed_R
    decoder_DO = _with_float64(dictionary.W_dec_DO)
    of_decoder = Directions(decoder_DO)
    decoder_max = row_maxima(of_decoder, mean=pair_statistics)
    return CosineFeatures(
        max_decoder_cosine=_spread(decoder_max.signed_R, of_decoder),
        max_decoder_abs_cosine=_spread(decoder_max.absolute_R, of_decoder),
        max_encoder_cosine=_spread(encoder_max_R, of_encoder),
        encoder_decoder_cosine=_own_cosines(encoder_DI, of_encoder, decoder_DO, of_decoder),
        encoder_norm=of_encoder.norms_D.cpu().numpy(),
        decoder_norm=of_decoder.norms_D.cpu().numpy(),
        encoder_bias=dictionary.b_enc_D.detach().cpu().double().numpy(),
        mean_abs_decoder_cosine=decoder_max.mean_absolute,
    )


def nearest_features(
    W_DO: Tensor, features: Sequence[int], *, n: int
) -> list[list[tuple[int, float]]]:
    """Return the features whose decoder rows are most similar to those of some features.

    Args:
        W_DO: Decoder rows (D, O).
        features: Which features.
        n: How many to return for each, by signed cosine, falling; equal ones by number. Rows of
            length 0 are not among them, and have none.
    """
    norms_D = torch.linalg.vector_norm(_with_float64(W_DO), dim=1, dtype=torch.float64)
    asked_F = torch.tensor(list(features), dtype=torch.int64, device=norms_D.device)
    step, found = max(1, _ELEMENTS // max(1, len(norms_D))), []
    for start in range(0, len(asked_F), step):
        part_F = asked_F[start : start + step]
        cosines_FD = _cosines_with_all(_with_float64(W_DO), norms_D, part_F)
        found += [_nearest(cosines_D, n) for cosines_D in cosines_FD]
    return found


def percentiles(values: NDArray[np.float64]) -> Percentiles | None:
    """Return the distribution of values that are defined; None if there are none.

    Percentiles lie between values, linearly, as numpy's do by default.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, p01, p10, median, p90, p99, high = np.percentile(values, [0, 1, 10, 50, 90, 99, 100])
    return Percentiles(
        mean=float(values.mean()),
        min=float(low),
        p01=float(p01),
        p10=float(p10),
        median=float(median),
        p90=float(p90),
        p99=float(p99),
        max=float(high),
    )


def _with_float64(W_DO: Tensor) -> Tensor:
    """Return the weights where float64 can be computed: Apple's GPU cannot."""
    return W_DO.cpu() if W_DO.device.type == "mps" else W_DO


def _redundancy(
    found: Found,
    directions: Directions,
    group_D: Tensor,
    *,
    threshold: float,
    prefixes: Sequence[int],
) -> Redundancy:
    """Put into words what a search has counted."""
    n = len(group_D)
    above = found.above_G.cumsum(0).tolist()
    report = AbsorptionReport(
        score=_share(above[-1], n),
        pairs_above_threshold=2 * above[-1],
        threshold=threshold,
        unordered_pairs=above[-1],
        unordered_pairs_positive=found.positive,
        total_unordered_pairs=n * (n - 1) // 2,
        n_features_evaluated=n,
        n_zero_rows=n - len(directions),
        pairs=_listed(found, directions, group_D if prefixes else None),
    )
    shares = (_share(count, size) for count, size in zip(above, prefixes, strict=False))
    return Redundancy(report, tuple(shares))


def _share(pairs: int, n: int) -> float | None:
    return pairs / (n * (n - 1) // 2) if n > 1 else None


def _listed(found: Found, directions: Directions, group_D: Tensor | None) -> tuple[CosinePair, ...]:
    index_R = directions.index_R
    listed = []
    ends = zip(index_R[found.first_P].tolist(), index_R[found.second_P].tolist(), strict=True)
    for (one, two), cosine in zip(ends, found.cosines_P.tolist(), strict=True):
        first, second = min(one, two), max(one, two)
        parts = None if group_D is None else (int(group_D[first]), int(group_D[second]))
        listed.append(CosinePair(first=first, second=second, cosine=cosine, prefixes=parts))
    return tuple(listed)


def _spread(values_R: Tensor, directions: Directions) -> NDArray[np.float64]:
    """Give rows without a direction, or without another row, NaN."""
    values_D = torch.full_like(directions.norms_D, torch.nan)
    if len(directions) > 1:
        values_D[directions.index_R] = values_R
    return values_D.cpu().numpy()


def _own_cosines(
    encoder_DI: Tensor, of_encoder: Directions, decoder_DO: Tensor, of_decoder: Directions
) -> NDArray[np.float64]:
    """Return the cosine of each feature's encoder and decoder; NaN if their widths differ."""
    norms_D = of_encoder.norms_D * of_decoder.norms_D
    cosines_D = torch.full_like(norms_D, torch.nan)
    if encoder_DI.shape == decoder_DO.shape:
        for chunk in chunks(*encoder_DI.shape):
            products_I = (encoder_DI[chunk].double() * decoder_DO[chunk].double()).sum(1)
            cosines_D[chunk] = products_I
        cosines_D = torch.where(norms_D > 0, cosines_D / norms_D, torch.nan).clamp(-1, 1)
    return cosines_D.cpu().numpy()


def _cosines_with_all(W_DO: Tensor, norms_D: Tensor, features_F: Tensor) -> Tensor:
    """Return the cosines (F, D) in float32; -inf for a feature itself and for rows of 0."""
    unit_FO = (W_DO[features_F].double() / norms_D[features_F, None]).float()
    cosines_FD = torch.empty(len(features_F), len(W_DO), device=W_DO.device)
    for chunk in chunks(*W_DO.shape):
        unit_CO = (W_DO[chunk].double() / norms_D[chunk, None]).float()
        cosines_FD[:, chunk] = unit_FO @ unit_CO.T
    cosines_FD.scatter_(1, features_F[:, None], -torch.inf)
    return cosines_FD.nan_to_num_(nan=-torch.inf, neginf=-torch.inf).clamp_(max=1)


def _nearest(cosines_D: Tensor, n: int) -> list[tuple[int, float]]:
    """Return the n largest, falling; of equal ones the first."""
    cut = cosines_D.topk(min(n, len(cosines_D))).values[-1:]
    near_N = (cosines_D >= cut).logical_and_(cosines_D.isfinite()).nonzero().squeeze(1)
    order_N = cosines_D[near_N].argsort(descending=True, stable=True)[:n]
    chosen_N = near_N[order_N]
    return list(zip(chosen_N.tolist(), cosines_D[chosen_N].tolist(), strict=True))
