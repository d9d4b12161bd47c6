"""Made-up pairs of one query, in keeping with each other, for tests of what shows them."""

import numpy as np

from actcli.render.qk_view import QkView
from actcli.reports.qk import KINDS, QkPairs, QkReport

EVIL = "</script><b>\u202e$x_1$&\n"


def softmax(logits_AP, *, softcap=None, sinks_A=None):
    """Attention (A, P), slowly: cap, then a softmax with one more column for the sink."""
    rows = []
    for head, row in enumerate(logits_AP.astype(np.float64)):
        capped = row if softcap is None else softcap * np.tanh(row / softcap)
        e = np.exp(capped)
        rows.append(e / (e.sum() + (0.0 if sinks_A is None else np.exp(sinks_A[head]))))
    return np.array(rows)


def made_view(
    *,
    n_heads=3,
    n_pairs=5,
    n_keys=7,
    seed=0,
    softcap=None,
    sinks_A=None,
    tokens=None,
    layer=1,
    sample=0,
    first_key=0,
):
    """A view of random pairs: components 0-8 and 0-6, then delta and bias; weighted mode."""
    draw = np.random.default_rng(seed)
    contrib = draw.normal(size=(n_heads, n_pairs, n_keys)).astype(np.float32)
    delta = (0.2 * draw.normal(size=(n_heads, n_keys))).astype(np.float32)
    rest = draw.normal(size=(n_heads, n_keys)).astype(np.float32)
    total = contrib.sum(axis=1) + rest
    truth = total + delta
    attention = softmax(truth, softcap=softcap, sinks_A=sinks_A)
    without = [
        softmax(truth - contrib[:, n], softcap=softcap, sinks_A=sinks_A) for n in range(n_pairs)
    ]
    where = np.abs(contrib).transpose(1, 0, 2).reshape(n_pairs, -1).argmax(axis=1)
    head, key = np.divmod(where, n_keys)
    residual = {f"{q}:{k}": np.zeros_like(delta) for q in KINDS for k in KINDS}
    residual |= {"component:component": total, "component:delta": delta}
    pairs = QkPairs(
        layer=layer,
        sample=sample,
        query=first_key + n_keys - 1,
        mode="weighted",
        rank="peak",
        keys_P=np.arange(first_key, first_key + n_keys),
        q_names=(*map(str, range(9)), "delta", "bias"),
        k_names=(*map(str, range(7)), "delta", "bias"),
        top_pairs=np.stack([np.arange(n_pairs) % 9, np.arange(n_pairs) % 7], 1).astype(np.int32),
        top_contrib=contrib,
        sum=total,
        visible=np.abs(contrib).max(axis=-1) >= 1.4,
        score=np.abs(contrib).max(axis=(0, 2)),
        peak=contrib[head, np.arange(n_pairs), key],
        peak_head=head.astype(np.int32),
        peak_key=(first_key + key).astype(np.int32),
        centered_peak=contrib[head, np.arange(n_pairs), key],
        q_act=np.ones(n_pairs, dtype=np.float32),
        k_act=np.full(n_pairs, np.nan, dtype=np.float32),
        ground_truth=truth,
        attention=attention.astype(np.float32),
        d_attn=np.stack([each - attention for each in without], axis=1).astype(np.float32),
        residual=residual,
        q_marginals=np.zeros((n_heads, 11), dtype=np.float32),
        k_marginals=np.zeros((n_heads, 9), dtype=np.float32),
        ledger_gap=1e-6,
        tolerance=1e-4,
        softcap=softcap,
        sinks_A=sinks_A,
    )
    names = tokens or tuple(f" t{place}" for place in range(n_keys))
    return QkView(run="svd:8", pairs=pairs, query_token=names[-1], tokens=names)


def made_report(**changed):
    """What is said of a run over such views."""
    given = {
        "model": "demo://facts",
        "decomposition": "svd:8",
        "mode": "weighted",
        "rank": "peak",
        "layers": (1,),
        "samples": (0,),
        "queries": (6,),
        "ledger_gap": 1e-6,
        "tolerance": 1e-4,
    }
    return QkReport(**given | changed)
