"""Attention of chosen boards, recomputed from what it read by the model family's own code.

Tensor legend: B samples, L layers, A heads, T queries, S keys, H hidden.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actcli.analysis.attention_maps import ATTN_INPUT, read_layers
from actcli.models.adapter import ModelAdapter
from actcli.reports.attention import AttentionMaps
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
    with torch.inference_mode():
        by_layer = [
            adapter.attention(layer, torch.from_numpy(inputs_BLTH[:, place]).to(adapter.device))
            for place, layer in enumerate(layers)
        ]
    weights_BLATS = torch.stack(by_layer, dim=1).float().cpu().numpy()
    return AttentionMaps(
        weights_BLATS,
        boards_BT,
        tuple(samples),
        tuple(layers),
        has_sinks=adapter.parameters("attn_sinks") is not None,
    )
