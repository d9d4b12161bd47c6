"""Folders of activation samples: as `sae-eval` writes them, and as the Matryoshka program does."""

import json
from pathlib import Path

from actcli.render.feature_files import write_folder
from actcli.reports.base import Histogram
from actcli.reports.feature_samples import (
    FeatureRecord,
    FeatureSample,
    FeatureStatistics,
    RankedFeature,
    SamplesSummary,
    SimilarFeature,
)

DATA = Path(__file__).parents[1] / "data" / "sae-eval"
GOLDEN = DATA / "ckpt/upstream/new_individual_sizes/activation_samples"
EVIL = '</script><script>document.title="broken"</script><!--'
WORDS = ("<bos>", " the", " capital", " of", " France", " is", " Paris", "\n", " `a|b`", EVIL)


def sample(feature, value, position, *, number=3, words=WORDS, side=3, acts=None):
    start, stop = max(0, position - side), min(len(words), position + side + 1)
    here = position - start
    texts = words[start:stop]
    ids = tuple(range(100 + start, 100 + stop))
    known = dict.fromkeys(range(start, stop), 0.0) | (acts or {}) | {position: value}
    return FeatureSample(
        feature_idx=feature,
        activation_value=value,
        tokens=ids[max(0, here - 1) : here + 1],
        text="".join(texts[max(0, here - 1) : here + 1]),
        position=position,
        context_tokens=ids,
        context_text="".join(texts),
        sample=number,
        context_start=start,
        context_texts=texts,
        context_activations=tuple(known[each] for each in range(start, stop)),
    )


def record(feature, *samples, similar=(), density=0.01, histogram=True):
    values = [each.activation_value for each in samples] or [0.0]
    return FeatureRecord(
        statistics=FeatureStatistics(
            feature_idx=feature,
            num_samples=len(samples),
            max_activation=max(values),
            mean_activation=sum(values) / len(values),
            std_activation=0.5,
            min_activation=min(values),
            activation_count=12345,
            all_time_max=max(values),
            active_count=round(density * 200_000),
            n_tokens=200_000,
            density=density,
            mean_when_active=0.75,
            std_when_active=0.25,
            histogram=Histogram(edges=(0.5, 0.75, 1.0, 9.5), counts=(1000, 0, 20))
            if histogram
            else None,
        ),
        top_samples=samples,
        similar=tuple(SimilarFeature(feature_idx=f, cosine=c) for f, c in similar),
    )


RECORDS = (
    record(
        42,
        sample(42, 9.5, 6, acts={4: 4.75, 5: 0.5, 3: None}),
        sample(42, 2.25, 0, number=1200),
        similar=[(7, 0.875), (500, -0.5)],
    ),
    record(7, sample(7, 3.0, 8), density=0.25),
    record(123456, sample(123456, 1.5, 9), density=0.0001, histogram=False),
)


def summary(records=RECORDS, **told):
    ranked = [
        RankedFeature(
            feature_idx=each.feature,
            max_activation=each.statistics.max_activation,
            num_samples=each.statistics.num_samples,
        )
        for each in records
    ]
    given = {
        "total_samples_seen": 54321,
        "total_samples_stored": 300,
        "num_features_tracked": 3,
        "avg_samples_per_feature": 100.0,
        "features_with_samples": tuple(sorted(each.feature for each in records)),
        "top_features_by_activation": tuple(ranked),
        "features_written": tuple(each.feature for each in records),
        "n_tokens": 200_000,
        "threshold": 0.1,
        "source": "a <dump>",
    }
    return SamplesSummary(**(given | told))


def write_ours(folder):
    folder.mkdir(parents=True)
    write_folder(folder, RECORDS, summary())
    return folder


def seed_sample(feature, value, position, *, words=WORDS, side=10):
    first, stop = max(0, position - side), min(len(words), position + side + 1)
    return {
        "feature_idx": feature,
        "activation_value": value,
        "tokens": list(range(100 + max(0, position - 1), 100 + position + 1)),
        "text": "".join(words[max(0, position - 1) : position + 1]),
        "position": position,
        "context_tokens": list(range(100 + first, 100 + stop)),
        "context_text": "".join(words[first:stop]),
    }


def write_seed(run):
    """A run of the Matryoshka program: features 8 and 17, and one that was never stored."""
    folder = run / "activation_samples"
    folder.mkdir(parents=True)
    (run / "checkpoint.pt").write_bytes(b"weights")
    for feature, samples in ((8, [(5.5, 4), (1.25, 6)]), (17, [(7.75, 0)])):
        values = [value for value, _position in samples]
        statistics = {
            "feature_idx": feature,
            "num_samples": 100,
            "max_activation": max(values),
            "mean_activation": sum(values) / len(values),
            "std_activation": 0.125,
            "min_activation": min(values),
            "activation_count": 77,
            "all_time_max": max(values),
        }
        body = {
            "statistics": statistics,
            "top_samples": [seed_sample(feature, *s) for s in samples],
        }
        write_json(folder / f"feature_{feature:05d}_samples.json", body)
    silent = {
        "feature_idx": 30,
        "num_samples": 0,
        "max_activation": 0.0,
        "mean_activation": 0.0,
        "activation_count": 0,
    }
    write_json(folder / "feature_00030_samples.json", {"statistics": silent, "top_samples": []})
    told = {
        "total_samples_seen": 154,
        "total_samples_stored": 200,
        "num_features_tracked": 2,
        "avg_samples_per_feature": 100.0,
        "features_with_samples": [8, 17],
        "top_features_by_activation": [
            {"feature_idx": 17, "max_activation": 7.75, "num_samples": 100},
            {"feature_idx": 8, "max_activation": 5.5, "num_samples": 100},
        ],
    }
    write_json(folder / "collection_summary.json", told)
    return folder


def write_json(path, body):
    path.write_text(json.dumps(body, indent=2), encoding="utf-8")
