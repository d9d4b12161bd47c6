"""The logit lens at every layer and position, against the products with the head alone.

The model is a random Llama in float32: 12 layers, hidden 768, intermediate 2048, vocabulary
32,000, tied. All arms give 13 states (embedding and 12 blocks); `limit` only computes their logits
and drops them, `plain` and `ours` also give top-5, entropy, KL to the final layer and the next
token's rank, `ours, all` every column. Every arm is a process of its own that reports the time of
its loop after one batch to warm up, on the clock and of the processors (what counts on a machine
that others use too); arms take turns. Memory is the process's peak above what it held with the
model loaded.

    python -m tests.bench.bench_logit_lens [--quick] [--samples N] [--rounds R] [--chunk-mib M]
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.bench.measure import alternate, held_mib, median, print_table, spread

SHAPE = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
}
ARMS = ("limit", "plain", "ours", "ours, all")
COLUMNS = ("top_ids", "top_p", "entropy_bits", "kl_to_final_bits", "rank_target")
BATCH, TOKENS = 8, 128

Read = Callable[[Tensor], None]


def main() -> None:
    """Measure, and print the table."""
    options = _parse()
    if options.arm:
        _run_arm(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        _make_model(Path(folder))
        runs = alternate(
            {arm: _command(options, folder, arm) for arm in ARMS},
            rounds=options.rounds,
            warm_up=False,
        )
    said = {arm: [json.loads(each.stdout) for each in runs[arm]] for arm in ARMS}
    rows = []
    for arm, each in said.items():
        added = median([finished["added_mib"] for finished in each])
        rate = options.samples * TOKENS / median([finished["elapsed_s"] for finished in each])
        ratios = [_ratios(each, said["limit"], clock) for clock in ("elapsed_s", "cpu_s")]
        rows.append([arm, f"{rate:,.0f}", *ratios, f"{added:,.0f}"])
    title = f"logit lens, {options.samples} x {TOKENS} tokens, 13 states, {options.rounds} rounds"
    head = ["way", "tokens/s", "time to limit's", "processor time to limit's", "added MiB"]
    print_table(title, head, rows)


def _ratios(own: Sequence[Any], limit: Sequence[Any], clock: str) -> str:
    return spread([each[clock] / base[clock] for each, base in zip(own, limit, strict=True)], 3)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--chunk-mib", type=int, default=32)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.samples = options.samples or (BATCH if options.quick else 4 * BATCH)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _make_model(folder: Path) -> None:
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    parameters = sum(each.numel() for each in net.parameters())
    print(f"model: {parameters:,} parameters, random weights; torch {torch.__version__}")
    net.save_pretrained(folder)


def _command(options: argparse.Namespace, folder: str, arm: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.bench.bench_logit_lens", "--arm", arm, "--model", folder),
        *("--samples", str(options.samples), "--chunk-mib", str(options.chunk_mib)),
    ]


def _run_arm(options: argparse.Namespace) -> None:
    read = _own(options) if options.arm.startswith("ours") else _other(options)
    loaded = held_mib()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, SHAPE["vocab_size"], (options.samples, TOKENS), generator=generator)
    with torch.inference_mode():
        read(tokens[:BATCH])
        began, began_cpu = time.perf_counter(), time.process_time()
        read(tokens)
        elapsed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"elapsed_s": elapsed, "cpu_s": cpu, "added_mib": peak - loaded}))


def _other(options: argparse.Namespace) -> Read:
    from transformers import LlamaForCausalLM

    net: Any = LlamaForCausalLM.from_pretrained(options.model).eval()

    def limit(tokens_BT: Tensor) -> None:
        net(tokens_BT)
        state_BTH = net.model.embed_tokens(tokens_BT)
        for _state in range(SHAPE["num_hidden_layers"]):
            net.lm_head(net.model.norm(state_BTH))

    def plain(tokens_BT: Tensor) -> list[tuple[Tensor, ...]]:
        output = net(tokens_BT, output_hidden_states=True)
        next_BT1 = torch.roll(tokens_BT, -1, dims=1)[..., None]
        final_BTV = torch.log_softmax(output.logits, dim=-1)
        found = [_plain_statistics(output.logits, final_BTV, final_BTV, next_BT1)]
        for state_BTH in output.hidden_states[:-1]:
            logits_BTV = net.lm_head(net.model.norm(state_BTH))
            logs_BTV = torch.log_softmax(logits_BTV, dim=-1)
            found.append(_plain_statistics(logits_BTV, logs_BTV, final_BTV, next_BT1))
        return found

    step = limit if options.arm == "limit" else plain

    def read(tokens_NT: Tensor) -> None:
        for batch_BT in tokens_NT.split(BATCH):
            step(batch_BT)

    return read


def _plain_statistics(
    logits_BTV: Tensor, logs_BTV: Tensor, final_BTV: Tensor, next_BT1: Tensor
) -> tuple[Tensor, ...]:
    p_BTV = logs_BTV.exp()
    top = logs_BTV.topk(5, dim=-1)
    entropy = -(p_BTV * logs_BTV).sum(dim=-1)
    kl = (p_BTV * (logs_BTV - final_BTV)).sum(dim=-1)
    rank = 1 + (logits_BTV > logits_BTV.gather(-1, next_BT1)).sum(dim=-1)
    return top.indices, top.values, entropy, kl, rank


def _own(options: argparse.Namespace) -> Read:
    """What the command does, without its files: capture engine, kernel, for `all` the records."""
    from actcli.analysis.lens import LensBatch, read_lens
    from actcli.analysis.lens_states import WantedStates
    from actcli.analysis.lens_statistics import METRICS, LensKernel
    from actcli.capture.lens_sources import run_model
    from actcli.commands.logit_lens import LogitLensConfig
    from actcli.models import load_model
    from actcli.samples.token_file import open_token_file

    adapter: Any = load_model(options.model)
    wants_all = options.arm == "ours, all"
    kernel = LensKernel(
        adapter.unembedding,
        chunk_bytes=options.chunk_mib << 20,
        metrics=METRICS if wants_all else COLUMNS,
    )
    wanted = WantedStates(("resid",), tuple(range(adapter.n_layers + 1)), adapter.n_layers)

    def ours(tokens_NT: Tensor) -> None:
        path = Path(options.model) / f"ids-{options.arm[-3:]}.npy"
        np.save(path, tokens_NT.numpy())
        captured = run_model(
            adapter,
            open_token_file(path),
            sites=wanted.sites,
            blocks=wanted.blocks,
            batch_tokens=LogitLensConfig.model_fields["batch_tokens"].default,
        )
        for batch in captured:
            final_BTH, states = wanted.of(batch.read, blocks=wanted.blocks)
            rows_B = np.asarray(batch.rows)
            lens = LensBatch(rows_B, batch.tokens_BT, batch.lengths_B, final_BTH, states)
            if wants_all:
                read_lens(kernel, adapter.unembedding, lens, positions="all")
                continue
            final_RH = final_BTH.flatten(0, 1)
            each = [final_RH if one is final_BTH else one.flatten(0, 1) for one in states.values()]
            following = torch.from_numpy(batch.tokens_BT).roll(-1, dims=1).flatten()
            kernel.read(final_RH, each, targets_R=following)

    return ours


if __name__ == "__main__":
    main()
