"""Where the sites of a Hugging Face transformer are: resolved on load, not from a table.

Tensor legend: B rows, T tokens, H hidden, A heads, S keys, V vocabulary, C chosen logits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actcli.errors import ModelError
from actcli.models.adapter import HookPoint, LoadedFiles, ModelAdapter, gammas_as_dump_keys
from actcli.models.blocks import Block
from actcli.models.network import Network, block_kind
from actcli.models.norms import as_norm
from actcli.models.resolution import resolve
from actcli.models.unembedding import HeadTransform, Unembedding

FAMILY = "transformers"
_EXPLICIT_SITES = {"attn_weights"}
_HEAD_SITES = {"logits", "logits_top", "logits_top_ids"}


class HuggingFaceTransformer(ModelAdapter):
    """A transformer of the package transformers.

    Attributes:
        blocks: the sites of each layer.
        tail: final norm and head, with the result of the self-test.
        is_causal: whether no token sees those behind it.
    """

    family = FAMILY

    def __init__(
        self, net: nn.Module, files: LoadedFiles, *, resolve_on: nn.Module | None = None
    ) -> None:
        """Resolve the model.

        Args:
            net: in eval mode; with weights, or on the meta device for its shapes alone.
            files: where it was read from.
            resolve_on: where `net` has no weights, a random model of the same configuration with
                fewer blocks, on which the sites are resolved instead.

        Raises:
            ModelError: it has no list of blocks, or cannot be run on token ids.
        """
        self.net, self.files = net, files
        self._network = Network(net)
        probed = self._network if resolve_on is None else Network(resolve_on)
        try:
            found = resolve(probed)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"{files.source.init} ({type(net).__name__}) does not run on plain token ids, so "
                f"its sites cannot be found: {error}"
            ) from error
        self._network.asks_for_weights = probed.asks_for_weights
        self._network.needs_mask = probed.needs_mask
        self.n_layers, self.n_heads = self._network.n_layers, self._network.n_heads
        self.d_model, self.vocab_size = self._network.d_model, self._network.vocab_size
        self.max_tokens = self._network.max_tokens
        self.is_causal = not probed.needs_mask
        self.blocks = _by_layer(self._network.blocks, probed.blocks, found.blocks)
        self.tail = found.tail
        self.n_kv_heads = min(block.n_kv_heads or self.n_heads for block in self.blocks)
        self._norm_types = _norm_types(probed.net)
        self._tokens_shape = (0, 0)
        self._with_head = False

    @property
    def unembedding(self) -> Unembedding:
        """Final norm and head, proven on load.

        Raises:
            ModelError: the self-test refused this model; says why.
        """
        if self.tail.unembedding is None:
            raise ModelError(
                f"{self.files.source.init} ({type(self.net).__name__}) has no logit lens: "
                f"{self.tail.why_not}"
            )
        return self.tail.unembedding

    def layer_points(self, site: str, layer: int) -> HookPoint | None:
        """Where a per-layer site is read in one block."""
        block = self.blocks[layer]
        point = block.points.get(site)
        if point is None:
            return None
        if site in block.flat:
            point = point._replace(view=partial(self._by_row, view=point.view))
        return point._replace(module=self._path(layer, point.module))

    def point(self, site: str) -> HookPoint | None:
        """Where the sites outside the blocks are read."""
        tail = self.tail
        if site == "embeddings":
            return HookPoint(self._path(0, ""), "input")
        if site == "final_hidden" and tail.norm_path is not None:
            return HookPoint(tail.norm_path)
        if site not in _HEAD_SITES or tail.head_path is None or tail.transform is None:
            return None
        if site == "logits":
            return HookPoint(tail.head_path, view=partial(_logits, transform=tail.transform))
        top = partial(_top, transform=tail.transform, count=self.n_top_logits)
        if site == "logits_top":
            return HookPoint(tail.head_path, view=partial(top, ids=False))
        return HookPoint(tail.head_path, view=partial(top, ids=True), dtype=torch.int32)

    def why_no(self, site: str) -> str:
        """Which blocks lack it, why, and what to ask for instead."""
        lacking = [layer for layer, block in enumerate(self.blocks) if site not in block.points]
        if 0 < len(lacking) < self.n_layers:
            return f" in layers {', '.join(map(str, lacking))}; leave them out with --layers"
        name, kind = type(self.net).__name__, self.blocks[0].kind
        reasons = {
            "resid_mid": f": the blocks of {name} are {kind}, attention and MLP add at once",
            "attn_norm": f": attention in {name} reads the residual stream itself; use "
            f"layer_outputs of the layer before, or embeddings",
            "mlp_input_normed": f": the MLP in {name} reads no norm; use mlp_input",
            "mlp_act": f": the MLP of {name} is not one pair of maps (experts have many)",
            "final_hidden": f": {name} has no norm after its last block",
            "attn_scores": ": the package transformers does not show them; use attn_weights",
        }
        return reasons.get(site, f"; {name} shows nothing of the kind")

    def parameters(self, site: str) -> dict[str, Tensor] | None:
        """The gain of every norm; sinks are not offered."""
        return gammas_as_dump_keys(self) if site == "rmsnorm_gammas" else None

    def norm_gammas(self) -> dict[str, Tensor]:
        """The gain of every RMSNorm and LayerNorm, in the order of the modules.

        What the norm multiplies by: Gemma stores it as its difference from 1, here it is the gain.
        """
        if self.device.type == "meta":
            return self._gains_in_shape()
        norms = {
            name: as_norm(module)
            for name, module in self.net.named_modules()
            if type(module) in self._norm_types
        }
        return {
            name: norm.gain
            for name, norm in norms.items()
            if norm is not None and norm.gain is not None
        }

    def prepare(self, sites: Iterable[str]) -> None:
        """Run the head only where its logits are asked for, and attention openly where needed."""
        wanted = set(sites)
        self._with_head = not _HEAD_SITES.isdisjoint(wanted)
        self._network.show_attention(shown=not _EXPLICIT_SITES.isdisjoint(wanted))

    def attention(self, layer: int, attn_input_BTH: Tensor) -> Tensor:
        """Attention weights (B, A, T, S) of one block for what its attention reads.

        The model runs on tokens that do not matter; what the attention of this block reads is
        replaced, so that its own code sees the positions and masks of a forward pass.
        """
        self.prepare(["attn_weights"])
        (point,) = self.points("attn_weights", [layer])
        found: list[Tensor] = []

        def put_in(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (attn_input_BTH.to(args[0].dtype), *args[1:]), kwargs
            first = next(iter(kwargs))
            return args, kwargs | {first: attn_input_BTH.to(kwargs[first].dtype)}

        def take_out(_module: object, _args: object, output: Any) -> None:
            found.append(output[point.item])

        reader = self.net.get_submodule(self._path(layer, self.blocks[layer].attn or ""))
        handles = (
            reader.register_forward_pre_hook(put_in, with_kwargs=True),
            self.net.get_submodule(point.module).register_forward_hook(take_out),
        )
        tokens_BT = torch.zeros(attn_input_BTH.shape[:2], dtype=torch.long, device=self.device)
        try:
            with torch.inference_mode():
                self.forward({"tokens": tokens_BT})
        finally:
            for handle in handles:
                handle.remove()
        return found[0]

    def forward(self, inputs: Mapping[str, Tensor]) -> None:
        """Run on `tokens` (B, T), right-padded where `mask` (B, T) is False."""
        tokens_BT = inputs["tokens"]
        self._tokens_shape = (tokens_BT.shape[0], tokens_BT.shape[1])
        self._network.run(tokens_BT, inputs.get("mask"), whole=self._with_head)

    def metadata(self) -> dict[str, str]:
        """Sizes and architecture, as dumps of the other families name them."""
        return {
            "hidden_size": str(self.d_model),
            "num_layers": str(self.n_layers),
            "architecture": type(self.net).__name__,
        }

    def working_bytes(self, n_tokens: int) -> int:
        """Residual, norm, q, k, v and output (6 of H), and the MLP's (3 of I), in its dtype."""
        inner = getattr(self._network.config, "intermediate_size", None) or 4 * self.d_model
        size = next(self.net.parameters()).element_size()
        head = self.vocab_size if self._with_head else 0
        return size * n_tokens * (6 * self.d_model + 3 * int(inner) + 2 * head)

    def _path(self, layer: int, module: str) -> str:
        return f"{self._network.blocks_path}.{layer}.{module}".removesuffix(".")

    def _by_row(self, acts: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
        return view(acts.view(*self._tokens_shape, -1) if acts.ndim == 2 else acts)

    def _gains_in_shape(self) -> dict[str, Tensor]:
        """Without weights there is nothing to ask the norms: their weight has the gain's shape."""
        return {
            name: weight.detach()
            for name, module in self.net.named_modules()
            if type(module) in self._norm_types
            and isinstance(weight := getattr(module, "weight", None), Tensor)
        }


def _by_layer(modules: nn.ModuleList, probed: nn.ModuleList, found: Sequence[Block]) -> list[Block]:
    """What was found for each block, or for the first one of its kind among those probed."""
    if modules is probed:
        return list(found)
    by_kind = {
        block_kind(module): block
        for module, block in reversed(list(zip(probed, found, strict=True)))
    }
    return [by_kind.get(block_kind(each), found[-1]) for each in modules]


def _norm_types(net: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in net.modules() if as_norm(module) is not None}


def _logits(head_out: Tensor, transform: HeadTransform) -> Tensor:
    if transform.kind == "identity":
        return head_out
    return transform.apply_(head_out.to(torch.float32, copy=True))  # the model goes on with its own


def _top(head_out_BTV: Tensor, transform: HeadTransform, *, count: int, ids: bool) -> Tensor:
    """The largest logits or their ids; the transforms keep the order."""
    values_BTC, ids_BTC = head_out_BTV.float().topk(min(count, head_out_BTV.shape[-1]), dim=-1)
    return ids_BTC if ids else transform.apply_(values_BTC)
