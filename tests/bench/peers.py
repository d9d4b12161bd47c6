"""`actcli dump` on a Hugging Face model against nnsight, TransformerLens and plain hooks.

Two Llama shapes with random weights: A (12 layers, hidden 256, vocabulary 32k, fp32: many bytes for
few products) and B (12 layers, hidden 768, bf16). Sites `layer_outputs,attn_norm,mlp_input` of all
layers, bf16. Every arm is a process of its own that reports the time of its loop, writing included;
arms take turns. `bare` is the forward pass of the body, with nothing captured.

    make bench-peers [ARGS="--quick"]
    python -m tests.bench.peers --peers .venv-peers/bin/python [--rows 512] [--rounds 2]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.bench.measure import Run, alternate, median, print_table, spread

SITES = "layer_outputs,attn_norm,mlp_input"
SHAPES = {
    "A": ({"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}, "float32"),
    "B": ({"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}, "bfloat16"),
}
N_TOKENS, BATCH = 128, 16
SHORTEST, LONGEST = 8, 256
ARMS = Path(__file__).with_name("peer_arms.py")


def main() -> None:
    """Measure, and print the tables."""
    options = _parse()
    if options.actcli:
        _dump(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for shape in options.shapes.upper().replace("M", ""):
            make_model(folder / shape, shape)
            np.save(folder / "fixed.npy", rng.integers(3, 32_000, (options.rows, N_TOKENS)))
            title = f"{shape}, {options.rows} x {N_TOKENS} tokens"
            _compare(title, shape, "fixed", options, folder)
        if "M" in options.shapes:
            if not (folder / "A").exists():
                make_model(folder / "A", "A")
            np.save(folder / "mixed.npy", mixed_lengths(options.rows, rng))
            title = f"A, {options.rows} texts of {SHORTEST} to {LONGEST} tokens"
            _compare(title, "A", "mixed", options, folder)


def make_model(folder: Path, shape: str) -> None:
    """A Llama with random weights."""
    torch.manual_seed(0)
    sizes, dtype = SHAPES[shape]
    config = LlamaConfig(vocab_size=32_000, num_hidden_layers=12, tie_word_embeddings=True, **sizes)
    net = LlamaForCausalLM(config).to(getattr(torch, dtype))
    print(f"shape {shape}: {sum(each.numel() for each in net.parameters()):,} parameters, {dtype}")
    net.save_pretrained(folder)
    words = {f"t{number}": number for number in range(32_000)}  # some peers insist on a tokenizer
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")),
        unk_token="t0",
        bos_token="t1",
        eos_token="t2",
        pad_token="t0",
    ).save_pretrained(folder)


def mixed_lengths(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of random lengths, -1 behind each."""
    ids = rng.integers(3, 32_000, (rows, LONGEST))
    lengths = rng.integers(SHORTEST, LONGEST + 1, rows)
    lengths[0] = LONGEST
    ids[np.arange(LONGEST) >= lengths[:, None]] = -1
    return ids


def _compare(
    title: str, shape: str, tokens: str, options: argparse.Namespace, folder: Path
) -> None:
    model, ids, output = folder / shape, folder / f"{tokens}.npy", folder / "activations"
    common = ["--model", str(model), "--tokens", str(ids)]
    own = [sys.executable, "-m", "tests.bench.peers", "--actcli", *common]
    arms = {
        "bare": [sys.executable, str(ARMS), "bare", *common, "--output", str(output)],
        "actcli dump": [*own, "--output", f"{output}.safetensors"],
        "hooks + save": [sys.executable, str(ARMS), "hooks", *common, "--output", str(output)],
    } | {
        peer: [options.peers, str(ARMS), peer, *common, "--output", str(output)]
        for peer in ("nnsight", "transformer-lens")
        if options.peers
    }
    chosen = {name: arms[name] for name in arms if name in (options.ways or [*arms])}
    runs = alternate(chosen, rounds=options.rounds, before=lambda: _remove(folder), warm_up=False)
    _print(title, runs)


def _remove(folder: Path) -> None:
    for each in folder.glob("activations*"):
        each.unlink()


def _print(title: str, runs: dict[str, list[Run]]) -> None:
    speeds = {
        name: [json.loads(each.stdout.splitlines()[-1])["tokens_per_s"] for each in of_arm]
        for name, of_arm in runs.items()
    }
    rows = []
    for name, of_arm in runs.items():
        to_bare = [one / bare for one, bare in zip(speeds[name], speeds["bare"], strict=True)]
        ours = [own / one for own, one in zip(speeds["actcli dump"], speeds[name], strict=True)]
        rows.append(
            (
                name,
                f"{median(speeds[name]):,.0f}",
                spread(to_bare),
                spread(ours),
                f"{median([each.peak_mib for each in of_arm]):,.0f}",
            )
        )
    print_table(
        f"dump of {SITES}, {title}",
        ("way", "tokens/s", "ratio to bare", "actcli is times as fast", "peak MiB"),
        rows,
    )


def _dump(options: argparse.Namespace) -> None:
    """The arm of actcli: its own functions, timed like the others after loading and a warm-up."""
    import time

    from actcli.capture.dumping import prepare, write_dump
    from actcli.models import load_model
    from actcli.samples.token_file import open_token_file

    samples = open_token_file(Path(options.tokens))
    adapter = load_model(options.model)
    choices = {
        "outputs": SITES.split(","),
        "layers": None,
        "positions": None,
        "dtype": "bf16",
        "device": torch.device("cpu"),
    }
    with torch.inference_mode():
        warm = torch.from_numpy(samples.batch(range(BATCH)).inputs["tokens"])
        adapter.forward({"tokens": warm})
    began = time.perf_counter()
    run = prepare(adapter, samples, **choices)
    report = write_dump(
        run,
        Path(options.output),
        config={"seed": 0, "dtype": "bf16", "outputs": choices["outputs"]},
        n_verified=0,
        advance=lambda _count: None,
        force=True,
    )
    elapsed = time.perf_counter() - began
    n_tokens = report.tokens_per_s * report.elapsed_s
    print(json.dumps({"seconds": elapsed, "tokens_per_s": n_tokens / elapsed}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--shapes", default="ABM", help="A, B, and M for A with mixed lengths")
    parser.add_argument("--ways", type=lambda text: text.split(","), help="some of the ways")
    parser.add_argument("--peers", help="the Python that has nnsight and transformer-lens")
    parser.add_argument("--folder", help="where to write the dumps")
    parser.add_argument("--actcli", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows or (64 if options.quick else 512)
    options.rounds = options.rounds or (1 if options.quick else 2)
    return options


if __name__ == "__main__":
    main()
