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

Each is a ratio of sums, so its error comes from clusters of samples like that of any other
(`actcli.analysis.sae_formulas`).

Tensor legend: R tokens of a piece, N of a batch, S runs of one cluster, C clusters, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.sae_clusters import ClusterTable, Runs, SampleClusters
from actcli.analysis.sae_formulas import Estimate, ratio
from actcli.reports.sae_metrics import LossReport

Kind = Literal["zero", "spliced"]


_SUMS = (
    "ce_original", "ce_spliced", "ce_zero", "kl_spliced", "kl_zero", "tokens", "predictions",
)  # fmt: skip
"""The first five as in `LossReport`."""


class LossResult(NamedTuple):
    """What a dictionary loses, and how each cluster of samples moves it."""

    report: LossReport
    estimates: dict[str, Estimate]
    """By field of the report, where it is defined."""


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

    @property
    def samples_N(self) -> NDArray[np.int64]:
        """Sample of each token that counts, in the order of the pairs."""
        ...

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


class LossSums:
    """Sums over the tokens of all batches by cluster of samples, for one dictionary."""

    def __init__(self) -> None:
        self._table = ClusterTable(sums=len(_SUMS))

    def add(self, kind: Kind, runs: Runs, losses: RowLosses) -> None:
        """Take the tokens of a batch; each once with every kind."""
        found = {f"ce_{kind}": losses.ce_other_R, f"kl_{kind}": losses.kl_R}
        if kind == "spliced":
            found["ce_original"] = losses.ce_original_R
            found["predictions"] = losses.has_next_R
            found["tokens"] = torch.ones_like(losses.has_next_R)
        sums_SK = np.zeros((len(runs.starts_S), len(_SUMS)))
        values_KN = np.stack([each.cpu().double().numpy() for each in found.values()])
        sums_SK[:, [_SUMS.index(name) for name in found]] = runs.sum(values_KN)
        self._table.add(runs, sums_SK)

    def result(self, clusters: SampleClusters) -> LossResult | None:
        """Return the means; None where there was no token with a next one."""
        sums_CK = self._table.first(clusters.count, clusters.width)
        of = dict(zip(_SUMS, sums_CK.T, strict=True))
        if not of["predictions"].sum():
            return None
        recovered = {
            "ce_recovered": ratio(
                of["ce_zero"] - of["ce_spliced"], of["ce_zero"] - of["ce_original"]
            ),
            "kl_recovered": ratio(of["kl_zero"] - of["kl_spliced"], of["kl_zero"]),
        }
        means = {
            name: ratio(of[name], of["predictions" if name.startswith("ce") else "tokens"])
            for name in _SUMS[:5]
        }
        found = {name: each for name, each in (means | recovered).items() if each is not None}
        values: dict[str, Any] = dict.fromkeys(recovered)
        report = LossReport(
            **values | {name: each.value for name, each in found.items()},
            n_tokens=int(of["tokens"].sum()),
            n_predictions=int(of["predictions"].sum()),
            standard_errors={name: each.standard_error() for name, each in found.items()},
        )
        return LossResult(report, found)


def measure_losses(batches: Iterable[Batch], *, n_dictionaries: int) -> list[LossResult | None]:
    """Run through spliced batches and return what each dictionary loses, by number.

    Args:
        batches: what `actcli.capture.splice.run_spliced` yields.
        n_dictionaries: how many it was given.
    """
    clusters, sums = SampleClusters(), [LossSums() for _ in range(n_dictionaries)]
    for batch in batches:
        runs = clusters.runs(batch.samples_N)
        for pair in batch.pairs():
            losses = _losses_of(pair)
            for number in pair.numbers:
                sums[number].add(pair.kind, runs, losses)
    return [each.result(clusters) for each in sums]


def _losses_of(pair: Pair) -> RowLosses:
    """What is lost at all tokens of a batch."""
    parts = [row_losses(chunk.original_RV, chunk.other_RV, chunk.next_R) for chunk in pair.chunks()]
    return RowLosses(*(torch.cat(each) for each in zip(*parts, strict=True)))
