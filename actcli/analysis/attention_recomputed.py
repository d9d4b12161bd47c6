"""Attention of chosen samples, recomputed from what it read by the model family's own code.

Tensor legend: B samples, L layers, A heads, T queries, S keys, H hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actcli.analysis.attention_maps import ATTN_INPUT, read_layers, read_layers_of
from actcli.analysis.attention_tokens import ChosenTexts, text_maps
from actcli.models.adapter import ModelAdapter
from actcli.reports.attention import AttentionMaps, TextMaps
from actcli.store.reader import Dump


def recomputed_attention(
    dump: Dump,
    samples: Sequence[int],
    boards_BT: NDArray[np.uint8],
    adapter: ModelAdapter,
    *,
    layers: Sequence[int],
) -> AttentionMaps:
    """Compute the weights of some rows and layers from what attention read, all heads."""
    inputs_BLTH = read_layers(dump, ATTN_INPUT, samples, layers)
    return AttentionMaps(
        _recompute(adapter, inputs_BLTH, layers),
        boards_BT,
        tuple(samples),
        tuple(layers),
        has_sinks=adapter.parameters("attn_sinks") is not None,
    )


def recomputed_text_attention(
    dump: Dump, texts: ChosenTexts, adapter: ModelAdapter, *, layers: Sequence[int]
) -> TextMaps:
    """Compute the weights of some texts and layers from what attention read, all heads.

    Each text is alone in its batch, so there is no padding to be masked.
    """
    weights = []
    for row, ids_T in zip(texts.samples, texts.token_ids, strict=True):
        inputs_LTH = read_layers_of(dump, ATTN_INPUT, row, layers)[:, : len(ids_T)]
        weights.append(_recompute(adapter, inputs_LTH[None], layers)[0])
    has_sinks = adapter.parameters("attn_sinks") is not None
    return text_maps(texts, weights, layers=layers, has_sinks=has_sinks)


def _recompute(
    adapter: ModelAdapter, inputs_BLTH: NDArray[np.float32], layers: Sequence[int]
) -> NDArray[np.float32]:
    """Weights (B, L, A, T, S)."""
    with torch.inference_mode():
        by_layer = [
            adapter.attention(layer, torch.from_numpy(inputs_BLTH[:, place]).to(adapter.device))
            for place, layer in enumerate(layers)
        ]
    weights_BLATS: NDArray[np.float32] = torch.stack(by_layer, dim=1).float().cpu().numpy()
    return weights_BLATS
