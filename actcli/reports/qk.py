"""What `qk-contrib` answers: attention logits as sums over pairs of components.

A side's parts are its components, then `delta` (what they miss of the projection) and `bias`:
part c has the number c, with C components delta is C and bias is C+1. A pair (i, j) is of part i of
the query side and part j of the key side. The formulas stand in `actcli.analysis.qk_pairs`.

Tensor legend: A query heads, N pairs, P keys that the query sees, Q and K parts of the two sides.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Report

MODES = ("weighted", "binary", "static")
"""Contributions of this text; weights between important components; weights over offsets."""

RANKS = ("peak", "centered", "attn", "mean-abs")
"""What makes a pair strong: see `QkPairs.score`."""

KINDS = ("component", "delta", "bias")
"""What a part can be. Residual splits are by two of them, as in `delta:component`."""

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


@dataclass(frozen=True)
class QkPairs:
    """The strongest (or the chosen) pairs of one query of one text in one layer."""

    layer: int
    sample: int
    query: int
    """Position of the query in the text."""

    mode: str
    """weighted or binary."""

    rank: str
    """One of `RANKS`."""

    keys_P: NDArray[np.int64]
    """Positions of the keys that the query sees, rising: without those behind a sliding window."""

    q_names: tuple[str, ...]
    """Names of the query side's parts: numbers in the run (or `exact`), then delta, bias."""

    k_names: tuple[str, ...]
    top_pairs: NDArray[np.int32]
    """(N, 2) part numbers: strongest first, equal ones by number; or those chosen, as chosen."""

    top_contrib: NDArray[np.float32]
    """(A, N, P): what each pair adds to the logit."""

    sum: NDArray[np.float32]
    """(A, P): all pairs of components (without delta and bias)."""

    visible: NDArray[np.bool_]
    """(A, N): largest |contribution| is at least 5 % of the range of the head's `sum` over keys; of
    1.0 where that range is 0."""

    score: NDArray[np.float32]
    """(N,): what pairs are ranked by. Of contributions c over heads and keys: peak is max |c|,
    centered max |c - mean over keys|, attn max |p (g c - sum over keys p g c)| with attention p and
    slope g of the soft cap, mean-abs mean |c|."""

    peak: NDArray[np.float32]
    """(N,): the contribution with the largest magnitude, with its sign."""

    peak_head: NDArray[np.int32]
    """(N,): where that is; the first head, then key, if several are equal."""

    peak_key: NDArray[np.int32]
    """(N,): position in the text."""

    centered_peak: NDArray[np.float32]
    """(N,): the same after taking away each head's mean over keys."""

    q_act: NDArray[np.float32]
    """(N,): activation of the query side's component at the query; NaN for other parts."""

    k_act: NDArray[np.float32]
    """(N,): activation of the key side's component at the peak key; NaN for other parts."""

    q_ci: NDArray[np.float32] | None = None
    """(N,): causal importance at the query, where known; NaN for parts without."""

    k_ci: NDArray[np.float32] | None = None
    """(N,): causal importance at the peak key."""

    ground_truth: NDArray[np.float32] | None = None
    """(A, P): the model's own logits, before any soft cap; None in binary mode, as all below."""

    attention: NDArray[np.float32] | None = None
    """(A, P): the model's own attention."""

    d_attn: NDArray[np.float32] | None = None
    """(A, N, P): how the attention changes when the pair's contribution is taken out of the logits:
    cap, sink and softmax anew, minus before."""

    residual: dict[str, NDArray[np.float32]] | None = None
    """(A, P) each: sums over pairs by kind, such as `component:delta`; the nine add up to the
    logit. `component:component` is `sum`."""

    q_marginals: NDArray[np.float32] | None = None
    """(A, Q): what each part, with all of the key side, adds to the attended keys above an average
    key: sum over keys of (p / sum p - 1 / P) times its contribution. All parts of a side add up to
    the same of the logits."""

    k_marginals: NDArray[np.float32] | None = None
    """(A, K)."""

    ledger_gap: float | None = None
    """Largest |sum of all parts - logit| over heads and keys."""

    tolerance: float | None = None
    """What the gap was held against."""

    softcap: float | None = None
    """cap: the model takes cap * tanh(logit / cap)."""

    sinks_A: NDArray[np.float32] | None = None
    """Logits of an extra column of the softmax, that takes attention and gives nothing."""

    method: str = "bound"
    """How pairs were found, all exact: bound, stream, lines (a side is not decomposed), given."""

    def names(self, pair: int) -> tuple[str, str]:
        """Names of a pair's parts."""
        q, k = self.top_pairs[pair]
        return self.q_names[q], self.k_names[k]


@dataclass(frozen=True)
class QkStatic:
    """Weights alone: interaction of alive components over offsets, standardised by head."""

    layer: int
    offsets: NDArray[np.int64]
    """(O,): query position minus key position."""

    q_alive: NDArray[np.int64]
    """(Q,): component numbers, by falling mean causal importance where that is known."""

    k_alive: NDArray[np.int64]
    top_pairs: NDArray[np.int64]
    """(N, 2) component numbers, by falling score (equal ones by place in the lists above), or as
    chosen."""

    raw: NDArray[np.float32]
    """(O, A, N): <rotated u_q, u_k>, u scaled by its read direction's length and sign; no 1/sqrt(D)
    scale."""

    z: NDArray[np.float32]
    """(O, A, N): (raw - mean) / std, both over all offsets and alive pairs of the head; std of a
    sample (n - 1)."""

    mean_A: NDArray[np.float64]
    std_A: NDArray[np.float64]
    score: NDArray[np.float32]
    """(N,): what `QkPairs.score` says, of z over heads and offsets."""


class QkPairReport(BaseModel):
    """One pair at one query."""

    model_config = _PLAIN

    place: int
    """1 for the strongest."""

    q: str
    """Part of the query side: a number in the run, exact, delta or bias."""

    k: str
    score: float
    peak: float
    """Contribution of largest magnitude, with its sign."""

    peak_head: int
    peak_key: int
    peak_token: str | None = None
    centered_peak: float
    mean: float
    """Over heads and keys."""

    q_act: float | None = None
    k_act: float | None = None
    q_ci: float | None = None
    k_ci: float | None = None
    d_attn: float | None = None
    """Largest change of attention, with its sign, when the pair is taken out."""

    d_attn_head: int | None = None
    d_attn_key: int | None = None
    visible_heads: tuple[int, ...]


class QkReadingReport(BaseModel):
    """One query of one sample in one layer."""

    model_config = _PLAIN

    layer: int
    sample: int
    query: int
    token: str | None = None
    n_keys: int
    method: str
    ledger_gap: float | None
    tolerance: float | None
    largest_residual: float | None
    """Largest |sum over pairs of components - logit|."""

    split_mean_abs: dict[str, float]
    """By kinds of pairs, such as `delta:component`."""

    pairs: tuple[QkPairReport, ...]


class QkTableRow(BaseModel):
    """One pair over all queries at which it was among the strongest."""

    model_config = _PLAIN

    layer: int
    q: str
    k: str
    count: int
    """Queries at which it was among the strongest (or followed)."""

    share: float
    """count / queries of this layer."""

    mean_peak: float
    """Mean of the signed peak contribution."""

    mean_contribution: float
    """Mean over queries of the mean over heads and keys."""

    largest_peak: float
    """The peak of largest magnitude, with its sign."""

    sign_consistency: float
    """|positive - negative peaks| / count: 1 where all have one sign."""

    head_means: tuple[float, ...]
    """Mean over queries of the contribution with the largest magnitude in each head."""

    top_head: int
    """The head that most often holds the peak."""

    peak_token_id: int | None
    """The token that most often is the peak key."""

    peak_token: str | None = None
    peak_token_share: float | None


class QkSideReport(BaseModel):
    """One side of a layer, as it was decomposed."""

    model_config = _PLAIN

    layer: int
    side: str
    """q or k."""

    module: str
    n_components: int
    exact: bool
    """Not decomposed: then it is one component, the weight itself."""


class QkReport(Report):
    """What `qk-contrib` found."""

    model: str
    """What was given as --init, or named by the decomposition."""

    decomposition: str
    mode: str
    rank: str
    layers: tuple[int, ...]
    samples: tuple[int, ...]
    queries: tuple[int, ...]
    sides: tuple[QkSideReport, ...] = ()
    ledger_gap: float | None = None
    """The largest of all readings."""

    tolerance: float | None = None
    readings: tuple[QkReadingReport, ...] = ()
    table: tuple[QkTableRow, ...] = ()
    elapsed_s: float = 0.0
    warnings: tuple[str, ...] = ()
    folder: str | None = None
    files: tuple[str, ...] = ()
