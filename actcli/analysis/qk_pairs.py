"""Attention logits of one query as an exact sum over pairs of components.

    logit[h, t] = sum over parts i of the query side and j of the key side of c[h, i, j, t]
    c[h, i, j, t] = scale * <R_q f_q (x_q . v_i) u_i[h], R_t f_t (x_t . v_j) u_j[kv head of h]>

with the parts of `qk_parts`: components, and the two that make the sum exact, delta and bias. R
turns to a position, f is a q/k norm at the scale that it has. (Rank-one components of W_Q and W_K:
Bushnaq, Braun and Sharkey, "Stochastic Parameter Decomposition", 2025; a ledger of all pairs with
norms held fixed: "Tracing Attention Computation Through Feature Interactions", Anthropic, 2025.)

Sums over pairs need no pairs: they are products of summed vectors. How the strongest are found
stands in `qk_search`.

Tensor legend: T tokens, A query heads, K key heads, D head width, C components, P keys that the
query sees, N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from actcli.analysis.qk_parts import GAUGES, Binary, KeyParts, key_parts, rotation_of
from actcli.analysis.qk_reading import QkReading
from actcli.analysis.qk_rotation import Rotation
from actcli.decompositions.factors import Factors
from actcli.errors import UsageError, nearest
from actcli.models.qk import QkText
from actcli.reports.qk import QkPairs


@dataclass(frozen=True)
class QkAsk:
    """What to read at each query."""

    mode: str = "weighted"
    rank: str = "peak"
    top_n: int = 20
    pairs: Sequence[tuple[int, int]] | None = None
    """Part numbers of pairs to follow, in place of the strongest; delta is C, bias C + 1."""

    ci_threshold: float = 0.01
    gauge: str = "unit"


@dataclass(frozen=True)
class QkReader:
    """One text in one layer, ready for any of its queries: the key side is cut once."""

    text: QkText
    q: Factors | None
    """None: the side is not decomposed, and is one component."""

    k: Factors | None
    ask: QkAsk = QkAsk()
    ci: tuple[Tensor | None, Tensor | None] = (None, None)
    """Causal importances (T, C) of the two sides: needed in binary mode, else only reported."""

    sample: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if self.ask.mode not in ("weighted", "binary"):
            raise UsageError(f"there is no mode {self.ask.mode!r} for a text: weighted or binary")
        if self.ask.gauge not in GAUGES:
            raise UsageError(
                f"there is no gauge {self.ask.gauge!r}: {nearest(self.ask.gauge, GAUGES)}"
            )
        if self.ask.top_n < 1:
            raise UsageError(f"top-n is {self.ask.top_n}, expected at least 1")
        if self.ask.mode == "binary":
            self._check_binary()

    def read(self, query: int) -> QkPairs:
        """Read one query.

        Raises:
            UsageError: the text has no such position, or no such pair exists.
            ModelError: the parts do not add up to the model's logits.
        """
        return self.reading(query).answer(
            mode=self.ask.mode,
            rank=self.ask.rank,
            top_n=self.ask.top_n,
            pairs=self.ask.pairs,
            ci=self.ci,
            sample=self.sample,
        )

    def reading(self, query: int) -> QkReading:
        """One query, cut into its parts but not answered.

        Raises:
            UsageError: the text has no such position.
        """
        n_tokens = len(self.text.attn_input_TH)
        if not 0 <= query < n_tokens:
            raise UsageError(
                f"query position {query} is not in the text of {n_tokens} tokens: give 0 to "
                f"{n_tokens - 1}"
            )
        return QkReading(
            self.text, self.q, self.k, self.rotation, self.keys, self.binary, query=query
        )

    @cached_property
    def rotation(self) -> Rotation:
        """Of all positions of the text."""
        return rotation_of(self.text)

    @cached_property
    def keys(self) -> KeyParts:
        """The key side at all positions."""
        return key_parts(self.text, self.k, self.rotation, binary=self.binary)

    @cached_property
    def binary(self) -> Binary | None:
        """What is on; None in weighted mode."""
        q_ci_TC, k_ci_TC = self.ci
        if self.ask.mode != "binary" or q_ci_TC is None or k_ci_TC is None:
            return None
        return Binary(q_ci_TC, k_ci_TC, self.ask.ci_threshold, self.ask.gauge)

    def _check_binary(self) -> None:
        if self.q is None or self.k is None:
            side = "q" if self.q is None else "k"
            raise UsageError(
                f"binary mode needs components on both sides, and side {side} of layer "
                f"{self.text.layer.layer} is not decomposed: use mode weighted"
            )
        if self.ci[0] is None or self.ci[1] is None:
            raise UsageError(
                "binary mode needs causal importances, and this decomposition has none: use mode "
                "weighted"
            )
        if self.ask.rank == "attn":
            raise UsageError(
                "rank attn is about the attention of a text, which binary mode leaves out: use "
                "rank peak, centered or mean-abs"
            )


def read_pairs(
    text: QkText,
    q: Factors | None,
    k: Factors | None,
    *,
    query: int,
    ask: QkAsk = QkAsk(),
    ci: tuple[Tensor | None, Tensor | None] = (None, None),
    sample: int = 0,
) -> QkPairs:
    """Read one query of one text; `QkReader` reads several at less cost.

    Args:
        text: the model's own numbers.
        q: factors of the query side; None if it is not decomposed.
        k: factors of the key side.
        query: position in the text.
        ask: mode, rank, how many pairs or which.
        ci: causal importances (T, C) of the two sides.
        sample: number of the text, for the answer.

    Raises:
        UsageError: the text has no such position, there is no such pair, mode, rank or gauge, or
            binary mode lacks components or causal importances.
        ModelError: the parts do not add up to the model's logits.
    """
    return QkReader(text, q, k, ask, ci, sample).read(query)
