"""How much of what a lens shows is the final norm's doing: the lens with it against that without.

Tensor legend: L compared layers, B texts, H hidden.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from actcli.analysis.lens_statistics import LensKernel
from actcli.reports.logit_lens import RawNormCheck, RawNormReport

_MEDIUM_BITS, _HIGH_BITS = 0.5, 1.0


def check_layers(n_layers: int) -> tuple[int, ...]:
    """The layers at which norm and raw lens are compared: 0, 1/4, 1/2 and 3/4 of the way."""
    return tuple(sorted({part * n_layers // 4 for part in range(4)}))


def compare_raw_with_norm(
    kernel: LensKernel, states: Mapping[int, Tensor], targets_B: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Compare the lens with the final norm and without.

    Args:
        kernel: with the columns kl_to_final_bits and rank_target.
        states: by layer, the residual stream (B, H) of each text at its last position.
        targets_B: token ids that are followed; -1 for none.

    Returns:
        By layer and text: KL(P with norm || P without) in bits (L, B), and the ranks of the targets
        with the norm and without (2, L, B).
    """
    kls, ranks = [], []
    for state_BH in states.values():
        read = kernel.read(
            state_BH,
            [state_BH, state_BH],
            targets_R=targets_B,
            decode=[None, _raw],
            decode_final=_raw,
        )
        kls.append(read["kl_to_final_bits"][0])
        ranks.append(read["rank_target"])
    return np.stack(kls), np.stack(ranks, axis=1)


def judge_raw_with_norm(
    layers: tuple[int, ...], kl_LB: NDArray[np.float32], ranks_2LB: NDArray[np.int32]
) -> RawNormCheck:
    """Say how much of what is seen may be the norm's doing; thresholds as in `RawNormCheck`."""
    norm_only_LB = (ranks_2LB[0] == 1) & (ranks_2LB[1] > 1)
    raw_only_LB = (ranks_2LB[1] == 1) & (ranks_2LB[0] > 1)
    most = float(kl_LB.max(initial=0.0))
    high = most >= _HIGH_BITS or bool((norm_only_LB | raw_only_LB).any())
    return RawNormCheck(
        risk="high" if high else "medium" if most >= _MEDIUM_BITS else "low",
        layers=tuple(
            RawNormReport(
                layer=layer,
                mean_kl_bits=float(kl_B.mean(dtype=np.float64)),
                max_kl_bits=float(kl_B.max()),
                norm_only_rank_1=int(norm_B.sum()),
                raw_only_rank_1=int(raw_B.sum()),
            )
            for layer, kl_B, norm_B, raw_B in zip(
                layers, kl_LB, norm_only_LB, raw_only_LB, strict=True
            )
        ),
    )


def _raw(state_BH: Tensor) -> Tensor:
    return state_BH.float()
