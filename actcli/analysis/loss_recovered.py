"""What a model loses when an activation is replaced: cross-entropy and KL divergence recovered.

For a token that counts, with z the model's own logits there, z' those with a change, and n the
token that follows it in its sample:

    ce(z) = -log_softmax(z)[n]                                where one follows
    kl(z, z') = sum_v p_v (log p_v - log q_v)                 p = softmax(z), q = softmax(z')

Means are over all such tokens together: log-softmax and sums over the vocabulary in float32, sums
over tokens in float64. As in SAELens' `get_recons_loss` the token itself must count, not the one
that follows.

    ce_recovered = (ce_zero - ce_spliced) / (ce_zero - ce_original)
    kl_recovered = (kl_zero - kl_spliced) / kl_zero

Tensor legend: R tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from actcli.reports.sae_eval import LossReport

Kind = Literal["zero", "spliced"]
_KINDS: tuple[Kind, ...] = ("zero", "spliced")


class RowLosses(NamedTuple):
    """What is lost at some tokens, float64."""

    ce_original_R: Tensor
    """In nats; 0 where no token follows."""

    ce_other_R: Tensor
    kl_R: Tensor
    has_next_R: Tensor
    """Whether a token follows, bool."""


class Chunk(Protocol):
    """Logits of some tokens."""

    @property
    def original_RV(self) -> Tensor:
        """The model's own, float32."""
        ...

    @property
    def other_RV(self) -> Tensor:
        """With a change."""
        ...

    @property
    def next_R(self) -> Tensor:
        """The token that follows, int64; -1 where none does."""
        ...


class Pair(Protocol):
    """The model's own logits and changed ones."""

    @property
    def kind(self) -> Kind:
        """What was put in the place of the target."""
        ...

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which dictionaries it is of."""
        ...

    def chunks(self) -> Iterable[Chunk]:
        """Go through the tokens that count."""
        ...


class Batch(Protocol):
    """Some samples."""

    def pairs(self) -> Iterator[Pair]:
        """Go through the changes."""
        ...


def row_losses(original_RV: Tensor, other_RV: Tensor, next_R: Tensor) -> RowLosses:
    """Return what is lost at each token.

    Args:
        original_RV: the model's own logits.
        other_RV: those with a change.
        next_R: the token that follows, int64; -1 where none does.
    """
    log_p_RV = torch.log_softmax(original_RV.float(), dim=-1)
    log_q_RV = torch.log_softmax(other_RV.float(), dim=-1)
    has_next_R = next_R >= 0
    index_R1 = next_R.clamp(min=0)[:, None]
    ce_p_R, ce_q_R = (
        torch.where(has_next_R, -each.gather(1, index_R1)[:, 0].double(), 0.0)
        for each in (log_p_RV, log_q_RV)
    )
    p_RV = log_p_RV.exp()
    terms_RV = log_p_RV.sub_(log_q_RV).mul_(p_RV)
    kl_R = terms_RV.sum(dim=-1)
    if bool(kl_R.isnan().any()):  # some models forbid tokens with -inf, which lose nothing
        kl_R = terms_RV.masked_fill_(p_RV == 0, 0.0).sum(dim=-1)
    return RowLosses(ce_p_R, ce_q_R, kl_R.double(), has_next_R)


@dataclass
class LossSums:
    """Sums over the tokens of all batches, for one dictionary."""

    ce_original: float = 0.0
    n_tokens: int = 0
    n_predictions: int = 0
    ce: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))
    kl: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))

    def add(self, kind: Kind, losses: RowLosses) -> None:
        """Take tokens; each once with every kind."""
        self.ce[kind] += float(losses.ce_other_R.sum())
        self.kl[kind] += float(losses.kl_R.sum())
        if kind == "spliced":
            self.ce_original += float(losses.ce_original_R.sum())
            self.n_tokens += len(losses.kl_R)
            self.n_predictions += int(losses.has_next_R.sum())

    def report(self) -> LossReport | None:
        """Return the means; None where there was no token with a next one."""
        if not self.n_predictions:
            return None
        ce = {kind: total / self.n_predictions for kind, total in self.ce.items()}
        kl = {kind: total / self.n_tokens for kind, total in self.kl.items()}
        ce_original = self.ce_original / self.n_predictions
        return LossReport(
            ce_original=ce_original,
            ce_spliced=ce["spliced"],
            ce_zero=ce["zero"],
            ce_recovered=_ratio(ce["zero"] - ce["spliced"], ce["zero"] - ce_original),
            kl_spliced=kl["spliced"],
            kl_zero=kl["zero"],
            kl_recovered=_ratio(kl["zero"] - kl["spliced"], kl["zero"]),
            n_tokens=self.n_tokens,
            n_predictions=self.n_predictions,
        )


def measure_losses(batches: Iterable[Batch], *, n_dictionaries: int) -> list[LossReport | None]:
    """Run through spliced batches and return a report for each dictionary, by number.

    Args:
        batches: what `actcli.capture.splice.run_spliced` yields.
        n_dictionaries: how many it was given.
    """
    sums = [LossSums() for _ in range(n_dictionaries)]
    for batch in batches:
        for pair in batch.pairs():
            for chunk in pair.chunks():
                losses = row_losses(chunk.original_RV, chunk.other_RV, chunk.next_R)
                for number in pair.numbers:
                    sums[number].add(pair.kind, losses)
    return [each.report() for each in sums]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
