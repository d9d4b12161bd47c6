"""Pairs of decoder rows that point the same way: ours, and a full product of all rows.

18,432 rows of width 2,304, float32, with 60 planted pairs, 50 at a cosine of +0.96 and 10 at
-0.96; `--spread` gives the coordinates unequal sizes and the rows a common direction, so that
cosines lie closer together than those of random rows. Each arm is a process of its own, on one
thread; after the same rows are made, it reports its time and how far its memory rose, and, in the
same process just before, the time of the D x D x d product in float32 (in strips, so that it needs
no memory) that the ratio is taken to.

`pruned` is ours as it is, `pruned, float32` and `all products, ...` the ways that it takes on
other machines and for other thresholds, `nearest` the largest cosine of each row.

    python -m tests.bench.bench_sae_absorption [--quick] [--rounds R] [--spread]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

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

FEATURES, WIDTH = 18_432, 2_304
PLANTED, OPPOSITE = 60, 10
STRIP = 1024
ARMS = (
    "pruned",
    "pruned, float32",
    "all products, bfloat16",
    "all products, float32",
    "nearest",
    "nearest, float32",
)


def main() -> None:
    """Measure, and print the table."""
    options = _parse()
    if options.arm:
        _run_arm(options.arm, options.features, is_spread=options.spread)
        return
    arms = ARMS[:1] if options.quick else ARMS
    runs = alternate(
        {name: _command(name, options) for name in arms}, rounds=options.rounds, warm_up=False
    )
    rows = []
    for name in arms:
        said = [json.loads(each.stdout) for each in runs[name]]
        if any(each["found"] not in (None, [PLANTED, PLANTED - OPPOSITE]) for each in said):
            sys.exit(f"{name} found {said[0]['found']} pairs, {PLANTED} were planted")
        rows.append(
            [
                name,
                f"{median([each['elapsed_s'] for each in said]):.2f}",
                spread([each["elapsed_s"] / each["product_s"] for each in said], 3),
                f"{median([each['added_mib'] for each in said]):,.0f}",
                "-" if said[0]["found"] is None else str(said[0]["found"][0]),
            ]
        )
    kind = "unequal, correlated" if options.spread else "random"
    title = f"decoder redundancy, {options.features:,} {kind} rows of {WIDTH:,}"
    print_table(title, ["way", "s", "of one full product", "added MiB", "planted found"], rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a sixth of the rows, one round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--spread", action="store_true", help="unequal, correlated rows")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--features", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.features = options.features or (FEATURES // 6 if options.quick else FEATURES)
    return options


def _command(name: str, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "tests.bench.bench_sae_absorption", "--arm", name]
    command += ["--features", str(options.features)]
    return command + (["--spread"] if options.spread else [])


def _run_arm(name: str, n: int, *, is_spread: bool) -> None:
    torch.set_num_threads(1)  # others' work disturbs less
    W_DO = _rows(n, is_spread=is_spread)
    find = _ways(W_DO)[name]
    _ways(_rows(2 * PLANTED, is_spread=False))[name]()  # loads what loads once
    strip = torch.empty(STRIP, n)
    began = time.perf_counter()
    for start in range(0, n, STRIP):
        rows = W_DO[start : start + STRIP]
        torch.mm(rows, W_DO.T, out=strip[: len(rows)])
    product = time.perf_counter() - began
    del strip
    forget_peak()
    held = held_mib()
    began = time.perf_counter()
    found = find()
    elapsed = time.perf_counter() - began
    added = peak_mib() - held
    said = {"elapsed_s": elapsed, "product_s": product, "added_mib": added, "found": found}
    print(json.dumps(said))


def _ways(W_DO: Tensor) -> dict[str, Callable[[], list[int] | None]]:
    from actcli.analysis.sae_cosine_maxima import row_maxima
    from actcli.analysis.sae_cosine_rows import Directions
    from actcli.analysis.sae_cosines import decoder_redundancy

    def pairs(dtype: torch.dtype | None = None, pruned: int | None = None) -> list[int]:
        report = decoder_redundancy(W_DO, dtype=dtype, pruned=pruned).report
        return [report.unordered_pairs, report.unordered_pairs_positive]

    def nearest(dtype: torch.dtype | None = None) -> None:
        row_maxima(Directions(W_DO), dtype=dtype)

    return {
        "pruned": pairs,
        "pruned, float32": lambda: pairs(torch.float32),
        "all products, bfloat16": lambda: pairs(torch.bfloat16, 0),
        "all products, float32": lambda: pairs(torch.float32, 0),
        "nearest": nearest,
        "nearest, float32": lambda: nearest(torch.float32),
    }


def _rows(n: int, *, is_spread: bool) -> Tensor:
    """Random rows of random lengths; the last ones are planted beside the first."""
    made = torch.Generator().manual_seed(0)
    W_DO = torch.randn(n, WIDTH, generator=made)
    if is_spread:
        W_DO += 0.5 * torch.randn(WIDTH, generator=made)
        W_DO *= torch.randn(WIDTH, generator=made).exp_()
    for number in range(PLANTED):
        row_O = W_DO[number] / W_DO[number].norm()
        other_O = torch.randn(WIDTH, generator=made)
        other_O -= (other_O @ row_O) * row_O
        cosine = -0.96 if number < OPPOSITE else 0.96
        W_DO[n - 1 - number] = cosine * row_O + (1 - cosine**2) ** 0.5 * other_O / other_O.norm()
    return W_DO.mul_(torch.rand(n, 1, generator=made).add_(0.1))


if __name__ == "__main__":
    main()
