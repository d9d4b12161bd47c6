"""Where the states of a lens come from: a model that runs now, or a dump of one that ran before.

Both give the same: batches of consecutive texts with their activations, in the user's order, so
that records can be written as they come.

Tensor legend: N texts, B texts of a batch, L captured blocks, T tokens, H hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.capture.belongs import check_belongs
from actcli.capture.engine import CaptureEngine
from actcli.capture.plan import make_plan
from actcli.errors import DumpError
from actcli.models.adapter import ModelAdapter
from actcli.samples.batching import every_length, plan_batches
from actcli.samples.given_tokens import GivenTokens
from actcli.samples.source import Rows, SampleSource
from actcli.samples.token_rows import PADDING
from actcli.store.reader import Dump
from actcli.store.values import as_float32

_DUMP_BYTES = 64 << 20  # of activations read at a time
_TOKEN_IDS = "token_ids"


@dataclass(frozen=True)
class CapturedTexts:
    """A batch of texts with their activations, valid until the next one is asked for."""

    rows: Rows
    tokens_BT: NDArray[np.int64]
    """Padded on the right, with anything."""

    lengths_B: NDArray[np.int64]
    read: Callable[[str], Tensor]
    """Gives a site: (B, L, T, H), or (B, T, H) for one without layers."""


def run_model(
    adapter: ModelAdapter,
    samples: SampleSource,
    *,
    sites: Sequence[str],
    blocks: Sequence[int],
    batch_tokens: int,
) -> Iterator[CapturedTexts]:
    """Run a model over texts and capture sites of some blocks, in the model's own dtype.

    Args:
        adapter: the model, with weights.
        samples: the texts.
        sites: what to capture.
        blocks: the blocks that the layer axis will stand for, rising.
        batch_tokens: the most tokens in a forward pass.

    Raises:
        CaptureError: the model lacks a site, or cannot read the texts.
    """
    adapter.check_tokens(n_tokens=samples.n_tokens, largest_token=samples.largest_token)
    dtype = next(adapter.net.parameters()).dtype
    plan = make_plan(adapter, samples, sites, layers=blocks, positions=None, dtype=dtype)
    batches = plan_batches(samples, batch_size=None, batch_tokens=batch_tokens, in_order=True)
    engine = CaptureEngine(adapter, plan, samples, batches=batches)
    for captured in engine.run():
        captured.wait()
        tokens_BT = captured.samples.inputs["tokens"]
        rows = captured.rows_of_samples
        yield CapturedTexts(rows, tokens_BT, every_length(samples, rows), captured.rows)
        captured.release()


@dataclass(frozen=True)
class DumpedTexts:
    """The texts and activations of a dump."""

    dump: Dump
    ids_NT: NDArray[np.int32]
    """-1 beyond a text's end."""

    blocks: tuple[int, ...]
    """The blocks that its layer axis stands for."""

    def __len__(self) -> int:
        return len(self.ids_NT)

    def ids_of(self, row: int) -> NDArray[np.int32]:
        """Token ids of a text (T,), without padding."""
        ids_T: NDArray[np.int32] = self.ids_NT[row][self.ids_NT[row] != PADDING]
        return ids_T

    def batches(self, sites: Sequence[str], *, n_samples: int) -> Iterator[CapturedTexts]:
        """Read the first texts with some sites, so many at a time that memory is bounded."""
        row_elements = sum(prod(self.dump.check_key(site).shape[1:]) for site in sites)
        step = max(1, _DUMP_BYTES // (4 * row_elements))
        for start in range(0, n_samples, step):
            rows = range(start, min(start + step, n_samples))
            ids_BT = self.ids_NT[rows.start : rows.stop]

            def read(site: str, rows: range = rows) -> Tensor:
                tensor = self.dump.tensor(site)
                raw = tensor.read_rows(rows.start, rows.stop)
                return torch.from_numpy(np.ascontiguousarray(as_float32(raw, tensor.dtype)))

            lengths_B = (ids_BT != PADDING).sum(axis=1)
            yield CapturedTexts(rows, np.maximum(ids_BT, 0).astype(np.int64), lengths_B, read)


def open_dumped_texts(
    dump: Dump, adapter: ModelAdapter, *, sites: Sequence[str], blocks: Sequence[int]
) -> DumpedTexts:
    """Check that a dump holds what a lens of this model reads.

    Raises:
        DumpError: it is not of texts, lacks sites, blocks or positions, or is of another model.
    """
    if _TOKEN_IDS not in dump.header.tensors:
        raise DumpError(f"{dump.path} has no {_TOKEN_IDS!r}: a lens reads dumps of texts")
    lacking = [site for site in sites if site not in dump.header.tensors]
    if lacking:
        raise DumpError(
            f"{dump.path} has no {', '.join(lacking)}: dump them with "
            f"'actcli dump --outputs {','.join(sites)}'; it holds {', '.join(dump.header.tensors)}"
        )
    if dump.manifest.get("positions") is not None:
        raise DumpError(f"{dump.path} holds only some positions: dump all (no --positions)")
    ids_NT = dump.tensor(_TOKEN_IDS).read()
    held = tuple(dump.manifest.get("layers", range(adapter.n_layers)))
    absent = [block for block in blocks if block not in held]
    if absent:
        raise DumpError(
            f"{dump.path} does not hold block {absent[0]} (it holds {', '.join(map(str, held))}); "
            f"a lens needs the last block in any case: dump it without --layers"
        )
    texts = DumpedTexts(dump, ids_NT, held)
    check_belongs(dump, adapter, sample=GivenTokens(texts.ids_of(0)), row=0)
    return texts
