"""`actcli dump` against the bare forward loop and against the in-memory way.

The model is a 50.4M-parameter 2048 encoder with random weights; the sites are
`attn_norm,mlp_input`. Every arm is a process of its own that reports the time of its loop; arms
take turns. The in-memory way is the existing 2048former script's: hooks append to lists,
`torch.stack` per batch, `torch.cat` and one save at the end.

    python -m tests.bench.bench_dump [--quick] [--samples N] [--rounds R] [--device cpu]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from actcli.capture.device import find_device
from actcli.models import load_model
from actcli.models.encoder2048 import Encoder2048, EncoderConfig
from actcli.samples.selection import draw_indices
from actcli.samples.steps import open_steps
from tests.bench.measure import MIB, Run, alternate, median, print_table, run, spread

CONFIG = {
    "input_vocab_size": 17,
    "output_n_bins": 34,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-6,
}
SITES = "attn_norm,mlp_input"
N_ROWS = 16384


def main() -> None:
    """Measure, and print the tables."""
    options = _parse()
    if options.arm:
        _run_arm(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_model(Path(folder))
        make_steps(Path(folder))
        _compare_speed(options, Path(folder))
        _compare_memory(options, Path(folder))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help="where to write the dumps, such as a RAM disk")
    parser.add_argument("--arm", choices=("bare", "in-memory"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.samples = options.samples or (512 if options.quick else 1024)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder2048(EncoderConfig.model_validate(CONFIG))
    parameters = sum(each.numel() for each in encoder.parameters())
    print(f"model: {parameters:,} parameters, random weights; torch {torch.__version__}")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(encoder.state_dict(), folder / "model.safetensors")


def make_steps(folder: Path) -> None:
    rows = np.zeros(N_ROWS, dtype=[("board", "<u8"), ("tile_65536_mask", "<u2")])
    rows["board"] = np.random.default_rng(0).integers(0, 1 << 63, N_ROWS, dtype=np.uint64)
    np.save(folder / "steps.npy", rows)


def _compare_speed(options: argparse.Namespace, folder: Path) -> None:
    arms = {
        "bare forward loop": _own_arm(options, folder, "bare"),
        "actcli dump": _dump_command(options, folder, options.samples),
        "in-memory way": _own_arm(options, folder, "in-memory"),
    }
    runs = alternate(arms, rounds=options.rounds)
    bare = [_loop_seconds(each) for each in runs["bare forward loop"]]
    rows = []
    for name, each in runs.items():
        seconds = [_loop_seconds(finished) for finished in each]
        ratios = [b / s for b, s in zip(bare, seconds, strict=True)]
        rate = options.samples / median(seconds)
        peak = median([finished.peak_mib for finished in each])
        wall = spread([finished.wall_s for finished in each], 1)
        rows.append([name, f"{rate:.1f}", spread(ratios, 3), wall, f"{peak:,.0f}"])
    title = f"dump of {SITES}, {options.samples} samples, batch {options.batch_size}"
    head = ["way", "samples/s", "ratio to bare", "process wall s", "peak MiB"]
    print_table(f"{title}, {options.device}, {options.rounds} rounds", head, rows)


def _compare_memory(options: argparse.Namespace, folder: Path) -> None:
    small = options.batch_size * 2
    rows = []
    for count in (small, small * 8):
        finished = run(_dump_command(options, folder, count))
        size = json.loads(finished.stdout)["file_bytes"] / MIB
        rows.append([f"{count:,}", f"{size:,.0f}", f"{finished.peak_mib:,.0f}"])
    print_table("peak memory of dump", ["samples", "file MiB", "peak MiB"], rows)


def _dump_command(options: argparse.Namespace, folder: Path, samples: int) -> list[str]:
    return [
        *(sys.executable, "-m", "actcli", "dump", "--json", "--force", "--outputs", SITES),
        *("--init", str(folder), "--dataset", str(folder), "--device", options.device),
        *("--batch-size", str(options.batch_size), "--n-samples", str(samples)),
        *("--output", str(folder / "dump.safetensors")),
    ]


def _own_arm(options: argparse.Namespace, folder: Path, arm: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.bench.bench_dump", "--arm", arm, "--model", str(folder)),
        *("--samples", str(options.samples), "--batch-size", str(options.batch_size)),
        *("--device", options.device),
    ]


def _loop_seconds(finished: Run) -> float:
    return float(json.loads(finished.stdout)["elapsed_s"])


def _run_arm(options: argparse.Namespace) -> None:
    folder = Path(options.model)
    device = find_device(options.device)
    net: Any = load_model(str(folder), device=str(device)).net
    steps = open_steps(str(folder))
    indices = draw_indices(len(steps), n_samples=options.samples, seed=0)
    kept: dict[str, list[Tensor]] = {}
    handles = _append_everything(net, kept) if options.arm == "in-memory" else []
    chunks: dict[str, list[Tensor]] = {"attn_norm": [], "mlp_norm": []}
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, options.samples, options.batch_size):
            boards = steps.boards(indices[start : start + options.batch_size])
            kept.clear()
            net(torch.from_numpy(boards.astype(np.int64)).to(device))
            for site, by_layer in kept.items():
                chunks[site].append(torch.stack(by_layer, dim=1).cpu())
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(json.dumps({"elapsed_s": time.perf_counter() - began}))
    if handles:
        whole = {site: torch.cat(each) for site, each in chunks.items()}
        save_file(whole, folder / "in-memory.safetensors")


def _append_everything(net: Any, kept: dict[str, list[Tensor]]) -> list[Any]:
    def hook(site: str) -> Any:
        return lambda _module, _args, output: kept.setdefault(site, []).append(output)

    return [
        getattr(block, site).register_forward_hook(hook(site))
        for block in net.blocks
        for site in ("attn_norm", "mlp_norm")
    ]


if __name__ == "__main__":
    main()
