"""First layers at which something holds, computed from the records alone.

All is at one position of one text, over the recorded layers of the residual stream, rising. "In the
prompt" compares token ids, never texts. p1 and p2 are the two largest probabilities.

    L_copy               top-1 id stands in the prompt, p1 > 0.95, p1 - p2 > 0.10, and the token is
                         not just blanks and punctuation
    L_copy_soft_k        the top-1 ids of the last k recorded layers stand in the prompt one after
                         the other, and p1 > 0.5 at the last of them (k = 1, 2, 3)
    L_copy_H             entropy <= 1 bit
    L_semantic           rank of the target = 1
    L_semantic_run2      the same, and at the next recorded layer as well
    first_rank_le_r      rank of the target <= r (r = 1, 5, 10)
    first_kl_below_b     KL(P||Q) <= b bits (b = 0.5, 1.0)

The names are those of earlier tools. A layer of 0 is what enters the first block.
"""

import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actcli.errors import UsageError
from actcli.reports.lens_table import LensTable
from actcli.reports.logit_lens import AnswerReport, ControlReport, Milestones

_RANKS = (1, 5, 10)
_KL_BITS = (0.5, 1.0)
_WINDOWS = (1, 2, 3)

Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Thresholds:
    """What counts as a collapse."""

    copy_p: float = 0.95
    """p1 of a copy is larger."""

    copy_margin: float = 0.10
    """p1 - p2 of a copy is larger."""

    soft_p: float = 0.5
    """p1 of a soft copy is larger."""

    entropy_bits: float = 1.0
    """Entropy of a collapse, at most."""


def find_milestones(
    table: LensTable,
    prompt_ids: Sequence[int],
    *,
    token_texts: Mapping[int, str],
    n_layers: int,
    thresholds: Thresholds = Thresholds(),
) -> Milestones:
    """Find the milestones of one text at one position.

    Args:
        table: records of one text, one position and the residual stream, by layer (`at_position`).
        prompt_ids: the tokens up to and with that position.
        token_texts: how tokens read, for those that are the likeliest anywhere; an id that is not
            here counts as a word.
        n_layers: blocks of the model.
        thresholds: what counts as a collapse.
    """
    marks = _copies(table, prompt_ids, token_texts, thresholds)
    marks["L_copy_H"] = table.entropy_bits <= thresholds.entropy_bits
    marks |= _by_rank(table.rank_target)
    marks |= {f"first_kl_below_{bits}": table.kl_to_final_bits <= bits for bits in _KL_BITS}
    layers = {name: _first(table, mark) for name, mark in marks.items()}
    copied, answered = layers["L_copy"], layers["L_semantic"]
    return Milestones(
        layers=layers,
        delta_layers=None if copied is None or answered is None else answered - copied,
        depth_fractions={
            name: None if layer is None else layer / n_layers for name, layer in layers.items()
        },
    )


def measure_control(table: LensTable, contrast: AnswerReport) -> ControlReport:
    """Follow a wrong answer through the same records: the target is the right one.

    Args:
        table: as for `find_milestones`, with the contrast's columns.
        contrast: the wrong answer.

    Raises:
        UsageError: the records have no contrast or no target.
    """
    margins = table.p_contrast.astype(np.float64) - table.p_target
    if not len(table) or np.isnan(margins).any():
        raise UsageError("a control needs an answer and a contrast at the position")
    largest = int(np.argmax(margins))
    marks = _by_rank(table.rank_contrast)
    return ControlReport(
        contrast=contrast,
        largest_margin=float(margins[largest]),
        largest_margin_layer=int(table.layer[largest]),
        final_margin=float(margins[-1]),
        layers={name: _first(table, mark) for name, mark in marks.items()},
    )


def at_position(table: LensTable, *, sample: int, pos: int | None = None) -> LensTable:
    """Return the records of the residual stream of one text at one position, by layer.

    Args:
        table: records of any texts.
        sample: number of the text.
        pos: the position; by default the last that is recorded.
    """
    of_text = table.select(table.sample == sample).of_stream("resid")
    if pos is None and len(of_text):
        pos = int(of_text.pos.max())
    here = of_text.select(of_text.pos == pos)
    return here.select(np.argsort(here.layer, kind="stable"))


def stands_in(window: Sequence[int], prompt_ids: Sequence[int]) -> bool:
    """Whether tokens stand in the prompt like this, one after the other."""
    width = len(window)
    return any(
        tuple(prompt_ids[start : start + width]) == tuple(window)
        for start in range(len(prompt_ids) - width + 1)
    )


def is_word(text: str) -> bool:
    """Whether a token is more than blanks, control characters and punctuation."""
    return any(
        unicodedata.category(each)[0] not in "PZC" and each not in string.punctuation
        for each in text
    )


def _copies(
    table: LensTable,
    prompt_ids: Sequence[int],
    token_texts: Mapping[int, str],
    thresholds: Thresholds,
) -> dict[str, Marks]:
    top1 = table.top1_id.tolist()
    p1 = table.top_p[:, 0]
    p2 = table.top_p[:, 1] if table.top_p.shape[1] > 1 else table.rest_mass  # at least p2
    copied = {width: _windows_in_prompt(top1, prompt_ids, width) for width in _WINDOWS}
    words = np.array([is_word(token_texts.get(token, "word")) for token in top1], dtype=bool)
    sure = (p1 > thresholds.copy_p) & (p1 - p2 > thresholds.copy_margin)
    soft = p1 > thresholds.soft_p
    return {
        "L_copy": copied[1] & sure & words,
        **{f"L_copy_soft_{width}": copied[width] & soft for width in _WINDOWS},
    }


def _windows_in_prompt(top1: Sequence[int], prompt_ids: Sequence[int], width: int) -> Marks:
    """For each layer, whether the last `width` top-1 ids up to it stand in the prompt."""
    return np.array(
        [
            end >= width and stands_in(top1[end - width : end], prompt_ids)
            for end in range(1, len(top1) + 1)
        ],
        dtype=bool,
    )


def _by_rank(rank: NDArray[np.int32]) -> dict[str, Marks]:
    """Marks of a followed token; a rank of 0 says that there is none."""
    first = rank == 1
    next_too = np.append(first[1:], False) if len(first) else first
    within = {f"first_rank_le_{most}": (rank > 0) & (rank <= most) for most in _RANKS}
    return {"L_semantic": first, "L_semantic_run2": first & next_too, **within}


def _first(table: LensTable, mark: Marks) -> int | None:
    return int(table.layer[np.argmax(mark)]) if mark.any() else None
