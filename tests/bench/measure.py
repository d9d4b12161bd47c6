"""Measure commands as whole processes, alternating, and print ratios of medians.

Machines are noisy and drift: only figures taken in turn, in one run, are compared.
"""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter

MIB = 1 << 20
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@dataclass(frozen=True)
class Run:
    """One finished process."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    stdout: str


def run(command: Sequence[str], **env: str) -> Run:
    """Run a command to its end; its time and memory are the operating system's own accounting.

    On Linux the peak of a child is never less than what this process held when it started it.

    Raises:
        SystemExit: the command failed; what it said is shown.
    """
    began = perf_counter()
    # Compiled modules are kept on users' machines, so they are here.
    inherited = {key: each for key, each in os.environ.items() if key != _NO_BYTECODE}
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=inherited | env)
        _pid, status, usage = os.wait4(process.pid, 0)
        wall = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed ({process.returncode}):\n{stderr.read()}")
        said = stdout.read()
    peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else MIB)
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, said)


def alternate(
    arms: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    before: Callable[[], None] = lambda: None,
    warm_up: bool = True,
) -> dict[str, list[Run]]:
    """Run each arm once a round, in turn; one round before that warms caches and is not kept.

    `before` is called before each run; arms that warm up by themselves do without that round.
    """
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for number in range(rounds + warm_up):
        for name, command in arms.items():
            before()
            finished = run(command)
            if number >= warm_up:
                runs[name].append(finished)
    return runs


def held_mib() -> float:
    """Memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def forget_peak() -> None:
    """Let `peak_mib` count from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most that this process has held since `forget_peak` (Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(each for each in status.splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the smallest and largest value."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print as a Markdown table, ready for docs/benchmarks.md."""
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
