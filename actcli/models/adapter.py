"""What the capture engine, and every analysis that runs a model, must know of a model family.

Tensor legend: B batch, T tokens, H hidden.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from actcli.errors import CaptureError, nearest
from actcli.models.source import ModelSource
from actcli.sites import GAMMAS_PREFIX, MODULE_PREFIX, find_site


def _same(acts: Tensor) -> Tensor:
    return acts


class HookPoint(NamedTuple):
    """Where one activation is read: a module, its input or output, and how to look at it."""

    module: str
    """Dotted path below the network."""

    side: Literal["input", "output"] = "output"
    view: Callable[[Tensor], Tensor] = _same
    """From the hooked tensor to the activation; batch first, no copy where it can be helped."""

    item: int | None = None
    """Which element of a tuple is read; None for the first, or the tensor itself."""

    dtype: torch.dtype | None = None
    """Storage dtype that the site needs (such as of token ids); None for the run's."""


@dataclass(frozen=True)
class LoadedFiles:
    """The files that a model was read from."""

    source: ModelSource
    weights: Path | None
    """The weights file; None where only the shape of the model was needed."""


class ModelAdapter(ABC):
    """A loaded model and where its sites are: the only place that knows module paths.

    Attributes:
        family: name of the family, as the manifest of a dump records it.
        files: where it was read from.
        net: the network, in eval mode; on the meta device when loaded without weights.
        n_layers, n_heads, n_kv_heads, d_model: its sizes.
        max_tokens, vocab_size: the longest input and the number of token ids that it can read.
        n_top_logits: how many of a token's largest logits the site `logits_top` has.
    """

    family: str
    files: LoadedFiles
    net: nn.Module
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    max_tokens: int
    vocab_size: int
    n_top_logits: int = 10

    @abstractmethod
    def layer_points(self, site: str, layer: int) -> HookPoint | None:
        """Where a per-layer site is read in one layer; None if this model has no such site."""

    @abstractmethod
    def point(self, site: str) -> HookPoint | None:
        """Where a site that does not repeat by layer is read; None if there is none."""

    @abstractmethod
    def parameters(self, site: str) -> dict[str, Tensor] | None:
        """The tensors of a parameter site by their key in a dump; None if there are none."""

    @abstractmethod
    def prepare(self, sites: Iterable[str]) -> None:
        """Choose the computation that shows these sites (such as unfused attention)."""

    @abstractmethod
    def attention(self, layer: int, attn_input_BTH: Tensor) -> Tensor:
        """Attention weights (B, A, T, S) of one layer for what its attention reads (`attn_norm`).

        The model's own computation; a row sums to 1 minus the mass that its sink took.
        """

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> None:
        """Run the body and the heads on one batch; what is of interest is read by hooks."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """What a dump's metadata says of the model, beside the manifest."""

    @abstractmethod
    def working_bytes(self, n_tokens: int) -> int:
        """Estimate of the intermediate values alive at once in a forward of so many tokens."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.net.parameters()).device

    @property
    def n_bytes(self) -> int:
        """Size of the weights in bytes."""
        return sum(each.numel() * each.element_size() for each in self.net.parameters())

    def fingerprint(self) -> dict[str, Any]:
        """The weights file and a hash of the weights, for the manifest of a dump.

        The hash is the sha256 of every name, shape and value in the order of the names, as loaded:
        the same weights have it in any file format.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        file = self.files.weights.name if self.files.weights else None
        return {"file": file, "weights_sha256": digest.hexdigest()}

    def check_tokens(self, *, n_tokens: int, largest_token: int) -> None:
        """Refuse samples that the model cannot read, before any work is done.

        Raises:
            CaptureError: samples too long, or a token beyond the vocabulary.
        """
        if n_tokens > self.max_tokens:
            raise CaptureError(
                f"samples have {n_tokens} tokens, the model has positions for {self.max_tokens}; "
                f"cut texts with --max-tokens {self.max_tokens}"
            )
        if largest_token >= self.vocab_size:
            raise CaptureError(
                f"a chosen sample has the token {largest_token}, but the model's vocabulary ends "
                f"at {self.vocab_size - 1}: choose other samples, or the tokenizer of this model"
            )

    def norm_gammas(self) -> dict[str, Tensor]:
        """The gain of every RMSNorm by module name, in the order of the modules."""
        return {
            name: module.weight.detach()
            for name, module in self.net.named_modules()
            if isinstance(module, nn.RMSNorm) and module.weight is not None
        }

    def points(self, site: str, layers: Iterable[int]) -> tuple[HookPoint, ...]:
        """Where a site is read: one point per layer, or a single one.

        Raises:
            CaptureError: this model has no such site.
        """
        if site.startswith(MODULE_PREFIX):
            return (HookPoint(self._module_path(site)),)
        if find_site(site).per_layer:
            found = [self.layer_points(site, layer) for layer in layers]
        else:
            found = [self.point(site)]
        there = tuple(point for point in found if point is not None)
        if len(there) < len(found):
            raise CaptureError(
                f"this model ({self.family}) has no site {site!r}{self.why_no(site)}"
            )
        return there

    def why_no(self, site: str) -> str:
        """What a message says on after "has no site ..."; nothing, if there is nothing to say."""
        del site
        return ""

    def _module_path(self, site: str) -> str:
        path = site.removeprefix(MODULE_PREFIX)
        known = [name for name, _module in self.net.named_modules() if name]
        if path not in known:
            raise CaptureError(
                f"this model ({self.family}) has no module {path!r}; {nearest(path, known)}"
            )
        return path


def gammas_as_dump_keys(adapter: ModelAdapter) -> dict[str, Tensor]:
    """The RMSNorm gains under the keys that dumps give them."""
    return {GAMMAS_PREFIX + name: gamma for name, gamma in adapter.norm_gammas().items()}
