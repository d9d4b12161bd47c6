"""The records of the logit lens: a table in columns.

Streams and layers: `resid` at layer 0 enters block 0, at layer l it is what block l-1 gives; `mid`,
`attn` and `mlp` at layer l are of block l-1. Blocks are counted from 0.

Tensor legend: R records, k largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

STREAMS = ("resid", "mid", "attn", "mlp")
"""The residual stream, the stream between attention and MLP, and what the two add to it."""


def place_name(stream: str, layer: int) -> str:
    """Name a place so that no count of layers is needed: `embed`, `post:0`, `mid:3`, `attn:3`."""
    if stream == "resid":
        return "embed" if layer == 0 else f"post:{layer - 1}"
    return f"{stream}:{layer - 1}"


@dataclass(frozen=True)
class LensTable:
    """Records, in columns; by sample, then stream, layer, position.

    P is the distribution of a record, Q the model's own at its position. The formulas stand in
    `actcli.analysis.lens_formulas`. What is of a target is NaN, and a rank 0, where there is none.
    """

    sample: NDArray[np.int64]
    stream: NDArray[np.int8]
    """Index into `STREAMS`."""

    layer: NDArray[np.int16]
    pos: NDArray[np.int32]
    token_id: NDArray[np.int32]
    """The input token at the position."""

    target_id: NDArray[np.int32]
    """The token that is followed: the next of the text, or the answer's first; -1 for none."""

    entropy_bits: NDArray[np.float32]
    p_target: NDArray[np.float32]
    nll_target_bits: NDArray[np.float32]
    kl_to_final_bits: NDArray[np.float32]
    """KL(P||Q)."""

    kl_from_final_bits: NDArray[np.float32]
    """KL(Q||P)."""

    js_bits: NDArray[np.float32]
    cos_to_final: NDArray[np.float32]
    """Cosine of the logits, as vectors over the vocabulary."""

    resid_norm: NDArray[np.float32]
    """Euclidean norm of the state, before any norm of the model."""

    rest_mass: NDArray[np.float32]
    """Probability outside the listed top k."""

    p_contrast: NDArray[np.float32]
    rank_target: NDArray[np.int32]
    """1 + number of logits strictly larger than the target's."""

    rank_contrast: NDArray[np.int32]
    top1_agree: NDArray[np.bool_]
    """Whether the likeliest token is the model's own."""

    top_ids: NDArray[np.int32]
    """(R, k): the likeliest tokens, descending; equal ones by rising id."""

    top_p: NDArray[np.float32]
    """(R, k)."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.sample)

    @property
    def top1_id(self) -> NDArray[np.int32]:
        """The likeliest token."""
        top1_R: NDArray[np.int32] = self.top_ids[:, 0]
        return top1_R

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def select(self, records: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Self:
        """Return some of the records: those of a mask, or by their numbers."""
        return type(self)(**{name: column[records] for name, column in self.columns.items()})

    def of_stream(self, stream: str) -> Self:
        """Return the records of one stream."""
        return self.select(self.stream == STREAMS.index(stream))

    def ordered(self) -> Self:
        """Return the same records by sample, stream, layer, position."""
        return self.select(np.lexsort((self.pos, self.layer, self.stream, self.sample)))

    @classmethod
    def concat(cls, tables: Sequence[Self]) -> Self:
        """Put tables one after the other; at least one, with the same k."""
        joined = {
            each.name: np.concatenate([getattr(table, each.name) for table in tables])
            for each in fields(cls)
        }
        return cls(**joined)
