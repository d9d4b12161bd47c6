"""Activation samples the slow way: a heap for each feature, and a step for each activation."""

import heapq
from typing import NamedTuple

import numpy as np
import torch

from actcli.saes.dictionary import SparseActs


class Tokens(NamedTuple):
    """Tokens with dense features, of several samples."""

    acts_ND: np.ndarray
    samples_N: np.ndarray
    positions_N: np.ndarray

    def rows(self, chosen):
        return Tokens(self.acts_ND[chosen], self.samples_N[chosen], self.positions_N[chosen])

    @property
    def sparse(self):
        return SparseActs.of(torch.from_numpy(self.acts_ND))


def made_tokens(*, n_samples=12, n_tokens=17, n_features=23, seed=0):
    """Many equal values, unequal largest ones; dead features; values at and below 0.1."""
    rng = np.random.default_rng(seed)
    n = n_samples * n_tokens
    acts_ND = rng.integers(-1, 9, (n, n_features)).astype(np.float32) / 4
    acts_ND *= 1 + np.arange(n_features, dtype=np.float32) * 7 % 5
    acts_ND[rng.random((n, n_features)) < 0.6] = 0
    acts_ND[rng.random((n, n_features)) < 0.03] = np.float32(0.1)
    acts_ND[:, [3, 11]] = 0
    acts_ND[:, 5] = np.where(acts_ND[:, 5] > 0, np.float32(0.05), 0)
    return Tokens(
        acts_ND, np.repeat(np.arange(n_samples), n_tokens), np.tile(range(n_tokens), n_samples)
    )


def in_batches(tokens, size):
    for start in range(0, len(tokens.acts_ND), size):
        yield tokens.rows(slice(start, start + size))


def heaps(tokens, *, most, threshold):
    """For each feature its largest (value, sample, position), the largest and earliest first."""
    kept = []
    for feature in range(tokens.acts_ND.shape[1]):
        heap = []
        for value, sample, position in zip(
            tokens.acts_ND[:, feature], tokens.samples_N, tokens.positions_N, strict=True
        ):
            if value > np.float32(threshold):
                heapq.heappush(heap, (float(value), -int(sample), -int(position)))
                if len(heap) > most:
                    heapq.heappop(heap)
        kept.append([(v, -s, -p) for v, s, p in sorted(heap, reverse=True)])
    return kept
