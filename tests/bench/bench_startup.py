"""`actcli --help` and one completion request, against an empty Python process.

python -m tests.bench.bench_startup [--quick]
"""

import argparse
import os
import sys
from pathlib import Path

from tests.bench.measure import alternate, median, print_table, spread

ACTCLI = str(Path(sys.executable).parent / "actcli")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    os.environ |= {"COMP_WORDS": "actcli dump --outputs attn_norm,", "COMP_CWORD": "3"}
    complete = "import os; os.environ['_ACTCLI_COMPLETE'] = 'complete_bash'"
    arms = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "actcli --version": [ACTCLI, "--version"],
        "actcli --help": [ACTCLI, "--help"],
        "actcli dump --help": [ACTCLI, "dump", "--help"],
        "one completion request": [
            sys.executable,
            "-c",
            f"{complete}; from actcli.cli import app; app(prog_name='actcli')",
        ],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    runs = alternate(arms, rounds=3 if options.quick else 11)
    base = [each.wall_s for each in runs["python -c pass"]]
    rows = []
    for name, finished in runs.items():
        walls = [each.wall_s for each in finished]
        ratio = median([wall / b for wall, b in zip(walls, base, strict=True)])
        rows.append([f"`{name}`", spread([1000 * wall for wall in walls], 0), f"{ratio:.1f}"])
    print_table("start-up, whole process", ["command", "wall ms", "ratio to empty Python"], rows)


if __name__ == "__main__":
    main()
