"""The golden dictionaries, and small helpers for tests of formats."""

from pathlib import Path

import numpy as np
import torch

from actcli.saes import OpenOptions, open_dictionary

DATA = Path(__file__).parent.parent / "data" / "sae-eval"
CKPT = DATA / "ckpt"
MORE = DATA / "more"
_SCOPE = CKPT / "gemma_scope"
_SCOPE_2 = _SCOPE / "gemma-scope-2-1b-pt" / "transcoder"


def _family(prefix, folder):
    return {f"{prefix}_{each.name}": each for each in sorted((CKPT / folder).iterdir())}


GOLDEN = {
    **_family("upstream", "upstream"),
    **_family("saelens", "sae_lens"),
    **_family("dictlearn", "dictionary_learning"),
    **_family("sparsify", "sparsify"),
    **_family("circuit_tracer", "circuit_tracer"),
    "openai_relu": CKPT / "openai",
    "transcoder_circuits": CKPT / "transcoder_circuits",
    "gemma_scope_transcoder": _SCOPE / "gemma-scope-2b-pt-transcoders",
    "gemma_scope_sae_res": _SCOPE / "gemma-scope-2b-pt-res",
    "gemma_scope_2_transcoder": _SCOPE_2 / "layer_12_width_16k_l0_medium",
    "gemma_scope_2_transcoder_affine": _SCOPE_2 / "layer_12_width_16k_l0_medium_affine",
}
"""Where the dictionary of each golden file lies; some in folders further down."""

MORE_GOLDEN = {each.name: each for each in sorted((MORE / "ckpt").iterdir())}


def opened(path, **options):
    return open_dictionary(str(path), OpenOptions(**options))


def encoded(dictionary, x_NI):
    """Dense features (N, D) and the reconstruction (N, O)."""
    acts = dictionary.encode(x_NI)
    dense_ND = torch.zeros(len(x_NI), dictionary.n_features)
    dense_ND[acts.tokens_M, acts.features_M] = acts.values_M
    return dense_ND.numpy(), dictionary.decode(acts, x_NI).numpy()


def random(*shape, seed=0, scale=1.0):
    """Reproducible numbers, other ones for other shapes."""
    generator = np.random.default_rng([seed, *shape])
    return torch.tensor(scale * generator.standard_normal(shape), dtype=torch.float32)


def slow(x_NI, W_enc_ID, b_enc_D, W_dec_DO, b_dec_O, activate, *, centre_I=None):
    """Features and reconstruction in float64, token by token."""
    x, W_enc, b_enc, W_dec, b_dec = (
        each.double().numpy() for each in (x_NI, W_enc_ID, b_enc_D, W_dec_DO, b_dec_O)
    )
    acts, recon = [], []
    for row in x:
        z = row - (0 if centre_I is None else centre_I.double().numpy())
        a = activate(np.array([z @ W_enc[:, d] + b_enc[d] for d in range(W_enc.shape[1])]))
        acts.append(a)
        recon.append(sum((a[d] * W_dec[d] for d in range(len(a))), start=b_dec.copy()))
    return np.array(acts), np.array(recon)


def relu(h_D):
    return np.maximum(h_D, 0)


def largest(k, *, after=relu):
    def activate(h_D):
        kept_D = np.zeros_like(h_D)
        best = np.argsort(-h_D)[:k]
        kept_D[best] = after(h_D[best])
        return kept_D

    return activate
