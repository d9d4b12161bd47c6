"""`actcli attn-plot` against the existing program's way of drawing heads.

The dump is of a 12-layer, 8-head encoder with random weights and holds `attn_weights`; both arms
write all heads of all layers of two boards as PNG files, in processes of their own, in turn. The
existing way makes a figure of its own for each head (`plt.subplots`, `imshow`, colour bar, tick
labels, board text, 160 dpi).

    python -m tests.bench.bench_attn_plot [--quick]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.bench_dump import make_model, make_steps
from tests.bench.measure import alternate, median, print_table, run, spread


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        _draw_the_existing_way(*map(Path, options.arm))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_dump(folder)
        arms = {
            "actcli attn-plot": _actcli(
                "attn-plot", "--input", folder / "a.safetensors", "--layer", "all", "--json",
                "--samples", "0,1", "--no-avg", "--output-dir", folder / "ours",
            ),
            "a figure for each head": [
                *(sys.executable, "-m", "tests.bench.bench_attn_plot"),
                *("--arm", str(folder / "a.safetensors"), str(folder / "theirs")),
            ],
        }  # fmt: skip
        runs = alternate(arms, rounds=1 if options.quick else 3)
        files = len(json.loads(runs["actcli attn-plot"][0].stdout)["files"]) - 2
    base = [each.wall_s for each in runs["a figure for each head"]]
    rows = []
    for name, finished in runs.items():
        walls = [each.wall_s for each in finished]
        ratios = [wall / b for wall, b in zip(walls, base, strict=True)]
        rows.append([name, spread(walls, 1), f"{median(ratios):.2f}"])
    head = ["way", "process wall s", "ratio"]
    print_table(f"{files} PNG files: 12 layers × 8 heads × 2 boards", head, rows)


def _make_dump(folder: Path) -> None:
    make_model(folder)
    make_steps(folder)
    run(
        _actcli(
            "dump",
            "--init",
            folder,
            "--dataset",
            folder,
            "--outputs",
            "attn_weights",
            "--n-samples",
            "2",
            "--output",
            folder / "a.safetensors",
            "--json",
        )
    )


def _actcli(*words: object) -> list[str]:
    return [sys.executable, "-m", "actcli", *map(str, words)]


def _draw_the_existing_way(dump: Path, folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from safetensors.numpy import load_file

    tensors = load_file(dump)
    cells = [f"r{row + 1}c{column + 1}" for row in range(4) for column in range(4)]
    folder.mkdir(exist_ok=True)
    for sample, layer, head in np.ndindex(*tensors["attn_weights"].shape[:3]):
        figure, axes = plt.subplots(figsize=(4.8, 4.2))
        image = axes.imshow(
            tensors["attn_weights"][sample, layer, head], cmap="magma", vmin=0, vmax=1
        )
        axes.set(title=f"Layer {layer + 1} Head {head} (sample {sample})")
        axes.set(xlabel="Key position", ylabel="Query position")
        axes.set_xticks(range(16), cells, rotation=90, fontsize=6)
        axes.set_yticks(range(16), cells, fontsize=6)
        figure.colorbar(image, ax=axes)
        board = "\n".join(str(row) for row in tensors["boards"][sample].reshape(4, 4))
        axes.text(1.02, 0.5, board, transform=axes.transAxes, family="monospace")
        figure.tight_layout()
        figure.savefig(folder / f"{sample}_{layer}_{head}.png", dpi=160)
        plt.close(figure)


if __name__ == "__main__":
    main()
