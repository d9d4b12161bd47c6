"""Values that the shell can offer for an option, from what is already typed.

Each completer takes the words so far (options by field name, defaults filled in) and the
unfinished word. Every TAB runs one in a new process, so none may import torch or numpy. One that
raises offers nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actcli.builtin import find_builtin, is_builtin
from actcli.errors import ModelError
from actcli.sites import SITES, find_site
from actcli.store.formats import read_header
from actcli.store.header import MANIFEST_KEY, DumpHeader

_CONFIG = "config.json"
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PER_TOKEN = ("N", "L", "T", "H")
DICTIONARY_FORMATS = (
    "saelens",
    "gemma_scope",
    "dictionary_learning",
    "sparsify",
    "circuit_tracer",
    "qwen_scope",
    "llama_scope",
    "matryoshka",
    "openai",
    "transcoder_circuits",
    "linear_pt",
    "raw",
)
"""Names of the modules of `actcli.saes`, in the order in which they are looked for."""
_NEEDS_TORCH = (".pt", ".pth")  # whose import would make a TAB take seconds


def dump_keys(words: Mapping[str, Any], _incomplete: str) -> Iterable[tuple[str, str]]:
    """Offer the tensors of the dump given with `--input`, each with its dtype and shape."""
    header = _header(words)
    tensors = header.tensors if header else {}
    return [(key, f"{each.dtype} {list(each.shape)}") for key, each in tensors.items()]


def dump_layers(words: Mapping[str, Any], incomplete: str) -> Iterable[str]:
    """Offer the layers of the tensor given with `--key`, of the dump given with `--input`."""
    key = str(words["key"])
    header = _header(words)
    if header is None or "L" not in (axes := find_site(key).axes):
        return []
    count = header.tensors[key].shape[axes.index("L")]
    recorded = json.loads(header.metadata.get(MANIFEST_KEY, "{}")).get("layers", [])
    return _indices(recorded if len(recorded) == count else range(count), incomplete)


def model_layers(words: Mapping[str, Any], incomplete: str) -> Iterable[str]:
    """Offer the layers of the model given with `--init`, where its config.json is at hand."""
    config = json.loads(_config_path(str(words["init"])).read_text(encoding="utf-8"))
    config = config.get("text_config", config)  # of models that also see
    count = next(config[name] for name in _LAYER_COUNTS if name in config)
    return _indices(range(count), incomplete)


def output_sites(_words: Mapping[str, Any], _incomplete: str) -> Iterable[tuple[str, str]]:
    """Offer the sites that can be captured, each with its meaning."""
    return [(site.name, site.meaning) for site in SITES]


def lens_streams(_words: Mapping[str, Any], _incomplete: str) -> Iterable[tuple[str, str]]:
    """Offer what a logit lens can read."""
    return [
        ("resid", "the residual stream"),
        ("mid", "the stream between attention and MLP"),
        ("attn", "what attention adds"),
        ("mlp", "what the MLP adds"),
    ]


def dictionary_places(words: Mapping[str, Any], _incomplete: str) -> Iterable[tuple[str, str]]:
    """Offer the tensors of the dump given with `--from-dump`, by layer; else sites of layers."""
    path = words.get("from_dump")
    if path is None:
        return [(f"{site.name}.", site.meaning) for site in SITES if site.axes == _PER_TOKEN]
    header = _header({"input": path})
    if header is None:
        return []
    recorded = json.loads(header.metadata.get(MANIFEST_KEY, "{}")).get("layers", [])
    found = []
    for key, each in header.tensors.items():
        told = f"{each.dtype} {list(each.shape)}"
        if len(each.shape) != len(_PER_TOKEN):
            found.append((key, told))
            continue
        count = each.shape[1]
        layers = recorded if len(recorded) == count else range(count)
        found += [(f"{key}.{layer}", told) for layer in layers]
    return found


def dictionary_formats(_words: Mapping[str, Any], _incomplete: str) -> Iterable[str]:
    """Offer the formats of SAEs and transcoders."""
    return DICTIONARY_FORMATS


def devices(_words: Mapping[str, Any], _incomplete: str) -> Iterable[tuple[str, str]]:
    """Offer the kinds of device; whether one is there shows when the command runs."""
    return [
        ("auto", "the first GPU if there is one, else the CPU"),
        ("cpu", "the processor"),
        ("cuda", "the current NVIDIA GPU; cuda:1 is the second"),
        ("mps", "the GPU of an Apple computer"),
    ]


def _header(words: Mapping[str, Any]) -> DumpHeader | None:
    path = Path(words["input"])
    return None if path.suffix in _NEEDS_TORCH else read_header(path)


def _config_path(init: str) -> Path:
    if is_builtin(init):
        return find_builtin(init, holding=_CONFIG, error=ModelError) / _CONFIG
    path = Path(init)
    return (path if path.is_dir() else path.parent) / _CONFIG


def _indices(there: Sequence[int], incomplete: str) -> list[str]:
    """Return the indices, or the ranges that can be made of an unfinished one such as `3-`."""
    first, dash, _ = incomplete.rpartition("-")
    if first.isdigit():
        return [f"{first}{dash}{index}" for index in there if index > int(first)]
    return [str(index) for index in there]
