"""One text in one stream as a grid of layers × positions, and the numbers by which it is shaded.

Tensor legend: G layers of the grid, T positions, k largest, R records, B texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.reports.lens_table import LensTable, place_name


class Metric(NamedTuple):
    """A number of every record."""

    label: str
    unit: str
    values: Callable[[LensTable], NDArray[Any]]
    bright_when_low: bool = False
    """Whether a small number means that the model has decided: it gets the bright end."""

    most: float | None = None
    """Where the scale ends; None for the largest there is."""

    is_rank: bool = False
    """Whole numbers from 1, on a logarithmic scale; 0 for none."""

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS = {
    "probability": Metric("probability of the top-1 token", "", lambda t: t.top_p[:, 0], most=1.0),
    "entropy": Metric("entropy", "bits", lambda t: t.entropy_bits, bright_when_low=True),
    "rank": Metric(
        "rank of the target", "", lambda t: t.rank_target, bright_when_low=True, is_rank=True
    ),
    "kl": Metric("KL(P‖Q) to the final layer", "bits", lambda t: t.kl_to_final_bits, True),
    "kl-from": Metric("KL(Q‖P) from the final layer", "bits", lambda t: t.kl_from_final_bits, True),
    "js": Metric("JS divergence to the final layer", "bits", lambda t: t.js_bits, True, 1.0),
    "target": Metric("probability of the target", "", lambda t: t.p_target, most=1.0),
    "nll": Metric("surprise at the target", "bits", lambda t: t.nll_target_bits, True),
    "contrast": Metric("probability of the contrast", "", lambda t: t.p_contrast, most=1.0),
    "contrast-rank": Metric(
        "rank of the contrast", "", lambda t: t.rank_contrast, bright_when_low=True, is_rank=True
    ),
    "agree": Metric("top-1 is that of the final layer", "", lambda t: t.top1_agree, most=1.0),
    "cosine": Metric("cosine of the logits to the final ones", "", lambda t: t.cos_to_final),
    "norm": Metric("norm of the state", "", lambda t: t.resid_norm),
    "rest": Metric("probability outside the listed top k", "", lambda t: t.rest_mass, True, 1.0),
}
"""By the name that a user gives."""


@dataclass(frozen=True)
class LensGrid:
    """The records of one text in one stream, at the same positions in all layers."""

    sample: int
    stream: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    table: LensTable
    """By layer, then position."""

    @property
    def places(self) -> tuple[str, ...]:
        """The name of each layer's place."""
        return tuple(place_name(self.stream, layer) for layer in self.layers)

    @property
    def token_ids(self) -> list[int]:
        """The input token at each position."""
        ids: list[int] = self.shaped(self.table.token_id)[0].tolist()
        return ids

    @property
    def target_ids(self) -> list[int]:
        """The token that is followed at each position, -1 for none."""
        ids: list[int] = self.shaped(self.table.target_id)[0].tolist()
        return ids

    def shaped(self, column_R: NDArray[Any]) -> NDArray[Any]:
        """Return a column as (G, T), or (G, T, k)."""
        return column_R.reshape(len(self.layers), len(self.positions), *column_R.shape[1:])

    def metric(self, name: str) -> NDArray[np.float32]:
        """Return a number of each record (G, T); NaN where there is none."""
        metric = METRICS[name]
        values_GT = self.shaped(metric.values(self.table)).astype(np.float32)
        if metric.is_rank:
            values_GT[values_GT < 1] = np.nan
        return values_GT

    def at(self, pos: int) -> "LensGrid":
        """Return the one column of a position."""
        records = self.table.select(self.table.pos == pos)
        return LensGrid(self.sample, self.stream, self.layers, (pos,), records)


def grid_of(
    table: LensTable, *, sample: int, stream: str = "resid", most_positions: int | None = None
) -> LensGrid:
    """Take one text and stream out of a table.

    Args:
        table: records; those wanted are the same positions at each layer.
        sample: number of the text.
        stream: one of `STREAMS`.
        most_positions: keep the last so many; None for all.
    """
    records = table.select(table.sample == sample).of_stream(stream).ordered()
    positions = np.unique(records.pos)
    if most_positions is not None and len(positions) > most_positions:
        positions = positions[-most_positions:]
        records = records.select(np.isin(records.pos, positions))
    layers = np.unique(records.layer)
    assert len(records), f"no records of sample {sample} in stream {stream}"
    assert len(records) == len(layers) * len(positions), "layers with other positions than others"
    return LensGrid(sample, stream, tuple(layers.tolist()), tuple(positions.tolist()), records)


def followed(grid: LensGrid, token: int) -> NDArray[np.float32]:
    """Return a token's probability (G, T), NaN where it is not among the listed top k."""
    ids_GTk = grid.shaped(grid.table.top_ids)
    p_GTk = grid.shaped(grid.table.top_p).astype(np.float32)
    found_GTk = ids_GTk == token
    listed_GT: NDArray[np.float32] = np.where(
        found_GTk.any(-1), (p_GTk * found_GTk).sum(-1), np.float32(np.nan)
    )
    return listed_GT


def at_end(table: LensTable) -> NDArray[np.bool_]:
    """Whether each record (R,) is at the last recorded position of its text."""
    samples, which_R = np.unique(table.sample, return_inverse=True)
    last_B = np.full(len(samples), -1, dtype=np.int64)
    np.maximum.at(last_B, which_R, table.pos)
    is_last_R: NDArray[np.bool_] = table.pos == last_B[which_R]
    return is_last_R
