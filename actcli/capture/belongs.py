"""Whether a dump was made from a model: asked before anything is recomputed from the two.

1. The fingerprint in the dump's manifest is that of the model's weights, where there is one.
2. The shapes agree.
3. One sample of the dump, run through the model, gives what the dump holds of it.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actcli.capture.plan import make_plan
from actcli.capture.verify import plain_values
from actcli.errors import CaptureError, DumpError
from actcli.models.adapter import ModelAdapter
from actcli.samples.source import SampleSource
from actcli.store.reader import Dump
from actcli.store.values import as_float32

_COMPARED = ("attn_norm", "layer_outputs", "attn_weights")
_TOLERANCE = {"F32": 1e-3, "F16": 1e-2, "BF16": 5e-2}
"""Largest difference, relative to the largest value: rounding of the storage dtype, and room for
another machine's order of additions. The coarser counts of the stored and the model's dtype: in
bf16 a sample alone is not the same to the last bit as one in a batch."""

_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16"}


def check_belongs(dump: Dump, adapter: ModelAdapter, *, sample: SampleSource, row: int) -> None:
    """Refuse a dump that was not made from this model.

    Args:
        dump: of all tokens; what it holds of `attn_norm`, `layer_outputs` and `attn_weights` is
            compared.
        adapter: the model, loaded to compute in the dtype that the dump was made in.
        sample: a single sample, the one at `row` without its padding.
        row: the row of the dump that is compared.

    Raises:
        DumpError: fingerprint, shapes or values differ.
    """
    name = adapter.files.source.init
    recorded = dump.manifest.get("model", {}).get("weights_sha256")
    if recorded is not None and recorded != adapter.fingerprint()["weights_sha256"]:
        raise DumpError(
            f"{dump.path} was made from other weights than those of {name} (their sha256 differ); "
            f"give the right model with --init"
        )
    layers = _layers(dump, adapter, name)
    adapter.check_tokens(n_tokens=sample.n_tokens, largest_token=sample.largest_token)
    keys = [key for key in _COMPARED if key in dump.header.tensors]
    try:
        plan = make_plan(adapter, sample, keys, layers=layers, positions=None, dtype=torch.float32)
    except CaptureError as error:
        raise DumpError(f"{dump.path} does not belong to {name}: {error}") from error
    found = plain_values(adapter, plan, sample, 0)
    for key in keys:
        tensor = dump.tensor(key)
        stored = as_float32(tensor.read_rows(row, row + 1), tensor.dtype)[0]
        _compare(dump, adapter, key, stored, found[key].numpy())


def _layers(dump: Dump, adapter: ModelAdapter, name: str) -> list[int]:
    layers = dump.manifest.get("layers", [*range(adapter.n_layers)])
    widths = {"attn_norm": (3, adapter.d_model), "attn_weights": (2, adapter.n_heads)}
    for key, (axis, width) in widths.items():
        if key not in dump.header.tensors:
            continue
        shape = dump.check_key(key).shape
        found = (shape[1], shape[axis])
        if found != (len(layers), width) or max(layers) >= adapter.n_layers:
            what = "dimensions" if key == "attn_norm" else "heads"
            raise DumpError(
                f"{dump.path} holds {found[0]} layers of {found[1]} {what}, the model {name} has "
                f"{adapter.n_layers} of {width}; give the right model with --init"
            )
    return list(layers)


def _compare(
    dump: Dump,
    adapter: ModelAdapter,
    key: str,
    padded: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Compare one row of the dump, which may be padded, with what the model gives for it."""
    stored = padded[tuple(map(slice, found.shape))]
    if stored.shape != found.shape:
        raise DumpError(
            f"{dump.path} does not belong to {adapter.files.source.init}: a sample of its {key} is "
            f"{list(padded.shape)}, the model's {list(found.shape)}; give the right model with "
            f"--init"
        )
    dtypes = (dump.check_key(key).dtype, _DTYPES.get(next(adapter.net.parameters()).dtype, "F32"))
    tolerance = max(_TOLERANCE.get(each, 5e-2) for each in dtypes)
    scale = max(1.0, float(np.abs(found).max()))
    difference = float(np.abs(stored - found).max())
    if not difference <= tolerance * scale:
        raise DumpError(
            f"{dump.path} does not belong to {adapter.files.source.init}: {key} of one of its "
            f"samples differs by up to {difference:.3g}; give the right model with --init"
        )
