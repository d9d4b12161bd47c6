"""Model family "transformers": a folder that the package transformers can load.

Told by the `model_type` in its `config.json`. Nothing of a model's own code runs unless the user
says so, and no weight is made up: what the file lacks, is refused.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from actcli.errors import ModelError, reason
from actcli.models.adapter import LoadedFiles, ModelAdapter
from actcli.models.network import Network, block_kind
from actcli.models.source import LoadOptions, ModelSource
from actcli.models.transformer import FAMILY, HuggingFaceTransformer
from actcli.models.uninitialised import Uninitialised

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILY", "READS", "load", "recognises"]

READS = "text"

_CONFIG = "config.json"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_MOST_NAMES = 5


def recognises(source: ModelSource) -> bool:
    """Whether there is a configuration that names a model type."""
    try:
        fields = json.loads((_folder(source) / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and "model_type" in fields


def load(source: ModelSource, *, device: str, weights: bool, options: LoadOptions) -> ModelAdapter:
    """Load a model and resolve its sites.

    Without weights the sites are resolved on a random model of few layers with the same
    configuration, and the network is on the meta device.

    Raises:
        ModelError: no weights, an unknown type, damaged files, or remote code without permission.
    """
    folder = _folder(source)
    config = _read_config(folder, options)
    if not weights:
        return _planned(config, source, options)
    file = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if file is None:
        raise ModelError(
            f"{folder} has a configuration and no weights: expected {' or '.join(_WEIGHTS)}"
        )
    net = _read_model(folder, config, options)
    if options.device_map is None:
        net = net.to(device)
    return HuggingFaceTransformer(net, LoadedFiles(source, file))


def _folder(source: ModelSource) -> Path:
    return source.path if source.path.is_dir() else source.path.parent


def _read_config(folder: Path, options: LoadOptions) -> "PreTrainedConfig":
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    talk: Any = transformers.logging
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    loader: Any = transformers.AutoConfig
    try:
        config: PreTrainedConfig = loader.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(_why_no_config(folder, error)) from error
    return config


def _why_no_config(folder: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{folder} brings its own Python code, which actcli does not run unless you trust it: "
            f"--trust-remote-code"
        )
    said = reason(error)
    if said.endswith(":"):  # what is wrong stands on the next line
        said = " ".join(str(error).split())
    return f"the package transformers cannot read {folder / _CONFIG}: {said}"


def _model_class(config: "PreTrainedConfig") -> Any:
    """The loader for what the configuration says was saved; its head decides about logits."""
    import transformers

    named = " ".join(config.architectures or ())
    if "ForMaskedLM" in named:
        return transformers.AutoModelForMaskedLM
    if "ForCausalLM" in named or "LMHeadModel" in named:
        return transformers.AutoModelForCausalLM
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    is_causal = not named and config.model_type in causal
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModel


def _read_model(folder: Path, config: "PreTrainedConfig", options: LoadOptions) -> nn.Module:
    dtype = "auto" if options.dtype is None else _DTYPES[options.dtype]
    choices: dict[str, Any] = {"config": config, "dtype": dtype, "local_files_only": True}
    choices["trust_remote_code"] = options.trust_remote_code
    choices["ignore_mismatched_sizes"] = True  # refused below, by name
    if options.device_map is not None:
        choices["device_map"] = options.device_map
    loader = _model_class(config)
    try:
        net, info = loader.from_pretrained(folder, output_loading_info=True, **choices)
        if not _shows_attention(net):
            net = loader.from_pretrained(folder, attn_implementation="eager", **choices)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(f"cannot load the model in {folder}: {reason(error)}") from error
    _check_complete(folder, info)
    model: nn.Module = net.eval()
    return model


def _check_complete(folder: Path, info: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} that the model needs: {_first(missing)}"
        )
    unfit = sorted(
        f"{name} is {list(stored)}, expected {list(wanted)}"
        for name, stored, wanted in info["mismatched_keys"]
    )
    if unfit:
        raise ModelError(
            f"the weights in {folder} do not fit {_CONFIG}, {len(unfit)} of them: {_first(unfit)}"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if names[_MOST_NAMES:] else "")


def _shows_attention(net: Any) -> bool:
    """Whether attention can be switched to the implementation that gives its weights, and back."""
    fast = net.config._attn_implementation
    net.set_attn_implementation("eager")
    shows = bool(net.config._attn_implementation == "eager")
    if shows and fast != "eager":
        net.set_attn_implementation(fast)
    return shows


def _planned(config: "PreTrainedConfig", source: ModelSource, options: LoadOptions) -> ModelAdapter:
    """The adapter of a model that is only planned for: shapes, no weights."""
    loader = _model_class(config)
    choices: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    dtype = config.dtype if options.dtype is None else _DTYPES[options.dtype]
    with torch.device("meta"), Uninitialised():
        net = loader.from_config(copy.deepcopy(config), dtype=dtype, **choices)
        if not _shows_attention(net):
            choices["attn_implementation"] = "eager"
    files = LoadedFiles(source, None)
    return HuggingFaceTransformer(
        net.eval(), files, resolve_on=_few_layers(config, net, loader, choices)
    )


def _few_layers(
    config: "PreTrainedConfig", net: nn.Module, loader: Any, choices: dict[str, Any]
) -> nn.Module:
    """A random model with as many of the first blocks as it takes to have one of each kind."""
    small = copy.deepcopy(config)
    text = small.get_text_config(decoder=True)
    kinds = [block_kind(block) for block in Network(net).blocks]
    n_layers = max(min(2, len(kinds)), *(kinds.index(kind) + 1 for kind in kinds))
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == len(kinds):
            setattr(text, name, value[:n_layers])
    text.num_hidden_layers = n_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = loader.from_config(small, dtype=torch.float32, **choices).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms that are all alike could not be told apart
                nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model
