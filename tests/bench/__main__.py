"""`make bench`: every benchmark that this machine can run, one after the other.

python -m tests.bench [--quick] [--gpu]
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ON_CPU = (
    "bench_startup",
    "bench_outliers",
    "bench_dump",
    "bench_attn_plot",
    "bench_logit_lens",
    "bench_qk_contrib",
    "bench_sae_eval",
    "bench_sae_absorption",
)
RAM_DISK = Path("/dev/shm")


def main() -> None:
    """Run the benchmarks, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller data")
    parser.add_argument("--gpu", action="store_true", help="dump on CUDA, to a RAM disk")
    options = parser.parse_args()
    quick = ["--quick"] if options.quick else []
    if options.gpu:
        _run("bench_dump", *quick, *_on_gpu())
        return
    for name in ON_CPU:
        _run(name, *quick)


def _on_gpu() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        sys.exit("no NVIDIA driver here (nvidia-smi is missing): run this on a machine with a GPU")
    folder = ["--folder", str(RAM_DISK)] if RAM_DISK.is_dir() else []
    return ["--device", "cuda", "--batch-size", "1024", "--samples", "8192", *folder]


def _run(name: str, *options: str) -> None:
    subprocess.run([sys.executable, "-m", f"tests.bench.{name}", *options], check=True)


if __name__ == "__main__":
    main()
