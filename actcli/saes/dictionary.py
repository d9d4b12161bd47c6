"""A sparse dictionary, SAE or transcoder, in one form whatever format it was stored in.

    z = normalise(x) - centre                     what the encoder reads
    h = (z @ W_enc + b_enc) * scale               pre-activations
    a = activation(h)                             features
    y = (a / scale) @ W_dec + b_dec + x @ W_skip  in the normalised space
    r = denormalise(y)                            the reconstruction of the target

An SAE's target is x itself; a transcoder's is another activation of the same token.

Tensor legend: N tokens, I input width, O output width, D features, M active features of all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from actcli.saes.activations import Activation
from actcli.saes.decoder import weighted_rows
from actcli.saes.encoder import Encoder
from actcli.saes.normalisations import IDENTITY, Normalisation


@dataclass(frozen=True)
class Place:
    """Where in a model a dictionary reads or writes."""

    hook: str
    """As its file says it: `blocks.8.hook_mlp_out`, `model.layers.8.mlp`, `mlp_in`, ..."""

    site: str | None = None
    """The same as a site of actcli; None where there is none."""

    layer: int | None = None


@dataclass(frozen=True)
class Origin:
    """What is known of a dictionary beside its weights."""

    name: str
    """What tables and plots call it."""

    path: Path
    """The file with the weights."""

    format: str
    """Who writes such files: `gemma_scope`, `saelens`, ..."""

    architecture: str
    """In the words of that format: `jumprelu`, `topk`, `BatchTopKSAE`, ..."""

    dtype: str
    """Of the stored weights: `float32`, `bfloat16`, ..."""

    reads: Place | None = None
    writes: Place | None = None
    """The target; None for an SAE, which writes what it reads, and where the file does not say."""

    is_transcoder: bool | None = None
    """None where the file does not say: then `writes` and the widths decide."""

    model: str | None = None
    """The model it was trained on, as the file names it."""

    notes: tuple[str, ...] = ()
    """What the user should know of it: an untrained threshold, a scale that was not stored, ..."""


class SparseActs(NamedTuple):
    """The active features of some tokens, by token, then by feature."""

    tokens_M: Tensor
    """int64, rising."""

    features_M: Tensor
    """int64, rising within a token."""

    values_M: Tensor
    """float32, never 0."""

    n_tokens: int

    @classmethod
    def of(cls, acts_ND: Tensor) -> "SparseActs":
        """Return the non-zero elements of dense features (N, D)."""
        tokens_M, features_M = acts_ND.nonzero(as_tuple=True)
        return cls(tokens_M, features_M, acts_ND[tokens_M, features_M], len(acts_ND))

    @classmethod
    def joined(cls, parts: "Sequence[SparseActs]") -> "SparseActs":
        """Return the features of several parts, whose tokens follow one another."""
        starts = accumulate((each.n_tokens for each in parts), initial=0)
        return cls(
            torch.cat([each.tokens_M + first for each, first in zip(parts, starts, strict=False)]),
            torch.cat([each.features_M for each in parts]),
            torch.cat([each.values_M for each in parts]),
            sum(each.n_tokens for each in parts),
        )

    def below(self, first: int, stop: int) -> "SparseActs":
        """Return the features from `first` up to `stop`, without it."""
        kept_M = (self.features_M >= first) & (self.features_M < stop)
        return self._replace(
            tokens_M=self.tokens_M[kept_M],
            features_M=self.features_M[kept_M],
            values_M=self.values_M[kept_M],
        )


_Weights = TypeVar("_Weights", Tensor, Tensor | None)


@dataclass(frozen=True)
class Dictionary:
    """Weights and formulas of a dictionary; float32 on one device."""

    origin: Origin
    W_enc_ID: Tensor
    b_enc_D: Tensor
    W_dec_DO: Tensor
    b_dec_O: Tensor
    activation: Activation
    centre_I: Tensor | None = None
    normalisation: Normalisation = IDENTITY
    scale_D: Tensor | None = None
    W_skip_IO: Tensor | None = None
    prefixes: tuple[int, ...] = ()
    """How many features each nested part has, rising, the last one all; () if it is not nested."""

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.W_enc_ID.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.W_enc_ID.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.W_dec_DO.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc_ID.device

    def encode(self, x_NI: Tensor) -> SparseActs:
        """Return the active features of tokens (N, I), computed in float32."""
        z_NI, _inverse = self.normalisation(x_NI)
        if self.centre_I is not None:
            z_NI = z_NI - self.centre_I
        return SparseActs(*self._encoder(z_NI), len(x_NI))

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.W_enc_ID, self.b_enc_D, self.activation, scale_D=self.scale_D)

    def decode(self, acts: SparseActs, x_NI: Tensor) -> Tensor:
        """Return the reconstruction (N, O) of the target of tokens whose input was x."""
        return self.decode_prefixes(acts, x_NI, prefixes=(self.n_features,))[0]

    def decode_prefixes(
        self, acts: SparseActs, x_NI: Tensor, *, prefixes: Sequence[int]
    ) -> list[Tensor]:
        """Return the reconstructions (N, O) by the first features alone, for rising numbers."""
        _z_NI, inverse = self.normalisation(x_NI)
        y_NO = self.b_dec_O.expand(acts.n_tokens, -1)
        if self.W_skip_IO is not None:
            y_NO = y_NO + x_NI @ self.W_skip_IO
        found, done = [], 0
        for stop in prefixes:
            y_NO = y_NO + self._sum_rows(acts, done, stop)
            found.append(inverse(y_NO))
            done = stop
        return found

    def _sum_rows(self, acts: SparseActs, first: int, stop: int) -> Tensor:
        if (first, stop) != (0, self.n_features):
            acts = acts.below(first, stop)
        values_M = acts.values_M
        if self.scale_D is not None:
            values_M = values_M / self.scale_D[acts.features_M]
        rows_DO = self.W_dec_DO[first:stop]
        features_M = acts.features_M - first if first else acts.features_M
        return weighted_rows(acts.tokens_M, features_M, values_M, rows_DO, n_tokens=acts.n_tokens)

    def to(self, device: torch.device | str) -> "Dictionary":
        """Return the same dictionary on a device, its tensors in one piece.

        A W_enc stored as (D, I) stays so, and is seen transposed: products are as fast, and the
        prefilter needs no copy of its own.
        """
        turned = not self.W_enc_ID.is_contiguous() and self.W_enc_ID.T.is_contiguous()
        W_enc_ID = _whole(self.W_enc_ID.T, device).T if turned else _whole(self.W_enc_ID, device)
        return replace(
            self,
            W_enc_ID=W_enc_ID,
            b_enc_D=_whole(self.b_enc_D, device),
            W_dec_DO=_whole(self.W_dec_DO, device),
            b_dec_O=_whole(self.b_dec_O, device),
            activation=self.activation.to(device),
            centre_I=_whole(self.centre_I, device),
            scale_D=_whole(self.scale_D, device),
            W_skip_IO=_whole(self.W_skip_IO, device),
        )

    def named(self, name: str) -> "Dictionary":
        """Return the same dictionary under another name."""
        return replace(self, origin=replace(self.origin, name=name))


def _whole(weights: _Weights, device: torch.device | str) -> _Weights:
    return weights if weights is None else weights.to(device).contiguous()
