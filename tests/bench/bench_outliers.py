"""`actcli outliers` against one plain read of the same bytes, and against the in-memory way.

The dump is `attn_norm` (4096, 12, 16, 512) in float32, 1.5 GiB, of random numbers with some wide
dimensions; about 0.6 % of its elements are outliers at the threshold 6. Every arm is a whole
process, start-up included; arms take turns, with the file in the page cache, and once more with the
file out of it. The in-memory way is
the existing 2048former script's: load everything with torch, build masks, one statistic after the
other.

    python -m tests.bench.bench_outliers [--quick] [--samples N] [--rounds R] [--folder DIR]
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from actcli.store.header import TensorInfo
from actcli.store.writer import DumpWriter
from tests.bench.measure import MIB, Run, alternate, median, print_table, spread

SHAPE_LTH = (12, 16, 512)
N_WIDE = 12
CHUNK = 64

PLAIN_READ = """
import sys, numpy
path, offset = sys.argv[1], int(sys.argv[2])
print(numpy.memmap(path, numpy.float32, "r", offset).sum())
"""

IN_MEMORY = """
import sys, torch
from safetensors import safe_open

def quartiles(values):
    return torch.quantile(values, torch.tensor([0.25, 0.5, 0.75])).tolist()

threshold = float(sys.argv[2])
with safe_open(sys.argv[1], framework="pt") as file:
    acts = file.get_tensor("attn_norm")
generator = torch.Generator().manual_seed(0)
drawn = torch.randint(0, acts.numel(), (2_000_000,), generator=generator)
print(quartiles(acts.reshape(-1)[drawn]))
hits = (acts > threshold) | (acts < -threshold)
share = hits.float().mean(dim=1)
kept = hits & (share >= 0.25).unsqueeze(1)
print(int(hits.sum()), int(kept.sum()), share[share >= 0.25].mean().item())
for dims in ((0, 1, 2), (0, 2, 3), (0, 1, 3)):
    print(kept.sum(dim=dims).tolist())
for signed in (kept & (acts > threshold), kept & (acts < -threshold)):
    print(signed.sum(dim=(0, 1, 2)).tolist())
first = kept.to(torch.uint8).argmax(dim=1)[kept.any(dim=1)]
print(torch.bincount(first, minlength=acts.shape[1]).tolist())
magnitudes = acts[kept].abs()
if len(magnitudes) > 16_000_000:  # torch.quantile takes no more
    magnitudes = magnitudes[torch.randint(0, len(magnitudes), (1_000_000,), generator=generator)]
print(magnitudes.min().item(), quartiles(magnitudes), magnitudes.max().item())
"""


def main() -> None:
    """Measure, and print the tables."""
    options = _parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "activations.safetensors"
        offset = _write_dump(path, options.samples)
        for threshold, note in ((6.0, "few outliers"), (1.0, "a third are outliers")):
            _compare(path, offset, threshold, note, options.rounds)
        _compare_cold(path, offset, options.rounds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--folder", help="where to write the dump, which takes 384 KiB a sample")
    options = parser.parse_args()
    options.samples = options.samples or (512 if options.quick else 4096)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def _write_dump(path: Path, n_samples: int) -> int:
    """Write the dump; return where its data begin."""
    rng = np.random.default_rng(0)
    scale_H = np.ones(SHAPE_LTH[-1], np.float32)
    scale_H[rng.choice(scale_H.size, N_WIDE, replace=False)] = np.linspace(3, 9, N_WIDE)
    info = TensorInfo("F32", (n_samples, *SHAPE_LTH))
    with DumpWriter(path, {"attn_norm": info}) as writer:
        for start in range(0, n_samples, CHUNK):
            shape = (min(CHUNK, n_samples - start), *SHAPE_LTH)
            rows = rng.standard_normal(shape, dtype=np.float32) * scale_H
            writer.write_rows("attn_norm", start, memoryview(rows))
        writer.commit({})
    return path.stat().st_size - info.nbytes


def _compare(path: Path, offset: int, threshold: float, note: str, rounds: int) -> None:
    arms = _arms(path, offset, threshold)
    arms["in-memory way"] = [sys.executable, "-c", IN_MEMORY, str(path), str(threshold)]
    runs = alternate(arms, rounds=rounds)
    found = json.loads(runs["actcli outliers"][0].stdout)
    size = (path.stat().st_size - offset) / MIB
    title = (
        f"outliers in {size:,.0f} MiB, threshold {threshold:g}: {note} "
        f"({found['outlier_occurrences']:,}), {rounds} rounds"
    )
    _print(title, runs)
    ours, theirs = ([each.wall_s for each in runs[name]] for name in list(runs)[1:])
    speedups = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(f"\nin-memory way / actcli outliers: {spread(speedups)}")


def _compare_cold(path: Path, offset: int, rounds: int) -> None:
    """The same with the file out of the page cache, as a file larger than memory is."""

    def evict() -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    runs = alternate(_arms(path, offset, 6.0), rounds=rounds, before=evict)
    _print(f"outliers, threshold 6, the file not in the page cache, {rounds} rounds", runs)


def _arms(path: Path, offset: int, threshold: float) -> dict[str, list[str]]:
    python = sys.executable
    return {
        "plain read (numpy.memmap sum)": [python, "-c", PLAIN_READ, str(path), str(offset)],
        "actcli outliers": [
            *(python, "-m", "actcli", "outliers", "--input", str(path), "--json"),
            *("--threshold", str(threshold)),
        ],
    }


def _print(title: str, runs: dict[str, list[Run]]) -> None:
    baseline = next(iter(runs.values()))
    rows = [_row(name, each, baseline) for name, each in runs.items()]
    print_table(title, ["way", "wall s", "times plain read", "CPU s", "peak MiB"], rows)


def _row(name: str, runs: list[Run], baseline: list[Run]) -> list[str]:
    ratios = [each.wall_s / base.wall_s for each, base in zip(runs, baseline, strict=True)]
    return [
        name,
        spread([each.wall_s for each in runs]),
        spread(ratios),
        f"{median([each.cpu_s for each in runs]):.2f}",
        f"{median([each.peak_mib for each in runs]):,.0f}",
    ]


if __name__ == "__main__":
    main()
