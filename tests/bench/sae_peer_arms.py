"""Ways to evaluate an SAE on activations that are at hand, one a process.

    python sae_peer_arms.py WAY --tokens N --threads T

Reads no actcli code, so that it runs where only the peers are installed. The SAE has 2304 x 18,432
random weights and one threshold, at which 96 features fire on average; activations are normal. Each
library's own evaluation runs on batches of 2,048 tokens; what would run a model hands out the
activations instead. The last line printed is JSON: seconds after one batch to warm up, and peak
memory above what was held with weights and data.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

D, N_FEATURES, L0, BATCH = 2304, 18_432, 96, 2048
HOOK = "blocks.0.hook_resid_post"
THRESHOLD = float(torch.special.ndtri(torch.tensor(1 - L0 / N_FEATURES, dtype=torch.float64)))

Evaluate = Callable[[Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    W_enc, W_dec = torch.randn(D, N_FEATURES).div_(D**0.5), torch.randn(N_FEATURES, D).div_(D**0.5)
    with torch.no_grad():
        evaluate = WAYS[options.way](W_enc, W_dec)
        acts = torch.randn(options.tokens, D)
        held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        evaluate(acts[:BATCH])
        began = time.perf_counter()
        evaluate(acts)
        elapsed = time.perf_counter() - began
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - held / 2**20
    print(json.dumps({"elapsed_s": elapsed, "added_mib": added}))


def both_products(W_enc: Tensor, W_dec: Tensor) -> Evaluate:
    """Encoder and dense decoder, and nothing else."""

    def evaluate(acts: Tensor) -> None:
        for x in acts.split(BATCH):
            torch.mm(torch.mm(x, W_enc), W_dec)

    return evaluate


def sae_lens(W_enc: Tensor, W_dec: Tensor) -> Evaluate:
    """`get_sparsity_and_variance_metrics`, as its command line calls it."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.activation_scaler import ActivationScaler

    metadata = SAEMetadata(hook_name=HOOK)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=N_FEATURES, metadata=metadata))
    sae.W_enc.copy_(W_enc)
    sae.W_dec.copy_(W_dec)
    sae.threshold.fill_(THRESHOLD)

    def evaluate(acts: Tensor) -> object:
        batches = iter(acts.view(-1, BATCH // 128, 128, D))
        model = SimpleNamespace(run_with_cache=lambda *_a, **_k: (None, {HOOK: next(batches)}))
        tokens = torch.ones(BATCH // 128, 128, dtype=torch.int64)
        return get_sparsity_and_variance_metrics(
            *(sae, model, SimpleNamespace(get_batch_tokens=lambda _n: tokens), ActivationScaler()),
            n_batches=len(acts) // BATCH,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            eval_batch_size_prompts=BATCH // 128,
            model_kwargs={},
        )

    return evaluate


def dictionary_learning(W_enc: Tensor, W_dec: Tensor) -> Evaluate:
    """`evaluate`, without the loss."""
    from dictionary_learning.dictionary import JumpReluAutoEncoder
    from dictionary_learning.evaluation import evaluate as its_own

    sae = JumpReluAutoEncoder(D, N_FEATURES)
    sae.W_enc.copy_(W_enc)
    sae.W_dec.copy_(W_dec)
    sae.threshold.fill_(THRESHOLD)
    return lambda acts: its_own(sae, iter(acts.split(BATCH)), n_batches=len(acts) // BATCH)


def sparsify(W_enc: Tensor, W_dec: Tensor) -> Evaluate:
    """The forward pass of a top-k SAE: reconstruction and FVU, no other figure."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its decoder kernel needs a GPU
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(D, SparseCoderConfig(num_latents=N_FEATURES, k=L0))
    sae.encoder.weight.copy_(W_enc.T)
    assert isinstance(sae.W_dec, nn.Parameter)
    sae.W_dec.copy_(W_dec)
    return lambda acts: [float(sae(x).fvu) for x in acts.split(BATCH)]


WAYS = {each.__name__: each for each in (both_products, sae_lens, dictionary_learning, sparsify)}

if __name__ == "__main__":
    main()
