"""The tokens of a model that runs: several sites and layers in one pass, handed on and forgotten.

Activations are captured as the model computes them and held in float32, which no dtype of a model
is rounded in (and which `mlp_input_normed` is computed in).

Tensor legend: B samples of a batch, L captured layers, T tokens, P places (B*T), H hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.engine import CapturedBatch, CaptureEngine
from actcli.capture.plan import CapturePlan, SitePlan, make_plan
from actcli.capture.token_rules import Places, TokenRules, split_place
from actcli.capture.token_stream_count import Piece, TokenBatch, TokenCount
from actcli.errors import CaptureError, UsageError, nearest
from actcli.models.adapter import ModelAdapter
from actcli.reports.sae_subject import TokenSet
from actcli.samples.batching import count_tokens, every_length, plan_batches
from actcli.samples.source import SampleBatch, SampleSource
from actcli.samples.token_rows import PADDING
from actcli.sites import MODULE_PREFIX, SITES, find_site

_TOKEN_IDS = "token_ids"
_MOST_RING_BYTES = 512 << 20  # of captured activations in one batch


class ModelTokens:
    """The tokens of a model's samples that count; see `TokenStream`."""

    def __init__(
        self,
        adapter: ModelAdapter,
        samples: SampleSource,
        plan: CapturePlan,
        *,
        places: dict[str, tuple[str, int | None]],
        rules: TokenRules,
        normed: Sequence[str],
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        """Args as planned; `open_model_tokens` plans them."""
        self.model = adapter.files.source.init
        self.name = self.model
        self.places = places
        sites = {each.key: each for each in plan.sites}
        self.widths = {key: sites[site].point_shape[-1] for key, (site, _) in places.items()}
        self.n_samples = len(samples)
        n_real = count_tokens(samples)
        self.n_tokens = n_real if rules.most_tokens is None else min(n_real, rules.most_tokens)
        self._adapter, self._samples, self._plan = adapter, samples, plan
        self._rules, self._normed, self._device = rules, normed, device
        self._batch_tokens = _affordable(plan, batch_tokens)
        self._count = self._new_count()

    def batches(self) -> Iterator[TokenBatch]:
        """Run the model and yield the tokens that count, in their order; may be asked again."""
        self._count = self._new_count()
        return self._count.batches(self._pieces(), keys=list(self.places))

    def token_set(self) -> TokenSet:
        """Return which tokens were counted, when all have been read."""
        return self._count.token_set()

    def ids_of(self, sample: int) -> NDArray[np.int64] | None:
        """Return the token ids of a sample, by position; None where the model reads no text."""
        if _TOKEN_IDS not in self._samples.stored:
            return None
        ids_T = self._samples.batch(range(sample, sample + 1)).stored[_TOKEN_IDS][0]
        real_ids: NDArray[np.int64] = ids_T[ids_T != PADDING].astype(np.int64)
        return real_ids

    def known_widths(self) -> dict[str, int]:
        """Return the width of every site of this model that has one vector per token."""
        return site_widths(self._adapter, self._samples)

    def norm_limits(self) -> dict[str, float]:
        """Return the largest length of a token that counts, by key; {} without such a rule.

        Runs the model on as many samples as it takes.
        """
        if self._rules.max_norm_multiple is None:
            return {}
        next(self.batches(), None)
        return dict(self._count.limits)

    def _new_count(self) -> TokenCount:
        ids_known = _TOKEN_IDS in self._samples.stored
        words = self._rules.words(ids_known=ids_known)
        return TokenCount(self._rules, self._normed, self.name, words, error=CaptureError)

    def _pieces(self) -> Iterator[Piece]:
        batches = plan_batches(
            self._samples, batch_size=None, batch_tokens=self._batch_tokens, in_order=True
        )
        engine = CaptureEngine(self._adapter, self._plan, self._samples, batches=batches)
        for captured in engine.run():
            try:
                captured.wait()
                yield Piece(batch_places(self._samples, captured.samples), self._selector(captured))
            finally:
                captured.release()

    def _selector(
        self, captured: CapturedBatch
    ) -> Callable[[str, NDArray[np.int64] | None], Tensor]:
        return partial(_select, captured, self._plan, self.places, self._device)


def open_model_tokens(
    adapter: ModelAdapter,
    samples: SampleSource,
    *,
    places: Sequence[str],
    rules: TokenRules,
    batch_tokens: int,
    normed: Sequence[str] | None = None,
    device: torch.device | str | None = None,
) -> ModelTokens:
    """Prepare to run a model over samples and hand on what its tokens are at some places.

    Args:
        adapter: the model, with weights.
        samples: what it reads.
        places: sites, with the number of a layer where each has its own: `mlp_input.4`,
            `final_hidden`, `module:PATH`. Negative layers count from the end.
        rules: which tokens count.
        batch_tokens: the most tokens in a forward pass.
        normed: the places that `rules.max_norm_multiple` looks at; all by default.
        device: where the activations are handed out; by default where the model is.

    Raises:
        CaptureError: the model lacks a site, or cannot read the samples.
        UsageError: an unknown site, a layer that is missing or not there, a site that is not one
            vector per token, or rules that cannot be meant.
    """
    rules.check()
    found = {place: find_place(place, adapter.n_layers) for place in dict.fromkeys(places)}
    adapter.check_tokens(n_tokens=samples.n_tokens, largest_token=samples.largest_token)
    layers = sorted({layer for _site, layer in found.values() if layer is not None})
    sites = list(dict.fromkeys(site for site, _layer in found.values()))
    plan = make_plan(adapter, samples, sites, layers=layers, positions=None, dtype=torch.float32)
    for site in plan.sites:
        _check_vectors(site)
    return ModelTokens(
        adapter,
        samples,
        plan,
        places=found,
        rules=rules,
        normed=list(found) if normed is None else list(dict.fromkeys(normed)),
        batch_tokens=batch_tokens,
        device=adapter.device if device is None else torch.device(device),
    )


def find_place(place: str, n_layers: int) -> tuple[str, int | None]:
    """Split `mlp_input.4` into a site and a layer from 0; None for a site without layers.

    Raises:
        UsageError: an unknown site, or no layer, or one that is not there.
    """
    if place.startswith(MODULE_PREFIX):
        return find_site(place).name, None
    name, number = split_place(place)
    site = find_site(name)
    if site.is_parameter:
        raise UsageError(f"{name} is part of the weights: a dictionary reads activations")
    if not site.per_layer:
        if number is not None:
            raise UsageError(f"{name} does not repeat by layer: ask for it as {name!r}")
        return name, None
    layer = n_layers if number is None else number
    if not -n_layers <= layer < n_layers:
        said = "which layer is missing" if number is None else f"there is no layer {number}"
        raise UsageError(f"{place}: {said}; expected {name}.0 to {name}.{n_layers - 1}")
    return name, layer % n_layers


def site_widths(adapter: ModelAdapter, samples: SampleSource) -> dict[str, int]:
    """Return the width of every site of a model that has one vector per token."""
    sites = [
        site.name
        for site in SITES
        if site.axes in (("N", "L", "T", "H"), ("N", "T", "H"), ("N", "L", "T", "I"))
        and (adapter.layer_points(site.name, 0) if site.per_layer else adapter.point(site.name))
    ]
    plan = make_plan(adapter, samples, sites, layers=[0], positions=None, dtype=torch.float32)
    return {each.key: each.point_shape[-1] for each in plan.sites}


def batch_places(samples: SampleSource, batch: SampleBatch) -> Places:
    """Describe the places of a batch, padding included."""
    rows_B = np.asarray(batch.rows, dtype=np.int64)
    width = batch.inputs["tokens"].shape[1]
    lengths_B = every_length(samples, batch.rows)
    positions_P = np.tile(np.arange(width), len(rows_B))
    lengths_P = np.repeat(lengths_B, width)
    ids_BT = batch.stored.get(_TOKEN_IDS)
    return Places(
        np.repeat(rows_B, width),
        positions_P,
        lengths_P,
        positions_P < lengths_P,
        None if ids_BT is None else ids_BT[:, :width].reshape(-1).astype(np.int64),
    )


def _select(
    captured: CapturedBatch,
    plan: CapturePlan,
    places: dict[str, tuple[str, int | None]],
    device: torch.device,
    key: str,
    chosen: NDArray[np.int64] | None,
) -> Tensor:
    site, layer = places[key]
    acts = captured.rows(site)
    if layer is not None:
        acts = acts[:, plan.layers.index(layer)]
    if chosen is None:
        return acts.flatten(0, 1).to(device)
    rows, tokens = (torch.from_numpy(each) for each in np.divmod(chosen, acts.shape[1]))
    return acts[rows, tokens].to(device)


def _affordable(plan: CapturePlan, batch_tokens: int) -> int:
    """That many tokens, or fewer where their activations would fill too large a buffer."""
    per_token = sum(4 * each.point_shape[-1] * max(1, len(each.points)) for each in plan.sites)
    return max(1, min(batch_tokens, _MOST_RING_BYTES // per_token))


def _check_vectors(plan: SitePlan) -> None:
    if plan.token_axes != (0,) or len(plan.point_shape) != 2:
        known = [site.name for site in SITES if site.axes[-1:] == ("H",) and "T" in site.axes]
        raise UsageError(
            f"{plan.key} is {list(plan.point_shape)} in a sample, expected (tokens, width): a "
            f"dictionary reads one vector per token; {nearest(plan.key, known)}"
        )
