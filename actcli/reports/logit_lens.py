"""What `logit-lens` answers: a summary of its records.

Streams and layers as in `reports.lens_table`.
"""

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Report

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


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
