"""The strongest pairs of a query: ours, and every pair at every key held in memory.

Factors are random in the shape of trained ones: few components are strong (their lengths are
log-normal), each activation is. 6 heads, width 128, 512 components a side, 20 pairs wanted.

`materialise` is the plain way, with numbers of its own in numpy: for each head and offset the
rotated product of all pairs, plane by plane, scaled by all activations into one array of heads x
512 x 512 x keys, then the maximum of its magnitude. `stream` and `bound` are ours (see
`actcli.analysis.qk_search`), from sides that are cut already, as it is. Every arm is a process of
its own, on one thread, that reports its time and how far its memory rose. Last comes the time at
512 keys over that at 128: 4 would be linear.

    python -m tests.bench.bench_qk_contrib [--quick] [--rounds R]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.bench.measure import (
    alternate,
    forget_peak,
    held_mib,
    median,
    peak_mib,
    print_table,
    spread,
)

HEADS, WIDTH, COMPONENTS, WANTED = 6, 128, 512, 20
KEYS = (24, 128, 512)
MATERIALISED_KEYS = 24


def main() -> None:
    """Measure, and print the table."""
    options = _parse()
    if options.arm:
        _run_arm(options.arm, options.keys)
        return
    arms = [("materialise", MATERIALISED_KEYS)]
    arms += [(way, keys) for keys in KEYS for way in ("stream", "bound")]
    runs = alternate(
        {f"{way}, {keys} keys": _command(way, keys) for way, keys in arms}, rounds=options.rounds
    )
    said = {name: [json.loads(each.stdout) for each in runs[name]] for name in runs}
    plain = said[f"materialise, {MATERIALISED_KEYS} keys"]
    for (way, keys), found in zip(arms, said.values(), strict=True):
        if keys == MATERIALISED_KEYS and found[0]["pairs"] != plain[0]["pairs"]:
            sys.exit(f"{way} found other pairs than the plain way")
    rows = []
    for (way, keys), found in zip(arms, said.values(), strict=True):
        times = [each["elapsed_s"] for each in found]
        ratios = [base["elapsed_s"] / each for base, each in zip(plain, times, strict=True)]
        rows.append(
            [
                way,
                str(keys),
                f"{1000 * median(times):,.1f}",
                spread(ratios, 0) if keys == MATERIALISED_KEYS else "",
                f"{median([each['added_mib'] for each in found]):,.0f}",
            ]
        )
    title = f"strongest pairs, {HEADS} heads, {COMPONENTS} x {COMPONENTS} components"
    print_table(title, ["way", "keys", "ms", "times faster than materialise", "added MiB"], rows)
    for way in ("stream", "bound"):
        long, short = (said[f"{way}, {keys} keys"] for keys in (512, 128))
        ratios = [a["elapsed_s"] / b["elapsed_s"] for a, b in zip(long, short, strict=True)]
        print(f"\n{way}: 512 keys take {spread(ratios)} times 128 keys (4 is linear)")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--arm", choices=("materialise", "stream", "bound"), help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=int, default=MATERIALISED_KEYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _command(way: str, keys: int) -> list[str]:
    module = "tests.bench.bench_qk_contrib"
    return [sys.executable, "-m", module, "--arm", way, "--keys", str(keys)]


def _run_arm(way: str, n_keys: int) -> None:
    torch.set_num_threads(1)  # numpy's sums have no more, and others' work disturbs less
    data = _Data(n_keys)
    find = {"materialise": data.materialised, "stream": data.streamed, "bound": data.bounded}[way]
    if way != "materialise":
        _Data(3).bounded()  # loads what loads once
        _Data(3).streamed()
    forget_peak()
    held = held_mib()
    repeats, pairs = (5 if way == "bound" else 1), []
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        pairs = find()
        times.append(time.perf_counter() - began)
    added = peak_mib() - held
    print(json.dumps({"elapsed_s": median(times), "added_mib": added, "pairs": pairs}))


class _Data:
    """Both sides, and the three ways."""

    def __init__(self, n_keys: int) -> None:
        rng = np.random.default_rng(0)

        def strong(*shape: int) -> np.ndarray:
            lengths = np.exp(rng.standard_normal((1, COMPONENTS, 1)))
            return (rng.standard_normal(shape) * lengths).astype(np.float32)

        self.q_ACD = strong(HEADS, COMPONENTS, WIDTH)
        self.k_ACD = strong(HEADS, COMPONENTS, WIDTH)
        heavy_PC = rng.standard_t(3, (512, COMPONENTS)).astype(np.float32)
        self.acts_PC = heavy_PC[:n_keys]
        angles_PR = np.arange(n_keys)[:, None] * 10_000.0 ** (-np.arange(64) / 64)
        self.cos_PR, self.sin_PR = (f(angles_PR).astype(np.float32) for f in (np.cos, np.sin))

    def materialised(self) -> list[list[int]]:
        """Every pair at every key."""
        half, n_keys = WIDTH // 2, len(self.acts_PC)
        shape = (HEADS, COMPONENTS, COMPONENTS, n_keys)
        all_ACCP = np.empty(shape, np.float32)
        for head in range(HEADS):
            q1, q2 = self.q_ACD[head, :, :half], self.q_ACD[head, :, half:]
            k1, k2 = self.k_ACD[head, :, :half], self.k_ACD[head, :, half:]
            even = q1[:, None] * k1 + q2[:, None] * k2
            odd = q2[:, None] * k1 - q1[:, None] * k2
            for key in range(n_keys):
                turned = (even * self.cos_PR[key] + odd * self.sin_PR[key]).sum(axis=-1)
                all_ACCP[head, :, :, key] = turned
        all_ACCP = all_ACCP * self.acts_PC.T
        peaks = np.abs(all_ACCP).max(axis=(0, 3)).ravel()
        order = np.argsort(-peaks, kind="stable")[:WANTED]
        return np.stack(np.divmod(order, COMPONENTS), axis=1).tolist()

    def bounded(self) -> list[list[int]]:
        """Ours, as it is."""
        from actcli.analysis.qk_ranking import Ranking
        from actcli.analysis.qk_search import find_top

        best = find_top(self._grid(), Ranking(), n=WANTED)
        assert best.method == "bound"
        return _pairs(best.index_N)

    def streamed(self) -> list[list[int]]:
        """Ours, where bounds say nothing."""
        from actcli.analysis import qk_search
        from actcli.analysis.qk_ranking import Ranking

        qk_search._ALL_PAIRS, kept = -1, qk_search._ALL_PAIRS
        qk_search._FIRST, first = COMPONENTS**2, qk_search._FIRST
        best = qk_search.find_top(self._grid(), Ranking(), n=WANTED)
        qk_search._ALL_PAIRS, qk_search._FIRST = kept, first
        assert best.method == "stream"
        return _pairs(best.index_N)

    def _grid(self) -> object:
        from actcli.analysis.qk_grid import Grid
        from actcli.analysis.qk_rotation import Rotation

        tables: Callable[[np.ndarray], Tensor] = torch.from_numpy
        return Grid(
            q_ACD=tables(self.q_ACD),
            k_KCD=tables(self.k_ACD),
            strength_PC=tables(self.acts_PC),
            ratio_PK=torch.ones(len(self.acts_PC), HEADS),
            rotation=Rotation(torch.arange(WIDTH), tables(self.cos_PR), tables(self.sin_PR)),
            kv_heads=tuple(range(HEADS)),
        )


def _pairs(index_N: Tensor) -> list[list[int]]:
    return torch.stack([index_N // COMPONENTS, index_N % COMPONENTS], dim=1).tolist()


if __name__ == "__main__":
    main()
