"""What a model says when an activation is replaced by what a dictionary makes of it.

For each batch one forward gives the model's own logits, one those with the target put to 0, and one
for each dictionary those with the target replaced by the reconstruction: of what the model has at
the dictionary's input in the same forward. Tokens that do not count keep the model's own values.

Before anything is reported each target is tried: what was read and is written back must leave the
logits as they are, and another value must be seen by all that read it (`splice_check`).

Tensor legend: B samples of a batch, T tokens, H hidden, V vocabulary, N tokens that count.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.engine import to_device
from actcli.capture.hooks import hooked, rewritten
from actcli.capture.splice_check import check_target, refuse_shared
from actcli.capture.splice_forward import Forward, Target
from actcli.capture.splice_logits import Kind, LogitsBatch, LogitsPair
from actcli.capture.token_rules import TokenRules
from actcli.capture.token_stream_count import token_lengths
from actcli.capture.token_stream_model import batch_places, find_place, open_model_tokens
from actcli.errors import CaptureError, UsageError
from actcli.models.adapter import ModelAdapter
from actcli.samples.batching import plan_batches
from actcli.samples.source import SampleSource

_LOGIT_BYTES = 512 << 20
"""What the model's own logits of one batch may take, of each of the two that are held."""


@dataclass(frozen=True)
class Spliced:
    """A dictionary in a model."""

    x: str
    """What it reads: `mlp_input.4`."""

    y: str
    """What it replaces; the same as x for an SAE."""

    rebuild: Callable[[Tensor], Tensor]
    """From inputs (N, I), float32 on the model's device, to reconstructions (N, O)."""


def run_spliced(
    adapter: ModelAdapter,
    samples: SampleSource,
    spliced: Sequence[Spliced],
    *,
    rules: TokenRules,
    batch_tokens: int,
) -> Iterator[LogitsBatch]:
    """Run a model as it is, without each target, and with each dictionary in its place.

    Args:
        adapter: a causal language model, with weights.
        samples: texts.
        spliced: the dictionaries.
        rules: which tokens count; as in a token stream of these samples whose `normed` are the
            inputs of the dictionaries.
        batch_tokens: the most tokens in a forward pass; fewer where logits would be too large.

    Raises:
        CaptureError: no logits to predict tokens by, a target that cannot be replaced, an input
            that comes after its target, or a reconstruction of another shape or not finite.
        UsageError: an unknown place, or no token counts.
    """
    run = _prepared(adapter, samples, spliced, rules, batch_tokens)
    n_counted = 0
    affordable = max(1, min(batch_tokens, _LOGIT_BYTES // (4 * adapter.vocab_size)))
    for rows in plan_batches(samples, batch_size=None, batch_tokens=affordable, in_order=True):
        left = None if rules.most_tokens is None else rules.most_tokens - n_counted
        if left == 0:
            break
        batch = run.batch(rows, left)
        if batch is not None:
            n_counted += len(batch.samples_N)
            yield batch
    if not n_counted:
        raise UsageError(
            f"no token of the samples counts ({'; '.join(rules.words(ids_known=True))}): leave "
            f"fewer of them out"
        )


def _prepared(
    adapter: ModelAdapter,
    samples: SampleSource,
    spliced: Sequence[Spliced],
    rules: TokenRules,
    batch_tokens: int,
) -> "_Run":
    """Check everything that can be checked before the run."""
    rules.check()
    forward = Forward(adapter)
    adapter.check_tokens(n_tokens=samples.n_tokens, largest_token=samples.largest_token)
    places = dict.fromkeys(place for each in spliced for place in (each.x, each.y))
    targets = {place: _find_target(adapter, place) for place in places}
    for place in dict.fromkeys(each.y for each in spliced):
        refuse_shared(adapter, targets[place])
        check_target(forward, targets[place], samples)
    inputs = list(dict.fromkeys(each.x for each in spliced))
    stream = open_model_tokens(
        adapter, samples, places=inputs, rules=rules, batch_tokens=batch_tokens
    )
    return _Run(forward, samples, spliced, targets, rules, stream.norm_limits())


def _find_target(adapter: ModelAdapter, place: str) -> Target:
    site, layer = find_place(place, adapter.n_layers)
    (point,) = adapter.points(site, () if layer is None else (layer,))
    return Target(place, site, layer, point)


@dataclass(frozen=True)
class _Run:
    """All that stays the same from batch to batch."""

    forward: Forward
    samples: SampleSource
    spliced: Sequence[Spliced]
    targets: Mapping[str, Target]
    rules: TokenRules
    limits: Mapping[str, float]

    def batch(self, rows: range | NDArray[np.int64], left: int | None) -> LogitsBatch | None:
        """Run some samples as they are; None if none of their tokens counts."""
        batch = self.samples.batch(rows)
        tokens_BT = batch.inputs["tokens"]
        places = batch_places(self.samples, batch)
        kept_BT = self.rules.keep(places).reshape(tokens_BT.shape)
        if not kept_BT.any():
            return None
        inputs = to_device(batch.inputs, self.forward.device)
        original_BTV, short_BT = self._original(inputs, torch.from_numpy(kept_BT))
        counted = (kept_BT & short_BT.cpu().numpy()).nonzero()
        rows_N, tokens_N = (each[:left] for each in counted)
        if not rows_N.size:
            return None
        lengths_BT = places.lengths_P.reshape(tokens_BT.shape)
        has_next_N = tokens_N + 1 < lengths_BT[rows_N, tokens_N]
        next_N = np.where(
            has_next_N, tokens_BT[rows_N, np.minimum(tokens_N + 1, tokens_BT.shape[1] - 1)], -1
        )
        work = _Batch(
            self,
            inputs,
            original_BTV,
            torch.from_numpy(np.stack([rows_N, tokens_N])).to(self.forward.device),
            torch.from_numpy(next_N).to(original_BTV.device),
        )
        samples_N = places.samples_P.reshape(tokens_BT.shape)[rows_N, tokens_N]
        return LogitsBatch(samples_N, tokens_N, work.pairs)

    def _original(self, inputs: Mapping[str, Tensor], kept_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own logits, and which tokens are not too long in any input."""
        short_BT = torch.ones_like(kept_BT)

        def measure(limit: float, acts_BTH: Tensor) -> None:
            short_BT.logical_and_((token_lengths(acts_BTH.float()) <= limit).cpu())

        with ExitStack() as hooks:
            for place, limit in self.limits.items():
                point = self.targets[place].point
                hooks.enter_context(hooked(self.forward.adapter, point, partial(measure, limit)))
            return self.forward.head_output(inputs), short_BT


@dataclass(frozen=True)
class _Batch:
    """One batch, with the model's own logits."""

    run: _Run
    inputs: Mapping[str, Tensor]
    original_BTV: Tensor
    places_2N: Tensor
    next_N: Tensor

    def pairs(self) -> Iterator[LogitsPair]:
        """Run the batch with each change."""
        spliced = self.run.spliced
        for place in dict.fromkeys(each.y for each in spliced):
            numbers = tuple(number for number, each in enumerate(spliced) if each.y == place)
            yield from self._pair("zero", numbers, self._zero(self.run.targets[place]))
            for number in numbers:
                yield from self._pair("spliced", (number,), self._rebuilt(spliced[number]))

    def _pair(
        self, kind: Kind, numbers: tuple[int, ...], logits_BTV: Tensor
    ) -> Iterator[LogitsPair]:
        view = self.run.forward.view
        pair = LogitsPair(
            kind, numbers, self.original_BTV, logits_BTV, view, self.places_2N, self.next_N
        )
        del logits_BTV
        yield pair
        pair.other_BTV = None

    def _zero(self, target: Target) -> Tensor:
        def write(acts_BTH: Tensor) -> Tensor:
            return self._with(acts_BTH, torch.zeros((), dtype=acts_BTH.dtype))

        with rewritten(
            self.run.forward.adapter, target.point, write, in_place=target.is_stream_input
        ):
            return self.run.forward.head_output(self.inputs)

    def _rebuilt(self, spliced: Spliced) -> Tensor:
        """The logits with a target replaced, of an input of the same forward."""
        adapter, found = self.run.forward.adapter, list[Tensor]()
        source, target = self.run.targets[spliced.x], self.run.targets[spliced.y]

        def read(acts_BTH: Tensor) -> None:
            rows, tokens = self.places_2N.to(acts_BTH.device)
            found[:] = [spliced.rebuild(acts_BTH[rows, tokens].float())]

        def write(acts_BTH: Tensor) -> Tensor:
            if spliced.x == spliced.y:
                read(acts_BTH)
            if not found:
                raise CaptureError(
                    f"{spliced.x} is computed after {spliced.y}: a dictionary replaces what comes "
                    f"after its input"
                )
            return self._with(acts_BTH, _checked(found[0], acts_BTH, self.places_2N, spliced.y))

        with ExitStack() as hooks:
            if spliced.x != spliced.y:
                hooks.enter_context(hooked(adapter, source.point, read))
            hooks.enter_context(
                rewritten(adapter, target.point, write, in_place=target.is_stream_input)
            )
            return self.run.forward.head_output(self.inputs)

    def _with(self, acts_BTH: Tensor, new: Tensor) -> Tensor:
        """The activation with other values at the tokens that count."""
        rows, tokens = self.places_2N.to(acts_BTH.device)
        changed_BTH = acts_BTH.clone()
        changed_BTH[rows, tokens] = new.to(acts_BTH)
        return changed_BTH


def _checked(rebuilt_NH: Tensor, acts_BTH: Tensor, places_2N: Tensor, place: str) -> Tensor:
    expected = (places_2N.shape[1], acts_BTH.shape[-1])
    if tuple(rebuilt_NH.shape) != expected:
        raise CaptureError(
            f"the reconstruction is {list(rebuilt_NH.shape)}, but {place} is {list(expected)}: is "
            f"this the dictionary's target?"
        )
    if not bool(rebuilt_NH.isfinite().all()):
        raise CaptureError(f"the reconstruction of {place} has values that are NaN or infinite")
    return rebuilt_NH
