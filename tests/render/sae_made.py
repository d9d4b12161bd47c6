"""Made-up evaluations of sparse dictionaries, in keeping with themselves, for tests of renders."""

import numpy as np

from actcli.reports import sae_eval, sae_metrics, sae_subject, sae_weights
from actcli.reports.base import Histogram
from actcli.reports.sae_glossary import METRICS, value_at

EVIL = "</script><b>\u202e$x_1$&\n"
N_TOKENS, N_FEATURES = 4096, 512
_PERCENTILES = ("mean", "min", "p01", "p10", "median", "p90", "p99", "max")


def percentiles(values):
    at = np.percentile(values, (0, 1, 10, 50, 90, 99, 100))
    return sae_weights.Percentiles(**dict(zip(_PERCENTILES, (np.mean(values), *at), strict=True)))


def histogram(values, edges):
    counts, edges = np.histogram(values, edges)
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)))


def made_tokens(**more):
    given = {
        "source": "acts.safetensors",
        "n_samples": 64,
        "n_tokens": N_TOKENS,
        "n_excluded": 64,
        "rules": ("first token of each sample",),
        "sha256": "ab" * 32,
    }
    return sae_subject.TokenSet(**given | more)


def made_description(name, *, prefixes=(), notes=(), **more):
    given = {
        "name": name,
        "path": f"{name}/params.npz",
        "format": "matryoshka" if prefixes else "gemma_scope",
        "architecture": "batchtopk" if prefixes else "jumprelu",
        "kind": "transcoder",
        "d_in": 64,
        "d_out": 64,
        "n_features": N_FEATURES,
        "dtype": "float32",
        "x": "mlp_input.4",
        "y": "mlp_out.4",
        "sha256": "cd" * 32,
    }
    return sae_subject.DictionaryDescription(**given | more, prefixes=prefixes, notes=notes)


def made_reconstruction(level, **more):
    errors = {"fvu": 0.01, "mse": 0.02, "mean_l0": 0.4, "cosine_similarity": None, "score": 9.0}
    given = {
        "mse": 2 * level,
        "mse_per_token": 128 * level,
        "mae": level,
        "fvu": level,
        "explained_variance": 1 - level,
        "explained_variance_centered": 1 - 0.98 * level,
        "explained_variance_legacy": 1 - 1.1 * level,
        "fvu_scalar_mean": level / 2,
        "fvu_about_zero": level / 2.1,
        "cosine_similarity": 1 - level / 3,
        "cosine_flat": 1 - level / 2,
        "l2_norm_in": 9.0,
        "l2_norm_out": 8.5,
        "l2_ratio": 0.95,
        "relative_reconstruction_bias": 1.01,
        "standard_errors": errors,
    }
    return sae_metrics.ReconstructionReport(**given | more)


def made_sparsity(l0_N):
    top = int(l0_N.max())
    return sae_metrics.SparsityReport(
        mean_l0=float(l0_N.mean()),
        median_l0=float(np.sort(l0_N)[(len(l0_N) - 1) // 2]),
        l0_std=float(l0_N.std(ddof=1)),
        min_l0=int(l0_N.min()),
        max_l0=top,
        mean_l1=float(1.5 * l0_N.mean()),
        l0_histogram=histogram(l0_N, np.arange(top + 2)),
    )


def made_absorption(n_pairs, prefixes):
    pairs = tuple(
        sae_weights.CosinePair(
            first=n,
            second=100 + 3 * n,
            cosine=(-1) ** n * (0.99 - 0.005 * n),
            prefixes=(0, n % 3) if prefixes else None,
        )
        for n in range(n_pairs)
    )
    total = N_FEATURES * (N_FEATURES - 1) // 2
    return sae_weights.AbsorptionReport(
        score=n_pairs / total,
        pairs_above_threshold=2 * n_pairs,
        threshold=0.9,
        unordered_pairs=n_pairs,
        unordered_pairs_positive=(n_pairs + 1) // 2,
        total_unordered_pairs=total,
        n_features_evaluated=N_FEATURES,
        n_zero_rows=0,
        pairs=pairs,
    )


def made_utilization(n_dead, **more):
    given = {
        "dead_count": n_dead,
        "dead_percentage": 100 * n_dead / N_FEATURES,
        "alive_count": N_FEATURES - n_dead,
        "total_features": N_FEATURES,
        "n_tokens": N_TOKENS,
        "dead_density_bound": 1 - 0.05 ** (1 / N_TOKENS),
        "dense_1_percentage": 61.3,
        "dense_10_percentage": 4.1,
        "n_dense": 314,
        "dense_threshold": 0.01,
        "mean_density": 0.02,
    }
    return sae_metrics.UtilizationReport(**given | more)


def made_prefixes(sizes, fvu, mean_l0):
    rows, before = [], 0
    for size in sizes:
        share = size / sizes[-1]
        rows.append(
            sae_metrics.PrefixReport(
                n_features=size,
                fvu=fvu + 0.4 * (1 - share**0.5),
                mse=1.0,
                cosine_similarity=0.9,
                mean_l0=mean_l0 * share**0.6,
                dead_count=size // 100,
                n_new_features=size - before,
                redundancy=None if size < 2 else 0.001 * (1.2 - share),
            )
        )
        before = size
    return tuple(rows)


def made_cosines(draw):
    most = draw.beta(4, 6, N_FEATURES)
    return sae_weights.CosineReport(
        max_decoder_cosine=percentiles(most),
        max_decoder_abs_cosine=percentiles(most + 0.01),
        max_encoder_cosine=percentiles(most / 2),
        encoder_decoder_cosine=None,
        encoder_norm=percentiles(1 + most),
        decoder_norm=percentiles(np.ones(N_FEATURES)),
        encoder_bias=percentiles(-most),
    )


def made_dictionary(name="ours", *, seed=0, fvu=0.3, mean_l0=40, prefixes=(), n_pairs=5, **more):
    """One dictionary; `more` replaces parts of its report."""
    draw = np.random.default_rng(seed)
    l0_N = draw.negative_binomial(4, 4 / (4 + mean_l0), N_TOKENS)
    n_dead = 6 + seed
    density_D = 10 ** draw.normal(-2, 0.6, N_FEATURES - n_dead)
    edges = np.linspace(-5, 1, 49)
    sparsity = made_sparsity(l0_N)
    given = {
        "sae": made_description(name, prefixes=prefixes),
        "tokens": made_tokens(),
        "absorption": made_absorption(n_pairs, prefixes),
        "feature_utilization": made_utilization(n_dead),
        "sparsity": sparsity,
        "reconstruction": made_reconstruction(fvu),
        "activation_stats": sae_metrics.ActivationReport(
            max_activation=95.4, mean_activation=1.37, n_active=int(l0_N.sum())
        ),
        "cosines": made_cosines(draw),
        "density": sae_metrics.DensityReport(
            log10_density=histogram(np.log10(density_D), edges), densest=((3, 0.4), (9, 0.31))
        ),
        "prefixes": made_prefixes(prefixes, fvu, sparsity.mean_l0) if prefixes else (),
    }
    return sae_eval.DictionaryReport(**given | more)


_COMPARED = {
    "reconstruction.fvu": 0.01,
    "reconstruction.cosine_similarity": 0.002,
    "sparsity.mean_l0": 0.5,
    "feature_utilization.dead_percentage": None,
}
"""What the dictionaries are compared by, and the error of each difference."""


def made_difference(first, second, metric, error):
    label, better = METRICS[metric].label, METRICS[metric].better
    values = [value_at(each, metric) for each in (first, second)]
    gap = None if None in values else values[0] - values[1]
    if gap is None:
        error, better = None, "none"
    is_tie = not gap if error is None else abs(gap) < 2 * error
    ahead = first if ((gap or 0) < 0) == (better == "lower") else second
    return sae_eval.MetricDifference(
        metric=metric,
        label=label,
        better=better,
        first=first.sae.name,
        second=second.sae.name,
        difference=gap,
        standard_error=error,
        winner=None if is_tie or better == "none" else ahead.sae.name,
        is_tie=is_tie,
    )


def made_ranking(dictionaries, metric):
    label, better = METRICS[metric].label, METRICS[metric].better
    values = {each.sae.name: value_at(each, metric) for each in dictionaries}
    best = {"lower": min, "higher": max}.get(better)
    known = {name: value for name, value in values.items() if value is not None}
    winner = None if best is None else best(known, key=known.get)
    return sae_eval.RankedMetric(
        metric=metric, label=label, better=better, values=values, winner=winner
    )


def made_evaluation(*dictionaries, **more):
    """A report of these dictionaries, compared as far as there are several."""
    given = {"tokens": dictionaries[0].tokens, "dictionaries": dictionaries}
    if len(dictionaries) > 1:
        pairs = [(a, b) for n, a in enumerate(dictionaries) for b in dictionaries[n + 1 :]]
        given["metrics"] = tuple(made_ranking(dictionaries, each) for each in _COMPARED)
        given["differences"] = tuple(
            made_difference(*pair, *each) for pair in pairs for each in _COMPARED.items()
        )
    return sae_eval.EvaluationReport(**given | more)


def made_pair(**more):
    """A nested dictionary and one that is not."""
    ours = made_dictionary("ours", fvu=0.21, prefixes=(32, 128, 256, 512))
    return made_evaluation(ours, made_dictionary("google", seed=1, fvu=0.28, mean_l0=61), **more)
