"""What `attn-plot` answers: the attention maps, and numbers by head.

Tensor legend: B samples, L layers, A heads, T queries, S keys.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Report


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of some layers and heads on some boards."""

    weights_BLATS: NDArray[np.float32]
    boards_BT: NDArray[np.uint8]
    samples: tuple[int, ...]
    """Rows of the dump that the boards are."""

    layers: tuple[int, ...]
    """Model layers, counted from 0."""

    has_sinks: bool
    rounding: float = 1e-4
    """How far the sum of a row may be from 1 by rounding alone: more for fp16 and bf16 weights."""

    @property
    def heads(self) -> tuple[int, ...]:
        """Query heads, in the order of the forward pass: all of them."""
        return tuple(range(self.weights_BLATS.shape[2]))

    @property
    def weights(self) -> tuple[NDArray[np.float32], ...]:
        """The weights (L, A, T, S) of each sample."""
        return tuple(self.weights_BLATS)

    @property
    def sinks(self) -> tuple[NDArray[np.float32], ...]:
        """The mass that the sinks took (L, A, T), of each sample."""
        return tuple(self.sinks_BLAT)

    @property
    def sinks_BLAT(self) -> NDArray[np.float32]:
        """The mass that each query's sink took; 0 in a model without sinks."""
        return _sinks(self.weights_BLATS, has_sinks=self.has_sinks)

    @property
    def side(self) -> int:
        """Cells along one side of the board."""
        return isqrt(self.boards_BT.shape[1])


@dataclass(frozen=True)
class TextMaps:
    """Attention of some layers and heads on some texts: their own tokens alone, no padding."""

    weights: tuple[NDArray[np.float32], ...]
    """Of each sample (L, A, T, S), as many tokens as it has."""

    token_ids: tuple[NDArray[np.int32], ...]
    """Of each sample (T,)."""

    tokens: tuple[tuple[str, ...], ...]
    """Texts of the tokens of each sample, or `#1234` where no tokenizer is known."""

    samples: tuple[int, ...]
    """Rows of the dump that the texts are."""

    layers: tuple[int, ...]
    """Model layers, counted from 0."""

    has_sinks: bool
    rounding: float = 1e-4
    """How far the sum of a row may be from 1 by rounding alone: more for fp16 and bf16 weights."""

    @property
    def heads(self) -> tuple[int, ...]:
        """Query heads, in the order of the forward pass: all of them."""
        return tuple(range(self.weights[0].shape[1]))

    @property
    def sinks(self) -> tuple[NDArray[np.float32], ...]:
        """The mass that the sinks took (L, A, T), of each sample; 0 in a model without sinks."""
        return tuple(_sinks(each, has_sinks=self.has_sinks) for each in self.weights)


def _sinks(weights: NDArray[np.float32], *, has_sinks: bool) -> NDArray[np.float32]:
    if not has_sinks:
        return np.zeros(weights.shape[:-1], dtype=np.float32)
    taken: NDArray[np.float32] = 1.0 - weights.sum(axis=-1)
    return np.clip(taken, 0.0, 1.0)


class HeadReport(BaseModel):
    """One attention head on boards, averaged over the chosen samples and all queries.

    The formulas stand in `actcli.analysis.attention`.
    """

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    layer: int
    """Counted from 1, as --layer does."""

    head: int
    """Query head, counted from 0, in the order of the forward pass."""

    entropy_bits: float
    """Entropy of a query's distribution over keys and sink, in bits."""

    mean_distance: float
    """Mean distance to the keys, in steps along rows and columns, weighted by attention."""

    self_mass: float
    """Attention to the query's own cell."""

    row_mass: float
    """Attention to the other cells of its row."""

    column_mass: float
    """Attention to the other cells of its column."""

    corner_mass: float
    """Attention to the four corners."""

    equal_mass: float
    """Attention to other cells with the same tile, where the query's cell holds one."""

    empty_mass: float
    """Attention to empty cells."""

    sink_mass: float
    """Attention that the sink took: 0 in a model without sinks."""


class TextHeadReport(BaseModel):
    """One attention head on texts, averaged over all tokens of the chosen samples as queries.

    Padding does not count. The formulas stand in `actcli.analysis.attention_text`.
    """

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    layer: int
    """Counted from 1, as --layer does."""

    head: int
    """Query head, counted from 0, in the order of the forward pass."""

    entropy_bits: float
    """Entropy of a query's distribution over keys and sink, in bits."""

    mean_distance: float
    """Mean distance to the keys in tokens, weighted by attention."""

    first_mass: float | None
    """Attention to the first token by the tokens behind it; null where no sample has any."""

    previous_mass: float | None
    """Attention to the token before by the tokens that have one; null where none has."""

    self_mass: float
    """Attention to the query's own token."""

    sink_mass: float
    """Attention that the sink took: 0 in a model without sinks."""


class AttentionReport(Report):
    """Numbers of attention heads."""

    input: str
    """The dump."""

    samples: tuple[int, ...]
    """Its rows that were looked at."""

    heads: tuple[HeadReport, ...] | tuple[TextHeadReport, ...]
    """By layer, then head."""

    folder: str | None = None
    """Where the pictures are."""

    files: tuple[str, ...] = ()
    """Files that were written."""
