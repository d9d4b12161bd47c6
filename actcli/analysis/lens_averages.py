"""Means of the lens over all records, layer by layer, from one pass in constant memory.

Tensor legend: R records.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actcli.reports.lens_table import STREAMS, LensTable, place_name
from actcli.reports.logit_lens import LayerReport, MeanReport

_MEANS = (
    "entropy_bits",
    "kl_to_final_bits",
    "kl_from_final_bits",
    "js_bits",
    "nll_target_bits",
    "p_target",
)


@dataclass
class _Moments:
    """Count, mean and sum of squared differences from it; merged by Chan, Golub, LeVeque (1979)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values_R: NDArray[np.float32]) -> None:
        there = values_R[~np.isnan(values_R)].astype(np.float64)
        if not len(there):
            return
        n, mean = len(there), float(there.mean())
        apart, total = mean - self.mean, self.n + n
        between = apart * apart * self.n * n / total
        self.squares += float(((there - mean) ** 2).sum()) + between
        self.mean += apart * n / total
        self.n = total

    def report(self) -> MeanReport | None:
        """The mean, and its standard error s / sqrt(n), s^2 = squares / (n - 1)."""
        if not self.n:
            return None
        error = (self.squares / (self.n - 1) / self.n) ** 0.5 if self.n > 1 else None
        return MeanReport(mean=self.mean, standard_error=error, n=self.n)


@dataclass
class _Place:
    """What is known of one stream and layer."""

    moments: dict[str, _Moments] = field(
        default_factory=lambda: {name: _Moments() for name in _MEANS}
    )
    n: int = 0
    n_agree: int = 0
    n_ranked: int = 0
    n_first: int = 0

    def add(self, records: LensTable) -> None:
        for name, moments in self.moments.items():
            moments.add(getattr(records, name))
        self.n += len(records)
        self.n_agree += int(records.top1_agree.sum())
        self.n_ranked += int((records.rank_target > 0).sum())
        self.n_first += int((records.rank_target == 1).sum())


class LayerAverages:
    """Takes records, batch by batch."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], _Place] = {}

    def add(self, table: LensTable) -> None:
        """Count the records of a table; those without a number take no part in its mean."""
        keys = np.unique(np.stack([table.stream, table.layer], axis=1).astype(np.int64), axis=0)
        for stream, layer in keys.tolist():
            records = table.select((table.stream == stream) & (table.layer == layer))
            self._places.setdefault((stream, layer), _Place()).add(records)

    def report(self) -> tuple[LayerReport, ...]:
        """The means so far, by stream and layer."""
        return tuple(
            LayerReport(
                stream=STREAMS[stream],
                layer=layer,
                place=place_name(STREAMS[stream], layer),
                n_records=place.n,
                rank_1_share=place.n_first / place.n_ranked if place.n_ranked else None,
                top1_agree_share=place.n_agree / place.n,
                **{name: moments.report() for name, moments in place.moments.items()},
            )
            for (stream, layer), place in sorted(self._places.items())
        )
