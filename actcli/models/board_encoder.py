"""Model family "2048 encoder": loading every form of its checkpoints, and where its sites are.

Forms: a folder with `config.json` and weights; a `.pt`/`.pth` bundle `{model, encoder_config}`;
a bare `.safetensors` or state dict beside its `config.json`. Loading is strict: what the network
needs and what the file holds must be the same names and shapes.

Tensor legend: B batch, A heads, T tokens, D head width, O outputs, R bins.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from actcli.errors import ModelError, reason
from actcli.models.adapter import HookPoint, LoadedFiles, ModelAdapter, gammas_as_dump_keys
from actcli.models.encoder2048 import MOVES, Attention, Encoder2048, EncoderConfig
from actcli.models.source import DEFAULTS, LoadOptions, ModelSource
from actcli.models.uninitialised import Uninitialised

FAMILY = "2048 encoder"
READS = "boards"
CONFIG_FILE = "config.json"
WEIGHT_FILES = (
    "model-best.safetensors",
    "model.safetensors",
    "model-final.safetensors",
    "model-stable.safetensors",
    "model-best.pt",
    "model.pt",
    "model-stable.pt",
)
"""In the order of preference within a folder."""

_PICKLED = (".pt", ".pth")
_WRAPPERS = ("_orig_mod.", "module.")
_EXPLICIT_SITES = {"attn_weights", "attn_scores"}
_MOST_NAMES = 6


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a model source: a configuration, and weights where they were asked for."""

    config: EncoderConfig
    weights_file: Path | None
    state: dict[str, Tensor] | None


def recognises(source: ModelSource) -> bool:
    """Whether the files look like a 2048 encoder: a bundle, or a config with its field names."""
    if source.path.suffix in _PICKLED:
        return True
    folder = source.path if source.path.is_dir() else source.path.parent
    config = folder / CONFIG_FILE
    if not config.exists():
        return _weights_in(folder) is not None
    fields = _read_json(config)
    return "layer_norm_eps" in fields and "model_type" not in fields


def load(
    source: ModelSource,
    *,
    device: torch.device | str,
    weights: bool = True,
    options: LoadOptions = DEFAULTS,
) -> "BoardEncoder":
    """Load the model in float32, in eval mode.

    Args:
        source: where it is.
        device: where to put it.
        weights: False gives the network on the meta device, for its shapes alone; the weights
            may then be missing.
        options: its dtype may only be float32 here; the rest is without effect.

    Raises:
        ModelError: anything is missing, damaged or does not fit; the message names it.
    """
    if options.dtype not in (None, "fp32"):
        raise ModelError(
            f"{source.init} is a {FAMILY}, which computes in fp32; leave out --model-dtype"
        )
    checkpoint = read_checkpoint(source.path, weights=weights)
    with torch.device("meta"), Uninitialised():
        net = Encoder2048(checkpoint.config)
    if checkpoint.state is not None:
        _load_strictly(net, checkpoint)
        net = net.to(device)
    return BoardEncoder(net.eval(), LoadedFiles(source, checkpoint.weights_file))


def read_checkpoint(path: Path, *, weights: bool = True) -> Checkpoint:
    """Read configuration and weights of any form.

    Fields of the configuration that older files leave out are taken from the weights.

    Raises:
        ModelError: as for `load`.
    """
    weights_file = _weights_in(path) if path.is_dir() else path
    if weights_file is None and weights:
        raise ModelError(
            f"no weights in {path}: looked for {', '.join(WEIGHT_FILES)}; "
            f"actcli never runs a model with random weights"
        )
    folder = path if path.is_dir() else path.parent
    fields, config_path = _read_config(folder), folder / CONFIG_FILE
    state: dict[str, Tensor] | None = None
    if weights_file is not None and (weights or not _tells_the_head(fields)):
        state, in_bundle = _read_weights(weights_file)
        fields = (fields or {}) | in_bundle
        fields = _inferred(fields, state) if fields else {}
    if not fields:
        raise ModelError(
            f"no configuration for {weights_file or path}: expected {config_path}, or a .pt bundle "
            f"that holds 'encoder_config'"
        )
    return Checkpoint(_validate(fields, config_path), weights_file, state if weights else None)


def _tells_the_head(fields: Mapping[str, Any] | None) -> bool:
    """Whether a configuration is enough to know all shapes, without a look at the weights."""
    known = fields or {}
    return known.get("head_type") == "action_policy" or bool(known.get("output_n_bins"))


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG_FILE
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds {type(fields).__name__}, expected a JSON object")
    return fields


def _validate(fields: dict[str, Any], path: Path) -> EncoderConfig:
    try:
        return EncoderConfig.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'config'}: {each['msg']}"
            for each in error.errors()
        )
        raise ModelError(f"the configuration of the 2048 encoder ({path}): {problems}") from error


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict without wrapper prefixes, and the configuration in the bundle."""
    if path.suffix in _PICKLED:
        state, config = _read_bundle(path)
    else:
        state, config = _read_safetensors(path), {}
    return {_unwrapped(name): tensor for name, tensor in state.items()}, config


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {reason(error)}") from error


def _read_bundle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        mmap = zipfile.is_zipfile(path)  # files of torch < 1.6 are not
        bundle = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        if "Unsupported global" in str(error):
            raise ModelError(
                f"{path} holds more than tensors and plain values, and actcli runs no code from a "
                f"checkpoint: save it again as {{'model': state_dict, 'encoder_config': {{...}}}}"
            ) from error
        what = "not in its format" if isinstance(error, pickle.UnpicklingError) else reason(error)
        raise ModelError(f"{path} is not a readable PyTorch file: {what}") from error
    state = bundle.get("model", bundle) if isinstance(bundle, dict) else None
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        found = ", ".join(map(str, bundle)) if isinstance(bundle, dict) else type(bundle).__name__
        raise ModelError(f"{path} holds {found}, expected a state dict under 'model'")
    return state, _config_in_bundle(bundle)


def _config_in_bundle(bundle: Mapping[str, Any]) -> dict[str, Any]:
    training = bundle.get("training_config") or {}
    nested = training if isinstance(training, dict) else {}
    for config in (bundle.get("encoder_config"), nested.get("encoder"), nested.get("model")):
        if isinstance(config, dict):
            return config
    return {}


def _unwrapped(name: str) -> str:
    """The name without the prefixes that torch.compile and data parallelism put before it."""
    while prefix := next((each for each in _WRAPPERS if name.startswith(each)), ""):
        name = name.removeprefix(prefix)
    return name


def _inferred(fields: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Add what the weights tell: the kind of head, its bins, the vocabulary."""
    told: dict[str, Any] = {}
    if "policy_head.weight" in state:
        told["head_type"] = "action_policy"
    elif "ev_heads.0.weight" in state:
        told |= {"head_type": "binned_ev", "output_n_bins": state["ev_heads.0.weight"].shape[0]}
    if "tok_emb.weight" in state:
        rows = state["tok_emb.weight"].shape[0]
        told["input_vocab_size"] = max(int(fields.get("input_vocab_size") or 0), rows)
    return fields | told


def _load_strictly(net: Encoder2048, checkpoint: Checkpoint) -> None:
    assert checkpoint.state is not None
    state, needed = checkpoint.state, net.state_dict()
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(needed[name].shape)}"
        for name in needed.keys() & state.keys()
        if state[name].shape != needed[name].shape
    ]
    problems = (
        _named("missing", sorted(needed.keys() - state.keys()))
        + _named("not in the model", sorted(state.keys() - needed.keys()))
        + _named("misshapen", sorted(misshapen))
    )
    if problems:
        raise ModelError(
            f"{checkpoint.weights_file} does not fit its configuration: {'; '.join(problems)}"
        )
    net.load_state_dict({name: each.float() for name, each in state.items()}, assign=True)


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return [f"{len(names)} {what}: {', '.join(names[:_MOST_NAMES])}{more}"]


class BoardEncoder(ModelAdapter):
    """Where the sites of a 2048 encoder are."""

    family = FAMILY

    def __init__(self, net: Encoder2048, files: LoadedFiles) -> None:
        self.net = self._encoder = net
        self.files = files
        config = net.config
        self.n_layers, self.d_model = config.num_hidden_layers, config.hidden_size
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.n_kv_heads
        self.max_tokens, self.vocab_size = config.max_position_embeddings, config.input_vocab_size

    def layer_points(self, site: str, layer: int) -> HookPoint | None:
        """Where a per-layer site is read in one block."""
        inside = {
            "layer_outputs": HookPoint(""),
            "attn_norm": HookPoint("attn_norm"),
            "mlp_input": HookPoint("mlp_norm"),
            "attn_out": HookPoint("attn"),
            "mlp_out": HookPoint("mlp"),
            "mlp_act": HookPoint("mlp.act"),
            "q": HookPoint("attn.q_norm"),
            "k": HookPoint("attn.k_norm"),
            "v": HookPoint("attn.v_heads"),
            "attn_scores": HookPoint("attn.scores"),
            "attn_weights": HookPoint("attn.weights"),
        }.get(site)
        block = f"blocks.{layer}"
        return inside and inside._replace(module=f"{block}.{inside.module}".removesuffix("."))

    def point(self, site: str) -> HookPoint | None:
        """Where the sites outside the blocks are read."""
        return {
            "embeddings": HookPoint("embeddings"),
            "final_hidden": HookPoint("final_ln"),
            "pooled": HookPoint("pooled"),
            "head_logits": HookPoint("head_logits"),
            "head_probs": HookPoint("head_logits", view=_probabilities),
        }.get(site)

    def parameters(self, site: str) -> dict[str, Tensor] | None:
        """RMSNorm gains, and the sinks (L, A) in the order of the checkpoint."""
        if site == "rmsnorm_gammas":
            return gammas_as_dump_keys(self)
        sinks = [each.sinks for each in self._attentions() if each.sinks is not None]
        if site == "attn_sinks" and sinks:
            return {"attn_sinks": torch.stack([each.detach() for each in sinks])}
        return None

    def prepare(self, sites: Iterable[str]) -> None:
        """Compute attention explicitly where its scores or weights are asked for."""
        explicit = not _EXPLICIT_SITES.isdisjoint(sites)
        for attention in self._attentions():
            attention.explicit = explicit

    def attention(self, layer: int, attn_input_BTH: Tensor) -> Tensor:
        """Attention weights (B, A, T, S) of one block, heads in the order of the forward pass."""
        attention = self._attentions()[layer]
        q_BATD, k_BKTD, _v = attention.project(attn_input_BTH)
        return attention.pattern(q_BATD, attention.for_each_query_head(k_BKTD))

    def forward(self, inputs: Mapping[str, Tensor]) -> None:
        """Run on `tokens` (B, T), integers below the vocabulary size."""
        self.net(inputs["tokens"])

    def metadata(self) -> dict[str, str]:
        """The model's part of the keys that dumps of this family have always had."""
        config = self._encoder.config
        is_policy = config.head_type == "action_policy"
        return {
            "hidden_size": str(self.d_model),
            "num_layers": str(self.n_layers),
            "head_type": config.head_type,
            "n_bins": str(len(MOVES) if is_policy else config.output_n_bins),
        }

    def working_bytes(self, n_tokens: int) -> int:
        """Residual, norm, q, k, v and output (6 of H), gate, up and product (3 of I), float32."""
        config = self._encoder.config
        return 4 * n_tokens * (6 * config.hidden_size + 3 * config.intermediate_size)

    def _attentions(self) -> list[Attention]:
        return [each for each in self.net.modules() if isinstance(each, Attention)]


def _probabilities(logits_BOR: Tensor) -> Tensor:
    return logits_BOR.float().softmax(dim=-1)
