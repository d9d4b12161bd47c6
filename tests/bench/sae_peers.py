"""`actcli sae-eval`'s pass against the evaluations of SAELens, dictionary_learning and sparsify.

    make bench-sae-peers [ARGS="--tokens 8192"]
    python -m tests.bench.sae_peers --peers .venv-peers/bin/python [--tokens 8192] [--rounds 2]

Sizes and ways: `sae_peer_arms.py`. `products` is the encoder's product and the decoder's, dense,
with nothing else; ratios are to it, in the same round. What each way computes is not the same:
sparsify gives an FVU alone, ours every figure of `metrics.json` that is about tokens.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.bench.measure import alternate, median, print_table, spread

ARMS = Path(__file__).with_name("sae_peer_arms.py")
WAYS = {
    "products": "both_products",
    "SAELens": "sae_lens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify",
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", required=True, help="Python with the peers installed")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    size = ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    commands = {name: [options.peers, str(ARMS), way, *size] for name, way in WAYS.items()}
    own = [sys.executable, "-m", "tests.bench.bench_sae_eval", "--arm"]
    commands["actcli"] = [*own, "ours", *size]
    commands["actcli, float32"] = [*own, "ours, float32", *size]
    runs = alternate(commands, rounds=options.rounds, warm_up=False)
    said = {name: [json.loads(_last_line(each.stdout)) for each in runs[name]] for name in commands}
    rows = []
    for name, each in said.items():
        pairs = zip(each, said["products"], strict=True)
        ratio = spread([one["elapsed_s"] / base["elapsed_s"] for one, base in pairs], 2)
        rows.append([name, ratio, f"{median([one['added_mib'] for one in each]):,.0f}"])
    title = f"evaluation of an SAE, {options.tokens:,} tokens, {options.rounds} rounds"
    print_table(title, ["way", "time to both products'", "added MiB"], rows)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
