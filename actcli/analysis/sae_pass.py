"""Dictionaries on the same tokens, all in one pass, in memory that does not grow with the tokens.

Tokens are taken in chunks. What belongs to a target is summed once, however many dictionaries
write to it; each dictionary then encodes and decodes the chunk.

Tensor legend: N tokens, S runs of tokens of one cluster of samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_clusters import MOST_CLUSTERS, Runs, SampleClusters
from actcli.analysis.sae_formulas import ClusterSums
from actcli.analysis.sae_held import HELD_BYTES
from actcli.analysis.sae_results import (
    PassResult,
    activation_report,
    density_report,
    prefix_reports,
    reconstruction_report,
    sparsity_report,
    utilization_report,
)
from actcli.analysis.sae_sums import ActivitySums, PrefixSums, ReconstructionSums
from actcli.analysis.sae_targets import TargetChunk, TargetSums
from actcli.errors import UsageError
from actcli.saes.dictionary import Dictionary, SparseActs

CHUNK_BYTES = 24 << 20
"""Of the tokens of the widest activation that are taken at once."""


@dataclass(frozen=True)
class Candidate:
    """A dictionary and what it is evaluated on."""

    dictionary: Dictionary
    x: str
    """Key of the activation that it reads."""

    y: str
    """Key of its target."""


class DictionaryPass:
    """Takes tokens batch by batch; says at the end how good each dictionary is."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        dense_threshold: float = 0.01,
        keep_acts: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
        most_clusters: int = MOST_CLUSTERS,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """Prepare the sums.

        Args:
            candidates: Any number of dictionaries.
            dense_threshold: A feature is dense if it fires on more than this share of the tokens.
            keep_acts: Whether `add` returns the active features; they take 20 bytes each.
            chunk_bytes: Of the widest activation that is taken at once.
            most_clusters: Groups of samples for standard errors; even.
            held_bytes: Of each target that is kept, see `actcli.analysis.sae_legacy`.
        """
        self._clusters = SampleClusters(most_clusters)
        self._keep_acts = keep_acts
        self._chunk_bytes = chunk_bytes
        self._targets = {
            each.y: TargetSums(each.dictionary.d_out, most=most_clusters, held_bytes=held_bytes)
            for each in candidates
        }
        self._each = [_OneDictionary(each, dense_threshold, most_clusters) for each in candidates]

    def add(self, acts: Mapping[str, Tensor], samples_N: NDArray[np.int64]) -> list[SparseActs]:
        """Evaluate the dictionaries on some tokens.

        Args:
            acts: By key, float32 (N, width).
            samples_N: The sample that each token is of; samples come in order, and may go on in
                the next call.

        Returns:
            The active features by dictionary; none if they are not kept.

        Raises:
            UsageError: an activation is missing, has another width than a dictionary, or numbers
                that are not finite.
        """
        self._check(acts, len(samples_N))
        found = [[each.silence()] for each in self._each]
        for part in self._chunks(acts, len(samples_N)):
            runs = self._clusters.runs(samples_N[part])
            active = self._add_chunk({key: each[part] for key, each in acts.items()}, runs)
            if self._keep_acts:
                for own, new in zip(found, active, strict=True):
                    own.append(new)
        return [SparseActs.joined(own) for own in found] if self._keep_acts else []

    def _chunks(self, acts: Mapping[str, Tensor], n: int) -> Iterator[slice]:
        widest = max(each.shape[1] for each in acts.values())
        most = max(1, self._chunk_bytes // (4 * widest))
        tokens = -(-n // max(1, -(-n // most))) or 1
        for first in range(0, n, tokens):
            yield slice(first, min(first + tokens, n))

    @torch.no_grad()
    def _add_chunk(self, acts: Mapping[str, Tensor], runs: Runs) -> list[SparseActs]:
        keys = {key for each in self._each for key in (each.candidate.x, each.candidate.y)}
        device = self._each[0].candidate.dictionary.device
        here = {key: acts[key].to(device, torch.float32) for key in keys}
        chunks = {key: sums.add(here[key], runs) for key, sums in self._targets.items()}
        for key, chunk in chunks.items():
            if not bool(chunk.norms_N.isfinite().all()):
                raise UsageError(
                    f"the activations {key} have numbers that are not finite, or too large for"
                    " float32: write them again in a wider type, or leave those tokens out"
                )
        return [
            each.add(here[each.candidate.x], chunks[each.candidate.y], runs) for each in self._each
        ]

    def _check(self, acts: Mapping[str, Tensor], n: int) -> None:
        for each in self._each:
            dictionary, candidate = each.candidate.dictionary, each.candidate
            name = dictionary.origin.name
            for key, width, verb in (
                (candidate.x, dictionary.d_in, "reads"),
                (candidate.y, dictionary.d_out, "writes"),
            ):
                if key not in acts:
                    there = ", ".join(sorted(acts))
                    raise UsageError(f"{name} {verb} {key}, which is not there: {there}")
                if tuple(acts[key].shape) != (n, width):
                    raise UsageError(
                        f"{name} {verb} vectors of width {width}, but {key} has the shape"
                        f" {tuple(acts[key].shape)}: expected ({n}, {width})"
                    )

    def results(self) -> list[PassResult]:
        """Return what the tokens say of each dictionary.

        Raises:
            UsageError: there was no token.
        """
        if not self._clusters.count:
            raise UsageError("there is no token to evaluate on: the rules leave out all of them")
        return [each.result(self._targets[each.candidate.y], self._clusters) for each in self._each]


class _OneDictionary:
    def __init__(self, candidate: Candidate, dense_threshold: float, most: int) -> None:
        self.candidate = candidate
        dictionary = candidate.dictionary
        self._dense_threshold = dense_threshold
        self._activity = ActivitySums(dictionary.n_features, most=most)
        self._full = ReconstructionSums(dictionary.d_out, most=most)
        self._prefixes = tuple(each for each in dictionary.prefixes if each < dictionary.n_features)
        self._parts = [PrefixSums() for _each in dictionary.prefixes]

    def silence(self) -> SparseActs:
        dictionary = self.candidate.dictionary
        return SparseActs.of(torch.zeros(0, dictionary.n_features, device=dictionary.device))

    def add(self, x_NI: Tensor, chunk: TargetChunk, runs: Runs) -> SparseActs:
        dictionary = self.candidate.dictionary
        acts = dictionary.encode(x_NI)
        stops = (*self._prefixes, dictionary.n_features)
        rebuilt = dictionary.decode_prefixes(acts, x_NI, prefixes=stops)
        for part, r_NO in zip(self._parts, rebuilt, strict=False):
            part.add(r_NO, chunk)
        self._activity.add(acts, runs)
        self._full.add(rebuilt[-1], chunk, runs)
        return acts

    def result(self, target: TargetSums, clusters: SampleClusters) -> PassResult:
        sums = self._sums(target, clusters)
        n, fired_D = round(sums.n), self._activity.fired_D
        return PassResult(
            sparsity=sparsity_report(self._activity, sums),
            reconstruction=reconstruction_report(sums),
            utilization=utilization_report(fired_D, n, self._dense_threshold),
            activation_stats=activation_report(self._activity),
            density=density_report(fired_D, n),
            prefixes=prefix_reports(
                self.candidate.dictionary.prefixes, self._parts, self._activity, sums
            ),
            density_D=fired_D / n,
            sums=sums,
            warnings=tuple(self._warnings(sums)),
        )

    def _sums(self, target: TargetSums, clusters: SampleClusters) -> ClusterSums:
        table, (count, width) = target.table, (clusters.count, clusters.width)
        mean_O = table.counts_C @ table.means_CO / table.counts_C.sum()
        residual_means_CO, residual_squares_C = self._full.residuals.first(count, width)
        return ClusterSums(
            n_C=table.counts_C[:count].copy(),
            means_CO=table.means_CO[:count].copy(),
            squares_C=table.squares_C[:count].copy(),
            reconstruction_CK=self._full.table.first(count, width),
            residual_means_CO=residual_means_CO,
            residual_squares_C=residual_squares_C,
            activity_CK=self._activity.table.first(count, width),
            legacy=self._full.legacy.result(target.held, mean_O, clusters=count, width=width),
        )

    def _warnings(self, sums: ClusterSums) -> Iterator[str]:
        name, key = self.candidate.dictionary.origin.name, self.candidate.y
        if sums.is_constant:
            yield (
                f"{name}: its target {key} is the same on all {round(sums.n):,} tokens, so there"
                " is no variance to explain: fvu and explained variance are undefined"
            )
        if not sums.legacy.is_known and not sums.is_constant:
            yield (
                f"{name}: over {round(sums.n):,} tokens the mean of its target {key} moves too far"
                " for explained_variance_legacy to be told to a thousandth in one pass, so it is"
                " null: shuffle the samples, or take fewer tokens"
            )
        if not self._activity.fired_D.any():
            yield f"{name}: no feature fires on any of {round(sums.n):,} tokens"
        if len(sums.n_C) == 1:
            yield f"{name}: all tokens are of one sample, so there are no standard errors"
