"""A pass over the tokens of a sparse dictionary, against its encoder product alone.

The dictionary has 2304 x 18,432 random weights and one threshold, at which 96 features fire on
average; x is normal, the target is another normal vector. `product` is x @ W_enc in float32, in
chunks of the same size, into one buffer; `ours` is `DictionaryPass`: encode, decode, all sums;
`ours, float32` the same without the product in bfloat16. Every arm is a process of its own that
reports the time of its loop after one chunk to warm up; arms take turns. Memory is the process's
peak above what it held with weights and data loaded.

    python -m tests.bench.bench_sae_eval [--quick] [--tokens N] [--rounds R] [--threads T]
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.bench.measure import alternate, held_mib, median, print_table, spread

D_IN, N_FEATURES, L0 = 2304, 18_432, 96
ARMS = ("product", "ours", "ours, float32")
BATCH, SAMPLE = 8192, 64

Read = Callable[[Tensor, Tensor], Any]
Finish = Callable[[], dict[str, float | None]]


def main() -> None:
    """Measure, and print the table."""
    options = _parse()
    if options.arm:
        _run_arm(options)
        return
    commands = {arm: _command(options, arm) for arm in ARMS}
    runs = alternate(commands, rounds=options.rounds, warm_up=False)
    said = {arm: [json.loads(each.stdout) for each in runs[arm]] for arm in ARMS}
    rows = []
    for arm, each in said.items():
        rate = options.tokens / median([finished["elapsed_s"] for finished in each])
        ratios = [_ratios(each, said["product"], clock) for clock in ("elapsed_s", "cpu_s")]
        added = median([finished["added_mib"] for finished in each])
        figures = " ".join(f"{key} {value:.6f}" for key, value in each[0]["said"].items())
        rows.append([arm, f"{rate:,.0f}", *ratios, f"{added:,.0f}", figures])
    title = (
        f"sae-eval, {options.tokens:,} tokens, {D_IN} x {N_FEATURES:,}, {options.threads} threads,"
        f" {options.rounds} rounds"
    )
    head = ["way", "tokens/s", "time to product's", "processor time", "added MiB", "found"]
    print_table(title, head, rows)


def _ratios(own: Sequence[Any], limit: Sequence[Any], clock: str) -> str:
    return spread([each[clock] / base[clock] for each, base in zip(own, limit, strict=True)], 3)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tokens = options.tokens or (4096 if options.quick else 65_536)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _command(options: argparse.Namespace, arm: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.bench.bench_sae_eval", "--arm", arm),
        *("--tokens", str(options.tokens), "--threads", str(options.threads)),
    ]


def _run_arm(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    W_ID = torch.randn(D_IN, N_FEATURES).div_(D_IN**0.5)
    W_DO = torch.randn(N_FEATURES, D_IN).div_(D_IN**0.5)
    x_NI, y_NO = torch.randn(options.tokens, D_IN), torch.randn(options.tokens, D_IN)
    loaded = held_mib()
    read, finish = (
        _product(W_ID)
        if options.arm == "product"
        else _own(W_ID, W_DO, is_exact=options.arm == "ours, float32")
    )
    read(x_NI[:2048], y_NO[:2048])
    began, began_cpu = time.perf_counter(), time.process_time()
    for first in range(0, options.tokens, BATCH):
        read(x_NI[first : first + BATCH], y_NO[first : first + BATCH])
    said = finish()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - loaded
    print(json.dumps({"elapsed_s": elapsed, "cpu_s": cpu, "added_mib": added, "said": said}))


def _product(W_ID: Tensor) -> tuple[Read, Finish]:
    from actcli.saes.encoder import BUFFER_BYTES

    room_ND = torch.empty(BUFFER_BYTES // (4 * N_FEATURES), N_FEATURES)

    def read(x_NI: Tensor, _y_NO: Tensor) -> None:
        for first in range(0, len(x_NI), len(room_ND)):
            chunk_NI = x_NI[first : first + len(room_ND)]
            torch.mm(chunk_NI, W_ID, out=room_ND[: len(chunk_NI)])

    return read, dict


def _own(W_ID: Tensor, W_DO: Tensor, *, is_exact: bool) -> tuple[Read, Finish]:
    import numpy as np

    from actcli.analysis.sae_pass import Candidate, DictionaryPass
    from actcli.saes import encoder
    from actcli.saes.activations import Threshold
    from actcli.saes.dictionary import Dictionary, Origin

    if is_exact:
        mock.patch.object(encoder, "is_worth_while", return_value=False).start()
    share = torch.tensor(1 - L0 / N_FEATURES, dtype=torch.float64)
    threshold = torch.special.ndtri(share).float()
    zeros = torch.zeros
    dictionary = Dictionary(
        Origin("random", Path(), "none", "jumprelu", "float32"),
        *(W_ID, zeros(N_FEATURES), W_DO, zeros(D_IN), Threshold(threshold)),
    )
    own = DictionaryPass([Candidate(dictionary, "x", "y")], keep_acts=False)
    seen = 0

    def read(x_NI: Tensor, y_NO: Tensor) -> None:
        nonlocal seen
        samples_N = (seen + np.arange(len(x_NI))) // SAMPLE
        seen += len(x_NI)
        own.add({"x": x_NI, "y": y_NO}, samples_N)

    def finish() -> dict[str, float | None]:
        result = own.results()[0]
        return {"mean_l0": result.sparsity.mean_l0, "fvu": result.reconstruction.fvu}

    return read, finish


if __name__ == "__main__":
    main()
