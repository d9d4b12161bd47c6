"""Which activations are shown, and what the feature does at all tokens around each.

What is kept of a pass is one activation of one token. Its context, half as many tokens on either
side as were asked for, is encoded in a second pass that takes only tokens of some context: bounded
by the contexts, not by the text.

Tensor legend: W contexts, M activations, N tokens, U different tokens of all contexts, P different
pairs of such a token and a feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actcli.analysis.feature_samples import Kept, TopSamples
from actcli.errors import UsageError
from actcli.saes.dictionary import SparseActs

_POSITION_BITS = 32


@dataclass(frozen=True)
class ChosenSamples:
    """What is shown of each feature."""

    features: tuple[int, ...]
    """The largest activation first; in the order asked for, if they were named."""

    samples: Kept
    """Their activations, by rising feature, then falling value."""

    n_features: int
    """Of the dictionary."""

    context: int
    """Half as many tokens, rounded down, stand on either side."""

    @property
    def side(self) -> int:
        """Tokens on either side of the token, at most."""
        return self.context // 2

    def rows_of(self, feature: int) -> range:
        """Which of the activations are of a feature."""
        first, stop = np.searchsorted(self.samples.feature_M, [feature, feature + 1])
        return range(int(first), int(stop))


def choose_samples(
    top: TopSamples,
    *,
    features: Sequence[int] | None = None,
    n_features: int | None = 100,
    n_samples: int = 10,
    context: int = 20,
) -> ChosenSamples:
    """Choose features by their largest activation, or those named, and the first samples of each.

    Args:
        top: what a pass kept.
        features: these; they may be without any sample.
        n_features: else so many, None for all that have a sample; of equal ones the lower number.
        n_samples: of each feature.
        context: size of the contexts.

    Raises:
        UsageError: the dictionary has no feature of a number.
    """
    kept = top.kept()
    if features is None:
        features = _strongest(kept)[:n_features]
    wrong = [each for each in features if not 0 <= each < top.n_features]
    if wrong:
        raise UsageError(
            f"there is no feature {wrong[0]}: the dictionary has features 0 to {top.n_features - 1}"
        )
    starts_D = np.searchsorted(kept.feature_M, np.arange(top.n_features))
    rank_M = np.arange(len(kept)) - starts_D[kept.feature_M]
    chosen_M = (rank_M < n_samples) & np.isin(kept.feature_M, np.array(features, np.int64))
    unique = tuple(dict.fromkeys(features))
    return ChosenSamples(unique, kept.select(chosen_M), top.n_features, context)


def _strongest(kept: Kept) -> list[int]:
    """Features with a sample, the largest activation first."""
    feature_M, first = np.unique(kept.feature_M, return_index=True)
    order = np.lexsort((feature_M, -kept.value_M[first]))
    found: list[int] = feature_M[order].tolist()
    return found


class ContextActs:
    """What each chosen feature does at the tokens of its contexts, collected from batches."""

    def __init__(self, chosen: ChosenSamples) -> None:
        self._chosen = chosen
        samples, side = chosen.samples, chosen.side
        steps = np.arange(-side, side + 1)
        places_WS = samples.position_M[:, None] + steps
        keys_WS = _keys(samples.sample_M[:, None], places_WS)
        is_place_WS = places_WS >= 0
        self._key_U = np.unique(keys_WS[is_place_WS])
        self._seen_U = np.zeros(len(self._key_U), np.bool_)
        tokens_WS = np.searchsorted(self._key_U, keys_WS)
        features_WS = np.broadcast_to(samples.feature_M[:, None], keys_WS.shape)
        self._pair_P = np.unique(self._pairs(tokens_WS[is_place_WS], features_WS[is_place_WS]))
        self._value_P = np.zeros(len(self._pair_P), np.float32)

    def wants(
        self, samples_N: NDArray[np.int64], positions_N: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Say which tokens stand in a context (N,)."""
        return _find(self._key_U, _keys(samples_N, positions_N))[1]

    def add(
        self, acts: SparseActs, samples_N: NDArray[np.int64], positions_N: NDArray[np.int64]
    ) -> None:
        """Take the active features of some tokens; tokens of no context are passed over."""
        place_N, wanted_N = _find(self._key_U, _keys(samples_N, positions_N))
        self._seen_U[place_N[wanted_N]] = True
        token_M = acts.tokens_M.cpu().numpy()
        value_M = acts.values_M.float().cpu().numpy()[wanted_N[token_M]]
        feature_M = acts.features_M.cpu().numpy()[wanted_N[token_M]]
        pair_M = self._pairs(place_N[token_M[wanted_N[token_M]]], feature_M)
        pair_of_M, known_M = _find(self._pair_P, pair_M)
        self._value_P[pair_of_M[known_M]] = value_M[known_M]

    def of(self, row: int, positions: Sequence[int]) -> dict[int, float | None]:
        """Return the activation of a feature at positions of a context of its.

        Args:
            row: which of the chosen activations.
            positions: within the context.

        Returns:
            By position: 0 where the feature is not active; None where the token did not count, or
            is not there.
        """
        samples = self._chosen.samples
        keys = _keys(samples.sample_M[row], np.array(positions, np.int64))
        place_T, known_T = _find(self._key_U, keys)
        pair_T, is_pair_T = _find(self._pair_P, self._pairs(place_T, samples.feature_M[row]))
        seen_T = known_T & is_pair_T & self._seen_U[place_T]
        values = zip(self._value_P[pair_T].tolist(), seen_T.tolist(), strict=True)
        found = [value if seen else None for value, seen in values]
        return dict(zip(positions, found, strict=True))

    def _pairs(
        self, token: NDArray[np.int64], feature: NDArray[np.int64] | np.int64
    ) -> NDArray[np.int64]:
        pairs: NDArray[np.int64] = token * self._chosen.n_features + feature
        return pairs


def _keys(sample: NDArray[np.int64] | np.int64, position: NDArray[np.int64]) -> NDArray[np.int64]:
    keys: NDArray[np.int64] = (sample << _POSITION_BITS) | position
    return keys


def _find(
    sorted_U: NDArray[np.int64], wanted_N: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each is among sorted ones, 0 where it is not, and whether it is there."""
    if not len(sorted_U):
        return np.zeros(len(wanted_N), np.int64), np.zeros(len(wanted_N), np.bool_)
    place_N = np.minimum(np.searchsorted(sorted_U, wanted_N), len(sorted_U) - 1)
    found_N = sorted_U[place_N] == wanted_N
    return np.where(found_N, place_N, 0), found_N
