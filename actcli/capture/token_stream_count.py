"""From pieces of data to the tokens that count, in order, and a record of which they were.

Whatever the size of the pieces, the same tokens are counted: samples come in their order, tokens in
the order of their positions, the limit of lengths is found before anything is handed out, and a run
that stops after so many tokens stops at the same one.

Axis letters: P places of a piece, N tokens that count.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.token_rules import Places, TokenRules
from actcli.errors import ActcliError, DumpError, UsageError
from actcli.reports.sae_subject import TokenSet

MEDIAN_TOKENS = 4096
"""Over the lengths of so many tokens, the first that count otherwise, the median is taken."""


class TokenBatch(NamedTuple):
    """Some tokens that count; valid until the next batch is asked for."""

    acts: Mapping[str, Tensor]
    """Activations (N, width) by key, float32, all finite."""

    samples_N: NDArray[np.int64]
    """Which sample each token is of; not falling."""

    positions_N: NDArray[np.int64]
    """Which token of its sample it is, from 0, padding not counted."""

    ids_N: NDArray[np.int64] | None
    """Token ids, where they are known."""


class Piece(NamedTuple):
    """Consecutive places of a source, and a way to read what it has there."""

    places: Places
    select: Callable[[str, NDArray[np.int64] | None], Tensor]
    """Gives a key at places of the piece, by their numbers (None: at all of them): (n, width)
    float32."""


@dataclass
class TokenCount:
    """Takes note of what was counted, for the report."""

    rules: TokenRules
    normed: Sequence[str]
    """The keys that `max_norm_multiple` looks at."""

    source: str
    words: tuple[str, ...]
    error: type[ActcliError] = DumpError
    """What a value that is not finite is refused with."""

    limits: dict[str, float] = field(default_factory=dict)
    """Largest length of a token that counts, by key; filled by `batches`."""

    n_counted: int = 0
    n_samples: int = 0
    n_read: int = 0
    """Real tokens up to the last one that was looked at."""

    _last_sample: int = -1
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def batches(self, pieces: Iterable[Piece], *, keys: Sequence[str]) -> Iterator[TokenBatch]:
        """Yield the tokens that count.

        Raises:
            ActcliError: a value that is not finite, of the class `error`.
            UsageError: no token counts.
        """
        for batch, ranks_N in self._within_limits(self._candidates(pieces, keys)):
            left = None if self.rules.most_tokens is None else self.rules.most_tokens
            left = None if left is None else left - self.n_counted
            if left is not None and len(ranks_N) >= left:
                self._note(_first(batch, left))
                self.n_read = int(ranks_N[left - 1]) + 1
                yield _first(batch, left)
                return
            self._note(batch)
            yield batch
        if not self.n_counted:
            raise UsageError(
                f"none of the {self.n_read} tokens of {self.source} counts "
                f"({'; '.join(self._all_words()) or 'all are padding'}): leave fewer of them out"
            )

    def token_set(self) -> TokenSet:
        """Return what was counted so far."""
        return TokenSet(
            source=self.source,
            n_samples=self.n_samples,
            n_tokens=self.n_counted,
            n_excluded=self.n_read - self.n_counted,
            rules=self._all_words(),
            sha256=self._digest.hexdigest(),
        )

    def _candidates(
        self, pieces: Iterable[Piece], keys: Sequence[str]
    ) -> Iterator[tuple[TokenBatch, NDArray[np.int64]]]:
        """Give what counts but for its length, with the number of each among all real tokens."""
        n_before = 0
        for places, select in pieces:
            kept_P = self.rules.keep(places)
            kept_N = kept_P.nonzero()[0]
            ranks_N = n_before + (places.is_real_P.cumsum() - 1)[kept_N]
            n_before += int(places.is_real_P.sum())
            self.n_read = n_before
            if not kept_N.size:
                continue
            chosen = None if kept_P.all() else kept_N
            batch = TokenBatch(
                {key: select(key, chosen) for key in keys},
                places.samples_P[kept_N],
                places.positions_P[kept_N],
                None if places.ids_P is None else places.ids_P[kept_N],
            )
            for key in keys:
                check_finite(batch.acts[key], batch, key, self.source, self.error)
            yield batch, ranks_N

    def _within_limits(
        self, candidates: Iterator[tuple[TokenBatch, NDArray[np.int64]]]
    ) -> Iterator[tuple[TokenBatch, NDArray[np.int64]]]:
        multiple = self.rules.max_norm_multiple
        if multiple is None:
            yield from candidates
            return
        held: list[tuple[TokenBatch, NDArray[np.int64]]] = []
        lengths: dict[str, list[NDArray[np.float64]]] = {key: [] for key in self.normed}
        if not self.limits:
            count = 0
            for batch, ranks_N in candidates:
                held.append((_copied(batch), ranks_N))
                for key in self.normed:
                    lengths[key].append(token_lengths(batch.acts[key]).cpu().numpy())
                count += len(ranks_N)
                if count >= MEDIAN_TOKENS:
                    break
            self.limits = {key: multiple * _median(each) for key, each in lengths.items() if each}
        while held:
            yield from self._shorter(*held.pop(0))
        for batch, ranks_N in candidates:
            yield from self._shorter(batch, ranks_N)

    def _shorter(
        self, batch: TokenBatch, ranks_N: NDArray[np.int64]
    ) -> Iterator[tuple[TokenBatch, NDArray[np.int64]]]:
        kept_N = within_limits(batch.acts, self.limits).cpu().numpy()
        if kept_N.all():
            yield batch, ranks_N
        elif kept_N.any():
            yield _chosen(batch, kept_N.nonzero()[0]), ranks_N[kept_N]

    def _note(self, batch: TokenBatch) -> None:
        self.n_counted += len(batch.samples_N)
        starts_N = np.diff(batch.samples_N, prepend=self._last_sample) != 0
        self.n_samples += int(starts_N.sum())
        self._last_sample = int(batch.samples_N[-1])
        pairs_N2 = np.stack([batch.samples_N, batch.positions_N], axis=1)
        self._digest.update(pairs_N2.astype("<i8").tobytes())

    def _all_words(self) -> tuple[str, ...]:
        multiple = self.rules.max_norm_multiple
        return self.words + tuple(
            f"without tokens whose {key} is longer than {multiple:g} times the median length "
            f"(above {limit:.6g})"
            for key, limit in self.limits.items()
        )


def token_lengths(acts_NH: Tensor) -> Tensor:
    """Return the Euclidean length of each token, (N,) float64."""
    wide = torch.float64 if acts_NH.device.type != "mps" else torch.float32
    lengths_N: Tensor = torch.linalg.vector_norm(acts_NH, dim=-1, dtype=wide)
    return lengths_N


def within_limits(acts: Mapping[str, Tensor], limits: Mapping[str, float]) -> Tensor:
    """Return which tokens (N,) are not longer than the limit in any of the keys."""
    return torch.stack([token_lengths(acts[key]) <= limits[key] for key in limits]).all(dim=0)


def check_finite(
    acts_NH: Tensor, batch: TokenBatch, key: str, source: str, error: type[ActcliError]
) -> None:
    """Refuse a value that is NaN or infinite, and name the first one."""
    if bool(acts_NH.sum().isfinite()):  # any such value makes the sum so; a large sum may be, too
        return
    bad_N = (~acts_NH.isfinite()).any(dim=-1).nonzero()[:, 0].tolist()
    if not bad_N:
        return
    first = bad_N[0]
    dimension = int((~acts_NH[first].isfinite()).nonzero()[0, 0])
    value = float(acts_NH[first, dimension])
    raise error(
        f"{source}: {key!r} is {value} at sample {int(batch.samples_N[first])}, position "
        f"{int(batch.positions_N[first])}, dimension {dimension} ({len(bad_N)} such tokens among "
        f"those read with it), expected finite numbers: capture it again, in float32 if it was "
        f"float16"
    )


def _median(lengths: Sequence[NDArray[np.float64]]) -> float:
    return float(np.median(np.concatenate(lengths)[:MEDIAN_TOKENS]))


def _first(batch: TokenBatch, count: int) -> TokenBatch:
    return TokenBatch(
        {key: acts[:count] for key, acts in batch.acts.items()},
        batch.samples_N[:count],
        batch.positions_N[:count],
        None if batch.ids_N is None else batch.ids_N[:count],
    )


def _chosen(batch: TokenBatch, kept_N: NDArray[np.int64]) -> TokenBatch:
    return TokenBatch(
        {key: acts[torch.from_numpy(kept_N).to(acts.device)] for key, acts in batch.acts.items()},
        batch.samples_N[kept_N],
        batch.positions_N[kept_N],
        None if batch.ids_N is None else batch.ids_N[kept_N],
    )


def _copied(batch: TokenBatch) -> TokenBatch:
    """A batch that stays valid: sources write over their buffers."""
    return batch._replace(acts={key: acts.clone() for key, acts in batch.acts.items()})
