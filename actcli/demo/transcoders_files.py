"""Write the built-in transcoders in the two formats that they are examples of.

A Matryoshka run folder holds `checkpoint.pt`, a dictionary of tensors, with `config.json` and
`training_log.json`; Gemma Scope's holds `layer_L/width_W/average_l0_N/params.npz`. Both name their
tensors W_enc (H, D), W_dec (D, O), b_enc (D,), b_dec (O,), and threshold: () and (D,). Where
Gemma Scope 1 reads stands in the names of its repositories; here a `config.json` beside the arrays
says it, with the keys of Gemma Scope 2.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actcli.builtin import TEXT_MODEL
from actcli.demo.transcoders import Weights

KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
"""The tensors' names, in the order of `Weights`."""

CHECKPOINT, PARAMETERS, CONFIG = "checkpoint.pt", "params.npz", "config.json"


def write_run_folder(
    folder: Path,
    weights: Weights,
    *,
    dtype: torch.dtype,
    config: Mapping[str, Any],
    training_log: Mapping[str, Any],
) -> None:
    """Write a Matryoshka transcoder's run folder, its tensors in a dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.to(dtype).contiguous() for key, value in _named(weights).items()}
    torch.save(tensors, folder / CHECKPOINT)
    for name, content in ((CONFIG, config), ("training_log.json", training_log)):
        _write_json(folder / name, content)


def write_gemma_scope(folder: Path, weights: Weights, *, layer: int, mean_l0: float) -> Path:
    """Write a transcoder in float32 as Gemma Scope lies, and where it reads; others go.

    Returns:
        The file.
    """
    n_features = len(weights.b_enc_D)
    width = folder / f"layer_{layer}" / f"width_{n_features // 1024}k"
    shutil.rmtree(width, ignore_errors=True)
    path = width / f"average_l0_{round(mean_l0)}" / PARAMETERS
    path.parent.mkdir(parents=True)
    arrays = {key: value.float().numpy() for key, value in _named(weights).items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the arrays are taken for allow_pickle
    _write_json(path.with_name(CONFIG), _places(layer))
    return path


def _places(layer: int) -> dict[str, str]:
    """What a transcoder of Gemma Scope 1 reads and writes, by the keys of Gemma Scope 2."""
    return {
        "model_name": TEXT_MODEL,
        "hf_hook_point_in": f"blocks.{layer}.ln2.hook_normalized",
        "hf_hook_point_out": f"blocks.{layer}.hook_mlp_out",
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _named(weights: Weights) -> dict[str, Tensor]:
    return dict(zip(KEYS, weights, strict=True))
