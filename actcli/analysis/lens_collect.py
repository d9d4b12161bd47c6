"""What a run of the lens keeps of its records: means, the first samples, the check of the norm.

Memory does not grow with the number of samples: of all records only means stay, of the first
samples those at the last position, and of a few, to be drawn, all.

Tensor legend: B texts, T tokens, H hidden, R records.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.lens import LensBatch, State
from actcli.analysis.lens_averages import LayerAverages
from actcli.analysis.lens_milestones import Thresholds, find_milestones, is_word, measure_control
from actcli.analysis.lens_statistics import LensKernel
from actcli.analysis.lens_summary import compare_raw_with_norm, judge_raw_with_norm
from actcli.models.unembedding import Unembedding
from actcli.reports.lens_table import STREAMS, LensTable
from actcli.reports.logit_lens import AnswerReport, RawNormCheck, SampleReport, TokenReport

_RESID = STREAMS.index("resid")


@dataclass(frozen=True)
class LensText:
    """What is known of a text beside its records."""

    token_ids: tuple[int, ...]
    end: int
    """The position behind which the answer should follow."""

    prompt: str | None = None
    answer: AnswerReport | None = None
    contrast: AnswerReport | None = None


@dataclass
class LensCollector:
    """Takes the records of a run, batch by batch."""

    text_of: Callable[[int], str]
    n_layers: int
    most_reported: int
    """Samples that are reported one by one."""

    most_drawn: int
    """Samples of which all records are kept."""

    is_normed: bool = True
    """Whether the lens goes through the final norm."""

    raw_kernel: LensKernel | None = None
    """For the check of the norm; None for no check."""

    raw_layers: tuple[int, ...] = ()
    averages: LayerAverages = field(default_factory=LayerAverages)
    n_records: int = 0
    texts: dict[int, LensText] = field(default_factory=dict)
    _ends: list[LensTable] = field(default_factory=list)
    _whole: list[LensTable] = field(default_factory=list)
    _raw: list[tuple[NDArray[np.float32], NDArray[np.int32]]] = field(default_factory=list)

    def add(self, batch: LensBatch, table: LensTable, last: LensTable) -> None:
        """Take a batch.

        Args:
            batch: the texts and their states.
            table: their records.
            last: those of them at each text's last recorded position.
        """
        self.averages.add(table)
        self.n_records += len(table)
        ends = last.select(last.sample < self.most_reported)
        if len(ends):
            self._ends.append(ends)
            self._compare(batch)
        drawn = table.select(table.sample < self.most_drawn)
        if len(drawn):
            self._whole.append(drawn)

    @property
    def drawn(self) -> LensTable | None:
        """All records of the samples to be drawn."""
        return LensTable.concat(self._whole) if self._whole else None

    @property
    def ends(self) -> LensTable:
        """The records of the first samples at their last recorded position."""
        return LensTable.concat(self._ends)

    def samples(self) -> tuple[SampleReport, ...]:
        """The first samples, each at its last recorded position, in the first stream that was read.

        That is the residual stream, unless it was left out.
        """
        ends = self.ends
        first = ends.select(ends.stream == ends.stream.min())
        return tuple(
            self._sample(int(sample), first.select(first.sample == sample))
            for sample in np.unique(first.sample)
        )

    def raw_norm_check(self) -> RawNormCheck | None:
        """What the final norm has to do with it, over the first samples."""
        if not self._raw:
            return None
        kl_LB = np.concatenate([kl for kl, _ranks in self._raw], axis=1)
        ranks_2LB = np.concatenate([ranks for _kl, ranks in self._raw], axis=2)
        return judge_raw_with_norm(self.raw_layers, kl_LB, ranks_2LB)

    def _compare(self, batch: LensBatch) -> None:
        if self.raw_kernel is None:
            return
        few = np.flatnonzero(batch.samples_B < self.most_reported)
        last = torch.as_tensor(batch.lengths_B[few] - 1)
        rows = torch.as_tensor(few)
        states = {
            layer: _rows_of(batch.states[State("resid", layer)], rows, last)
            for layer in self.raw_layers
        }
        none = np.full(len(few), -1, dtype=np.int64)
        targets = none if batch.answers_B is None else batch.answers_B[few]
        self._raw.append(compare_raw_with_norm(self.raw_kernel, states, targets))

    def _sample(self, sample: int, records: LensTable) -> SampleReport:
        records = records.select(np.argsort(records.layer, kind="stable"))
        text = self.texts[sample]
        pos = int(records.pos[0])
        milestones = find_milestones(
            records,
            text.token_ids[: pos + 1],
            token_texts={int(each): self.text_of(int(each)) for each in records.top1_id},
            n_layers=self.n_layers,
        )
        answer, contrast = (text.answer, text.contrast) if pos == text.end else (None, None)
        control = measure_control(records, contrast) if answer and contrast else None
        return SampleReport(
            sample=sample,
            prompt=text.prompt,
            token_ids=text.token_ids,
            tokens=tuple(self.text_of(each) for each in text.token_ids),
            pos=pos,
            answer=answer,
            final_top=self._top(records) if self._shows_the_model(records) else (),
            milestones=milestones,
            control=control,
        )

    def _shows_the_model(self, records: LensTable) -> bool:
        """Whether the last record is the model's own output."""
        is_final = (records.stream[-1] == _RESID) & (records.layer[-1] == self.n_layers)
        return self.is_normed and bool(is_final)

    def _top(self, records: LensTable) -> tuple[TokenReport, ...]:
        likeliest = zip(records.top_ids[-1].tolist(), records.top_p[-1].tolist(), strict=True)
        return tuple(TokenReport(id=token, text=self.text_of(token), p=p) for token, p in likeliest)


def last_records(table: LensTable) -> LensTable:
    """The records at the last recorded position of each sample."""
    _samples, which_R = np.unique(table.sample, return_inverse=True)
    last_B = np.zeros(len(_samples), dtype=np.int64)
    np.maximum.at(last_B, which_R, table.pos)
    return table.select(table.pos == last_B[which_R])


def copy_collapse(
    last: LensTable,
    ids_of: Callable[[int], tuple[int, ...]],
    *,
    text_of: Callable[[int], str],
) -> NDArray[np.bool_]:
    """Whether each record (R,) is a copy collapse: `L_copy` in `lens_milestones`, record by record.

    Args:
        last: records at the last position of their samples.
        ids_of: the tokens of a sample.
        text_of: a token's text.
    """
    thresholds = Thresholds()
    sure_R = last.top_p[:, 0] > thresholds.copy_p
    if last.top_p.shape[1] > 1:
        sure_R &= last.top_p[:, 0] - last.top_p[:, 1] > thresholds.copy_margin
    for record in np.flatnonzero(sure_R):
        token, sample = int(last.top1_id[record]), int(last.sample[record])
        prompt = ids_of(sample)[: int(last.pos[record]) + 1]
        sure_R[record] = token in prompt and is_word(text_of(token))
    return sure_R


def _rows_of(state_BTH: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    return state_BTH[rows.to(state_BTH.device), positions.to(state_BTH.device)]


def raw_check_kernel(unembedding: Unembedding) -> LensKernel:
    """The kernel that compares the lens with the norm and without."""
    return LensKernel(unembedding, top_k=1, metrics=("kl_to_final_bits", "rank_target"))
