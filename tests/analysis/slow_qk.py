"""Every pair at every key, in float64, written out: the slow way that `qk_pairs` must equal."""

import numpy as np
import torch

from actcli.decompositions.factors import Factors
from actcli.models.qk import QkLayer, QkSide, QkText


def make_text(
    *,
    seed=0,
    n_tokens=7,
    hidden=10,
    n_heads=4,
    n_kv=2,
    width=6,
    bias=False,
    norms=False,
    planes="halves",
    growth=1.0,
    window=None,
    softcap=None,
    sinks=False,
):
    """A text of a made-up layer; its logits come from numpy in float64, not from actcli."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    q = _side("q", normal, n_heads, width, hidden, bias)
    k = _side("k", normal, n_kv, width, hidden, bias)
    planes_R2 = _planes(planes, width)
    angles = np.arange(n_tokens)[:, None] * 0.7 ** np.arange(max(len(planes_R2), 1))
    text = {
        "attn_input_TH": normal(n_tokens, hidden),
        "q_factor_TAD": _factor(normal, n_tokens, n_heads, width) if norms else None,
        "k_factor_TKD": _factor(normal, n_tokens, n_kv, width) if norms else None,
        "planes_R2": planes_R2 if len(planes_R2) else None,
        "cos_TR": (growth * np.cos(angles)).astype(np.float32) if len(planes_R2) else None,
        "sin_TR": (growth * np.sin(angles)).astype(np.float32) if len(planes_R2) else None,
        "mask_TS": _mask(n_tokens, window),
    }
    sinks_A = normal(n_heads) if sinks else None
    kv_of_head = np.arange(n_heads) // (n_heads // n_kv)
    scale = 0.37
    q_TAD = _projected(text, q, "q", scale)
    k_TKD = _projected(text, k, "k", 1.0)
    logits = np.einsum("tad,sad->ats", q_TAD, k_TKD[:, kv_of_head])
    text["logits_ATS"] = logits.astype(np.float32)
    text["attention_ATS"] = softmax(logits, text["mask_TS"], softcap, sinks_A).astype(np.float32)
    text = {name: None if each is None else torch.from_numpy(each) for name, each in text.items()}
    layer = QkLayer(
        layer=1,
        q=q,
        k=k,
        head_width=width,
        kv_of_head_A=torch.from_numpy(kv_of_head),
        scale=scale,
        softcap=softcap,
        sinks_A=None if sinks_A is None else torch.from_numpy(sinks_A),
        rotary=None,
        dtype=torch.float32,
    )
    return QkText(layer=layer, **text)


def make_factors(side, n_components, *, seed=1, signs=False, scale=0.5):
    """Random components, more than the weight needs or fewer."""
    generator = torch.Generator().manual_seed(seed)
    outputs, hidden = side.weight_OH.shape
    V_HC = torch.randn(hidden, n_components, generator=generator)
    U_CO = torch.randn(n_components, outputs, generator=generator) * scale
    sign_C = torch.randn(n_components, generator=generator).sign() if signs else None
    return Factors(V_HC, U_CO, tuple(range(100, 100 + n_components)), sign_C=sign_C)


def all_pairs(text, q, k, query, *, binary=None):
    """c (A, Q, K, T) of all parts, for all tokens as keys, seen or not: components, delta, bias.

    `binary` is (what is on of q (T, C), of k, gauged U of q, of k): then components only.
    """
    q_TPAD = _parts(text, text.layer.q, q, "q", None if binary is None else binary[0::2])
    k_TPKD = _parts(text, text.layer.k, k, "k", None if binary is None else binary[1::2])
    k_TPAD = k_TPKD[:, :, text.layer.kv_of_head_A.numpy()]
    return text.layer.scale * np.einsum("iad,tjad->aijt", q_TPAD[query], k_TPAD)


def scores(c_AQKP, attention_AP, rank, slope_AP=None):
    """What each rank says, (Q, K)."""
    if rank == "peak":
        return np.abs(c_AQKP).max(axis=(0, 3))
    if rank == "mean-abs":
        return np.abs(c_AQKP).mean(axis=(0, 3))
    if rank == "centered":
        return np.abs(c_AQKP - c_AQKP.mean(axis=3, keepdims=True)).max(axis=(0, 3))
    p = attention_AP.astype(np.float64)[:, None, None]
    g_c = c_AQKP * (1.0 if slope_AP is None else slope_AP[:, None, None])
    return np.abs(p * (g_c - (p * g_c).sum(axis=3, keepdims=True))).max(axis=(0, 3))


def best(scores_QK, n):
    """Pairs by falling score (as float32), then i, then j."""
    rounded = scores_QK.astype(np.float32)
    pairs = [(-rounded[i, j], i, j) for i in range(len(rounded)) for j in range(len(rounded[0]))]
    return [[i, j] for _score, i, j in sorted(pairs)[:n]]


def softmax(logits_ATS, mask_TS, softcap=None, sinks_A=None):
    """Attention, in float64."""
    z = logits_ATS.astype(np.float64)
    z = z if softcap is None else softcap * np.tanh(z / softcap)
    e = np.exp(z) * mask_TS
    extra = 0.0 if sinks_A is None else np.exp(sinks_A.astype(np.float64))[:, None, None]
    return e / (e.sum(axis=-1, keepdims=True) + extra)


def _side(name, normal, n_heads, width, hidden, bias):
    outputs = n_heads * width
    return QkSide(
        module=f"layers.1.{name}_proj",
        outputs_O=torch.arange(outputs),
        weight_OH=torch.from_numpy(normal(outputs, hidden)),
        bias_O=torch.from_numpy(normal(outputs)) if bias else None,
        n_heads=n_heads,
    )


def _planes(kind, width):
    if kind == "halves":
        return np.stack([np.arange(width // 2), np.arange(width // 2) + width // 2], axis=1)
    if kind == "pairs":
        return np.arange(width // 2 * 2).reshape(-1, 2)
    if kind == "partial":
        return np.array([[0, 2], [1, 3]])
    return np.zeros((0, 2), dtype=np.int64)


def _factor(normal, n_tokens, n_heads, width):
    gain, inverse = 1 + 0.3 * normal(n_heads, width), np.exp(0.3 * normal(n_tokens, n_heads))
    return gain * inverse[..., None]


def _mask(n_tokens, window):
    apart = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    return (apart >= 0) & (apart < (window or n_tokens))


def _projected(text, side, name, scale):
    """Queries or keys behind norm and rotation, (T, heads, D)."""
    bias = 0.0 if side.bias_O is None else side.bias_O.double().numpy()
    y = text["attn_input_TH"].astype(np.float64) @ side.weight_OH.double().numpy().T + bias
    y = y.reshape(len(y), side.n_heads, -1)
    factor = text["q_factor_TAD" if name == "q" else "k_factor_TKD"]
    y = y if factor is None else y * factor
    return scale * rotated(y, text["planes_R2"], text["cos_TR"], text["sin_TR"])


def rotated(vectors, planes, cos, sin):
    """Turn (T, ..., D), one token and one plane at a time."""
    out = vectors.copy()
    for t in range(len(vectors)):
        for m, (a, b) in enumerate([] if planes is None else planes):
            first, second = vectors[t, ..., a], vectors[t, ..., b]
            out[t, ..., a] = first * float(cos[t, m]) - second * float(sin[t, m])
            out[t, ..., b] = second * float(cos[t, m]) + first * float(sin[t, m])
    return out


def _parts(text, side, factors, name, binary):
    """All parts of a side at all tokens, (T, parts, heads, D)."""
    x = text.attn_input_TH.double().numpy()
    weight = side.weight_OH.double().numpy()
    if binary is not None:
        on, U = binary
        parts = on.astype(np.float64)[:, :, None] * U.astype(np.float64)
    else:
        if factors is None:
            components, W_seen = (x @ weight.T)[:, None], weight
        else:
            V, U = factors.V_HC.double().numpy(), factors.U_CO.double().numpy()
            components, W_seen = (x @ V)[:, :, None] * U, (V @ U).T
        delta = x @ (weight - W_seen).T
        bias = np.zeros(len(weight)) if side.bias_O is None else side.bias_O.double().numpy()
        bias = np.broadcast_to(bias, delta.shape)
        parts = np.concatenate([components, delta[:, None], bias[:, None]], axis=1)
    parts = parts.reshape(*parts.shape[:2], side.n_heads, -1)
    factor = text.q_factor_TAD if name == "q" else text.k_factor_TKD
    parts = parts if factor is None else parts * factor.double().numpy()[:, None]
    tables = [each if each is None else each.numpy() for each in tables_of(text)]
    return rotated(parts, *tables)


def tables_of(text):
    return text.planes_R2, text.cos_TR, text.sin_TR
