"""What `logit-lens` answers: a table of records, and a summary of it.

Streams and layers: `resid` at layer 0 enters block 0, at layer l it is what block l-1 gives; `mid`,
`attn` and `mlp` at layer l are of block l-1. Blocks are counted from 0.

Tensor legend: R records, k largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Report

STREAMS = ("resid", "mid", "attn", "mlp")
"""The residual stream, the stream between attention and MLP, and what the two add to it."""

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


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


class TokenReport(BaseModel):
    """A token, by number and to read."""

    model_config = _PLAIN

    id: int
    text: str
    """As the tokenizer decodes it alone; several tokens may read alike."""

    p: float | None = None
    """Its probability, where that is the matter."""


class AnswerReport(BaseModel):
    """A word that is followed through the layers."""

    model_config = _PLAIN

    text: str
    id: int
    """Its first token after this prompt: the one that is followed."""

    pieces: tuple[TokenReport, ...] = ()
    """All its tokens after this prompt."""


class Milestones(BaseModel):
    """First layers at which something holds, at one position, computed from the records.

    By name, of the residual stream (the first one read, where it was left out); null where it never
    holds. Thresholds stand in
    `actcli.analysis.lens_milestones`.

        L_copy                 the likeliest token is one of the prompt's, with p > 0.95
        L_copy_soft_1, _2, _3  the likeliest tokens of the last 1, 2, 3 layers stand in the prompt
                               like this, one after the other, the last with p > 0.5
        L_copy_H               entropy at most 1 bit
        L_semantic             the answer is the likeliest token
        L_semantic_run2        it is, and in the next layer too
        first_rank_le_1, _5, _10      rank of the answer at most that
        first_kl_below_0.5, _1.0      KL(P||Q) at most so many bits
    """

    model_config = _PLAIN

    layers: dict[str, int | None]
    delta_layers: int | None
    """L_semantic - L_copy."""

    depth_fractions: dict[str, float | None]
    """Layer divided by the number of blocks."""


class ControlReport(BaseModel):
    """A wrong answer, followed in the same records: what the lens sees without knowing better."""

    model_config = _PLAIN

    contrast: AnswerReport
    largest_margin: float
    """Largest p(contrast) - p(answer) of all layers: above 0 the wrong answer was ahead."""

    largest_margin_layer: int
    final_margin: float
    """The same at the last recorded layer."""

    layers: dict[str, int | None]
    """L_semantic, L_semantic_run2 and first_rank_le_* of the contrast."""


class SampleReport(BaseModel):
    """One text at its last recorded position."""

    model_config = _PLAIN

    sample: int
    prompt: str | None
    """Null where only token ids are known."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    pos: int
    """The position that all this is about."""

    answer: AnswerReport | None
    final_top: tuple[TokenReport, ...]
    """The model's own likeliest tokens; none where the last layer was not read, or without the
    final norm."""

    milestones: Milestones
    control: ControlReport | None = None


class MeanReport(BaseModel):
    """A mean over records, and the standard error of it as if records were independent."""

    model_config = _PLAIN

    mean: float
    standard_error: float | None
    """Null for a single record."""

    n: int


class LayerReport(BaseModel):
    """One layer of one stream, over all records; null where no record has a number."""

    model_config = _PLAIN

    stream: str
    layer: int
    place: str
    n_records: int
    entropy_bits: MeanReport | None
    kl_to_final_bits: MeanReport | None
    kl_from_final_bits: MeanReport | None
    js_bits: MeanReport | None
    nll_target_bits: MeanReport | None
    p_target: MeanReport | None
    rank_1_share: float | None
    """Share of records with a target at which it has rank 1."""

    top1_agree_share: float
    """Share of records whose likeliest token is the model's own."""


class RawNormReport(BaseModel):
    """One layer with the final norm against the same without."""

    model_config = _PLAIN

    layer: int
    mean_kl_bits: float
    """KL(P with norm || P without), mean over the samples' last positions."""

    max_kl_bits: float
    norm_only_rank_1: int
    """Samples whose target is the likeliest token with the norm only."""

    raw_only_rank_1: int


class RawNormCheck(BaseModel):
    """Whether what is seen is the norm's doing.

    High: 1 bit or more at a layer, or a target with rank 1 in only one of the two. Medium: 0.5 bit.
    """

    model_config = _PLAIN

    risk: str
    """low, medium or high."""

    layers: tuple[RawNormReport, ...]


class LensReport(BaseModel):
    """How states become logits: what `Unembedding.describe` says, and the choice of lens."""

    model_config = _PLAIN

    lens: str
    """norm, raw, or translator."""

    method: str
    norm_path: str | None = None
    norm_class: str | None = None
    norm_kind: str | None = None
    norm_eps: float | None = None
    norm_gain: str | None = None
    """Whether the gain is the weight or 1 + the weight."""

    head_path: str | None = None
    head_bias: bool | None = None
    transform: str | None = None
    transform_value: float | None = None
    """The soft cap, or the factor."""

    weights_dtype: str
    compute_dtype: str = "float32"
    translator: str | None = None
    untranslated_layers: tuple[int, ...] = ()
    """Layers that the translator has nothing for: read as they are."""


class LensModelReport(BaseModel):
    """The model that was read."""

    model_config = _PLAIN

    init: str
    """What was given as --init."""

    family: str
    model_class: str
    n_layers: int
    d_model: int
    vocab_size: int
    dtype: str
    device: str
    weights_sha256: str | None = None
    revision: str | None = None
    versions: dict[str, str] = {}
    """Of the packages that computed."""


class SelfTestReport(BaseModel):
    """The last layer's lens against the model's own logits."""

    model_config = _PLAIN

    largest_difference: float
    """In standard deviations of the logits."""

    tolerance: float


class LogitLensReport(Report):
    """What the lens saw."""

    model: LensModelReport
    lens: LensReport
    self_test: SelfTestReport | None
    """Null where activations came from a dump."""

    source: str
    """Where the samples came from."""

    n_samples: int
    n_records: int
    positions: str
    streams: tuple[str, ...]
    top_k: int
    elapsed_s: float
    samples: tuple[SampleReport, ...]
    """The first samples, each at its last position."""

    layers: tuple[LayerReport, ...]
    raw_norm_check: RawNormCheck | None = None
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
