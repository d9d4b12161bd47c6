"""The statistics of the logit lens, fused: little more than the products with the head.

Rows go in chunks whose logits fit a buffer. For each chunk the final state is decoded once, then
every other state; of its logits only sums over the vocabulary are kept (`lens_strips` adds them
up, `lens_formulas` makes columns of them). The sums are taken a few rows at a time, so that these
stay in the processor's cache from the first pass to the last. Every tensor as wide as the
vocabulary is allocated before the first chunk.

Powers are of two: 2^x is several times faster than e^x on the CPU, above all where results are
subnormal, and bits are what is wanted.

Tensor legend: P states, R rows, H hidden, V vocabulary, k largest.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.lens_formulas import Columns, LensSums, columns_of
from actcli.analysis.lens_strips import RowSums, Strips
from actcli.errors import UsageError, nearest
from actcli.models.unembedding import Unembedding

Decode = Callable[[Tensor], Tensor]
"""From rows of a state (R, H) to what enters the head: (R, H), float32."""

_SUMS: dict[str, tuple[str, ...]] = {
    "top_ids": (),
    "top_p": (),
    "rest_mass": (),
    "top1_agree": (),
    "entropy_bits": ("plogp",),
    "kl_to_final_bits": ("plogp", "cross"),
    "kl_from_final_bits": ("plogp", "reverse"),
    "js_bits": ("plogp", "mixed"),
    "cos_to_final": ("squares", "plain", "product"),
    "p_target": ("target",),
    "nll_target_bits": ("target",),
    "rank_target": ("target", "above_target"),
    "p_contrast": ("contrast",),
    "rank_contrast": ("contrast", "above_contrast"),
    "resid_norm": (),
}
METRICS = tuple(_SUMS)
"""The columns that there are."""

_STRIP_BYTES = 4 << 20


class LensKernel:
    """Reads states through a head; its buffers serve any number of calls."""

    def __init__(
        self,
        unembedding: Unembedding,
        *,
        top_k: int = 5,
        chunk_bytes: int = 32 << 20,
        metrics: Collection[str] = METRICS,
    ) -> None:
        """Allocate the buffers: up to three of a chunk, and two of a strip.

        Args:
            unembedding: the model's final norm and head.
            top_k: k, at most V.
            chunk_bytes: most bytes of the logits of a chunk; a chunk has at least one row.
            metrics: names of the columns wanted.

        Raises:
            UsageError: k is not within 1 to V, or there is no such column.
        """
        vocab, device = unembedding.vocab_size, unembedding.device
        if not 1 <= top_k <= vocab:
            raise UsageError(
                f"the top {top_k} tokens were asked for, of a vocabulary of {vocab}: "
                f"choose 1 to {vocab}"
            )
        self._head, self.top_k, self.metrics = unembedding, top_k, tuple(metrics)
        self._sums = _sums_of(metrics)
        self._rows = max(1, chunk_bytes // (vocab * 4))
        by_strips = _STRIP_BYTES if device.type == "cpu" else chunk_bytes
        self._strips = Strips(
            vocab,
            chunk_rows=self._rows,
            strip_rows=max(1, by_strips // (vocab * 4)),
            needs_q=bool({"reverse", "mixed"} & self._sums),
            device=device,
        )
        self._logits_RV = torch.empty(self._rows, vocab, dtype=torch.float32, device=device)

    def read(
        self,
        final_RH: Tensor,
        states: Sequence[Tensor],
        *,
        targets_R: NDArray[Any] | Tensor | None = None,
        contrasts_R: NDArray[Any] | Tensor | None = None,
        decode: Sequence[Decode | None] | None = None,
        decode_final: Decode | None = None,
    ) -> Columns:
        """Read every state at every row.

        Args:
            final_RH: the residual stream after the last block: Q is what the model makes of it.
            states: P tensors (R, H) of any float dtype. One that is `final_RH` itself, decoded
                alike, is not computed again.
            targets_R: token ids to follow; -1 for none, as everywhere by default.
            contrasts_R: further token ids, to be compared with the targets.
            decode: for each state what takes it to the head; None for the model's final norm.
            decode_final: the same for the final state.

        Returns:
            The columns asked for: (P, R), and (P, R, k) for top_ids and top_p. Where there is no
            target they are NaN, and a rank is 0.
        """
        ways = [None] * len(states) if decode is None else list(decode)
        is_final = [
            state is final_RH and way is decode_final
            for state, way in zip(states, ways, strict=True)
        ]
        tokens = self._tokens(target=targets_R, contrast=contrasts_R)
        by_state: list[list[RowSums]] = [[] for _ in states]
        by_final: list[RowSums] = []
        for rows in _even(len(final_RH), self._rows):
            here = {name: ids_R[rows] for name, ids_R in tokens.items()}
            with torch.inference_mode():
                by_final.append(self._read_final(final_RH[rows], decode_final, here))
                for found, state, way, same in zip(by_state, states, ways, is_final, strict=True):
                    found.append(by_final[-1] if same else self._read_state(state[rows], way, here))
        columns = columns_of(
            _joined(by_state), _joined([by_final]), is_final_P=np.array(is_final, dtype=bool)
        )
        columns = _without(columns, {name: ids_R < 0 for name, ids_R in tokens.items()})
        columns["resid_norm"] = np.stack([_norms(state) for state in states])
        shape = (len(states), len(final_RH))
        return {name: columns.get(name, _nothing(name, shape)) for name in self.metrics}

    def _tokens(self, **ids: NDArray[Any] | Tensor | None) -> dict[str, Tensor]:
        """The token ids that are followed, by what they are."""
        return {
            name: torch.as_tensor(ids_R, dtype=torch.int64, device=self._head.device)
            for name, ids_R in ids.items()
            if ids_R is not None and name in self._sums
        }

    def _read_final(
        self, final_RH: Tensor, way: Decode | None, tokens: Mapping[str, Tensor]
    ) -> RowSums:
        logits_RV = self._strips.final_logits(len(final_RH))
        self._decode(final_RH, way, logits_RV)
        return self._strips.add_up_final(logits_RV, tokens, k=self.top_k, names=self._sums)

    def _read_state(
        self, state_RH: Tensor, way: Decode | None, tokens: Mapping[str, Tensor]
    ) -> RowSums:
        logits_RV = self._logits_RV[: len(state_RH)]
        self._decode(state_RH, way, logits_RV)
        return self._strips.add_up(logits_RV, tokens, k=self.top_k, names=self._sums)

    def _decode(self, state_RH: Tensor, way: Decode | None, out_RV: Tensor) -> None:
        here_RH = state_RH.to(self._head.device)
        self._head.logits_into((way or self._head.normed)(here_RH), out_RV)


def _sums_of(metrics: Collection[str]) -> frozenset[str]:
    for name in metrics:
        if name not in _SUMS:
            raise UsageError(f"the lens has no column {name!r}; {nearest(name, _SUMS)}")
    return frozenset(each for name in metrics for each in _SUMS[name])


def _even(n_rows: int, most: int) -> Iterator[slice]:
    """Cut into as few chunks as there can be, alike in size."""
    n_chunks = -(-n_rows // most)
    for number in range(n_chunks):
        yield slice(number * n_rows // n_chunks, (number + 1) * n_rows // n_chunks)


def _joined(by_state: Sequence[Sequence[RowSums]]) -> LensSums:
    """Put the chunks of every state side by side, as float64."""

    def joined(pick: Callable[[RowSums], Tensor]) -> NDArray[Any]:
        whole = torch.stack([torch.cat([pick(chunk) for chunk in each]) for each in by_state])
        return whole.cpu().numpy()

    def sums(name: str) -> NDArray[np.float64]:
        return joined(lambda each: each.by_name[name]).astype(np.float64)

    return LensSums(
        peak=joined(lambda each: each.peak_R).astype(np.float64),
        top=joined(lambda each: each.top_Rk).astype(np.float64),
        top_ids=joined(lambda each: each.ids_Rk),
        by_name={name: sums(name) for name in by_state[0][0].by_name},
    )


def _without(columns: Columns, missing: Mapping[str, Tensor]) -> Columns:
    """Blank the columns of targets where there is none."""
    for token, missing_R in missing.items():
        for name, column in columns.items():
            if name.split("_")[1:2] == [token]:
                blank = 0 if name.startswith("rank") else np.nan
                column[:, missing_R.cpu().numpy()] = blank
    return columns


def _nothing(name: str, shape: tuple[int, int]) -> NDArray[Any]:
    """A column of targets where none were given."""
    if name.startswith("rank"):
        return np.zeros(shape, np.int32)
    return np.full(shape, np.nan, np.float32)


def _norms(state_RH: Tensor) -> NDArray[np.float32]:
    norms_R: NDArray[np.float32] = (
        torch.linalg.vector_norm(state_RH, dim=1, dtype=torch.float32).cpu().numpy()
    )
    return norms_R
