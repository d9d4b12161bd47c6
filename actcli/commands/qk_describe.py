"""What `qk-contrib` says of a query it has read, in numbers of the report.

Tensor legend: A query heads, N pairs, P keys.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actcli.analysis.qk_table import QkTable
    from actcli.commands.qk_setup import ReadQuery
    from actcli.reports.qk import QkPairReport, QkPairs, QkReadingReport, QkTableRow

TextOf = Callable[[int], str]


def describe_reading(read: "ReadQuery", text_of: TextOf) -> "QkReadingReport":
    """Return the report of one query."""
    import numpy as np

    from actcli.reports.qk import QkReadingReport

    pairs, ids_T = read
    split = pairs.residual or {}
    missed = None if pairs.ground_truth is None else np.abs(pairs.sum - pairs.ground_truth).max()
    return QkReadingReport(
        layer=pairs.layer,
        sample=pairs.sample,
        query=pairs.query,
        token=text_of(int(ids_T[pairs.query])),
        n_keys=len(pairs.keys_P),
        method=pairs.method,
        ledger_gap=pairs.ledger_gap,
        tolerance=pairs.tolerance,
        largest_residual=None if missed is None else float(missed),
        split_mean_abs={kinds: float(np.abs(each).mean()) for kinds, each in split.items()},
        pairs=tuple(_pair(read, n, text_of) for n in range(len(pairs.top_pairs))),
    )


def describe_table(table: "QkTable", text_of: TextOf) -> "tuple[QkTableRow, ...]":
    """Return the pairs over all queries, with the texts of their commonest keys."""
    return tuple(
        row
        if row.peak_token_id is None
        else row.model_copy(update={"peak_token": text_of(row.peak_token_id)})
        for row in table.rows()
    )


def _pair(read: "ReadQuery", n: int, text_of: TextOf) -> "QkPairReport":
    from actcli.reports.qk import QkPairReport

    pairs, ids_T = read
    q, k = pairs.names(n)
    key = int(pairs.peak_key[n])
    return QkPairReport(
        place=n + 1,
        q=q,
        k=k,
        score=float(pairs.score[n]),
        peak=float(pairs.peak[n]),
        peak_head=int(pairs.peak_head[n]),
        peak_key=key,
        peak_token=text_of(int(ids_T[key])),
        centered_peak=float(pairs.centered_peak[n]),
        mean=float(pairs.top_contrib[:, n].mean(dtype="float64")),
        q_act=_known(pairs.q_act, n),
        k_act=_known(pairs.k_act, n),
        q_ci=_known(pairs.q_ci, n),
        k_ci=_known(pairs.k_ci, n),
        visible_heads=tuple(pairs.visible[:, n].nonzero()[0].tolist()),
        **_change(pairs, n),
    )


def _known(values_N: "NDArray[np.float32] | None", n: int) -> float | None:
    value = math.nan if values_N is None else float(values_N[n])
    return None if math.isnan(value) else value


def _change(pairs: "QkPairs", n: int) -> dict[str, Any]:
    """The largest change of attention without the pair, and where it is."""
    if pairs.d_attn is None:
        return {}
    change_AP = pairs.d_attn[:, n]
    head, place = divmod(int(abs(change_AP).argmax()), change_AP.shape[1])
    return {
        "d_attn": float(change_AP[head, place]),
        "d_attn_head": head,
        "d_attn_key": int(pairs.keys_P[place]),
    }
