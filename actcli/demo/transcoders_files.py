"""Write the built-in transcoders in the two formats that they are examples of, and read them back.

A Matryoshka run folder holds `checkpoint.pt`, a dictionary of tensors, with `config.json` and
`training_log.json`; Gemma Scope's holds `layer_L/width_W/average_l0_N/params.npz`. Both name their
tensors W_enc (H, D), W_dec (D, O), b_enc (D,), b_dec (O,), and threshold: () and (D,).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actcli.demo.transcoders import Weights

KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
"""The tensors' names, in the order of `Weights`."""

CHECKPOINT, PARAMETERS = "checkpoint.pt", "params.npz"


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
    for name, content in (("config.json", config), ("training_log.json", training_log)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_gemma_scope(folder: Path, weights: Weights, *, layer: int, mean_l0: float) -> Path:
    """Write a transcoder in float32 as Gemma Scope lies; one of another L0 goes.

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
    return path


def read_run_folder(folder: Path) -> Weights:
    """Read what `write_run_folder` wrote, in float32."""
    tensors = torch.load(folder / CHECKPOINT, weights_only=True)
    return Weights(*(tensors[key].float() for key in KEYS))


def read_gemma_scope(folder: Path) -> Weights:
    """Read the one transcoder that `write_gemma_scope` wrote."""
    [path] = folder.rglob(PARAMETERS)
    with np.load(path) as arrays:
        return Weights(*(torch.from_numpy(arrays[key]) for key in KEYS))


def _named(weights: Weights) -> dict[str, Tensor]:
    return dict(zip(KEYS, weights, strict=True))
