"""Who wins, by how much, and when nobody does."""

import hashlib
import math

import pytest
import torch

from actcli.analysis.sae_compare import Judged, compare
from actcli.analysis.sae_pass import Candidate, DictionaryPass
from actcli.errors import UsageError
from actcli.reports.sae_eval import DictionaryReport
from actcli.reports.sae_glossary import METRICS, value_at
from actcli.reports.sae_metrics import LossReport
from actcli.reports.sae_subject import DictionaryDescription, TokenSet
from actcli.reports.sae_weights import AbsorptionReport, CosineReport, Percentiles
from tests.analysis.test_sae_pass import random_dictionary
from tests.analysis.test_sae_pass_errors import _draw, _jackknife, _pair, _slow

SOME = Percentiles(mean=0.5, min=0, p01=0, p10=0, median=0.5, p90=1, p99=1, max=1)
COSINES = CosineReport(
    max_decoder_cosine=SOME,
    max_decoder_abs_cosine=SOME,
    max_encoder_cosine=SOME,
    encoder_decoder_cosine=None,
    encoder_norm=SOME,
    decoder_norm=SOME,
    encoder_bias=None,
)
ABSORPTION = AbsorptionReport(
    score=0.25,
    pairs_above_threshold=0,
    threshold=0.9,
    unordered_pairs=0,
    unordered_pairs_positive=0,
    total_unordered_pairs=0,
    n_features_evaluated=40,
    n_zero_rows=0,
    pairs=(),
)
DESCRIPTION = DictionaryDescription(
    name="one",
    path="one",
    format="none",
    architecture="relu",
    kind="transcoder",
    d_in=12,
    d_out=9,
    n_features=40,
    dtype="float32",
    x="x",
    y="y",
    sha256="",
)


def judged(reports, results):
    return [Judged(one, each.sums) for one, each in zip(reports, results, strict=True)]


def _report(name, result, *, y="y", width=9, score=0.25, tokens="same", **changes):
    token_set = TokenSet(
        source="draws",
        n_samples=60,
        n_tokens=result.utilization.n_tokens,
        n_excluded=0,
        sha256=hashlib.sha256(tokens.encode()).hexdigest(),
    )
    return DictionaryReport(
        sae=DESCRIPTION.model_copy(update={"name": name, "y": y, "d_out": width}),
        tokens=token_set,
        absorption=ABSORPTION.model_copy(update={"score": score}),
        feature_utilization=result.utilization,
        sparsity=result.sparsity,
        reconstruction=result.reconstruction,
        activation_stats=result.activation_stats,
        cosines=COSINES,
        density=result.density,
        **changes,
    )


def _evaluated(dictionaries, *, seed=0, samples=60):
    x_NI, y_NO, samples_N = _draw(seed, samples=samples)
    own = DictionaryPass([Candidate(each, "x", "y") for each in dictionaries])
    own.add({"x": x_NI, "y": y_NO}, samples_N)
    return own.results()


def _compared(results, names=("one", "two", "three"), **changes):
    reports = [
        _report(name, result, **changes) for name, result in zip(names, results, strict=False)
    ]
    return compare(judged(reports, results))


def _of(found, path):
    return [each for each in found if each.metric == path]


def test_winners_and_ties():
    """Far apart, one wins; its twin ties, and then nobody is the best of all."""
    good, _other = _pair()
    bad = random_dictionary(seed=3)
    twin = random_dictionary(seed=1, b_dec_O=torch.full((9,), 1.5))
    twin.W_dec_DO.copy_(good.W_dec_DO)
    results = _evaluated([good, bad, twin])
    found = _compared(results[:2])
    for path, better in (
        ("reconstruction.fvu", "lower"),
        ("reconstruction.mse", "lower"),
        ("reconstruction.cosine_similarity", "higher"),
        ("reconstruction.explained_variance_legacy", "higher"),
    ):
        (ranked,), (pair,) = _of(found.metrics, path), _of(found.differences, path)
        assert (ranked.winner, pair.winner, ranked.better) == ("one", "one", better)
        assert (pair.difference < 0) == (better == "lower")
        assert abs(pair.difference) > 2 * pair.standard_error
        assert ranked.values["one"] - ranked.values["two"] == pair.difference
    (active,) = _of(found.metrics, "sparsity.mean_l0")
    assert active.winner is None
    (again,) = _of(compare_swapped(results[:2]).differences, "reconstruction.fvu")
    assert again.winner == "one"
    found = _compared(results)
    (ranked,) = _of(found.metrics, "reconstruction.fvu")
    assert ranked.winner is None
    ties = {(each.first, each.second): each for each in _of(found.differences, ranked.metric)}
    assert [ties[pair].is_tie for pair in (("one", "two"), ("one", "three"), ("two", "three"))] == [
        *(False, True, False),
    ]
    assert ties["one", "three"].winner is None
    assert ties["two", "three"].winner == "three"


def compare_swapped(results):
    """The same two dictionaries, in the other order."""
    return _compared(results[::-1], names=("two", "one"))


def test_paired_error():
    """The error of a difference is the jackknife's, far below that of either value."""
    pair = _pair()
    pair[1].W_enc_ID.copy_(pair[0].W_enc_ID)
    x_NI, y_NO, samples_N = _draw(0)
    found = _compared(_evaluated(pair))

    def difference(kept):
        one, other = (_slow(own, x_NI[kept], y_NO[kept]) for own in pair)
        return {name: one[name] - other[name] for name in ("fvu", "cosine_similarity", "mean_l0")}

    for name, expected in _jackknife(difference, samples_N).items():
        part = "sparsity" if name == "mean_l0" else "reconstruction"
        (own,) = _of(found.differences, f"{part}.{name}")
        assert own.standard_error == pytest.approx(expected, rel=0.06)


def test_the_rule_of_two_errors():
    """A difference just below two errors ties, one just above wins."""
    results = _evaluated(_pair())
    (fvu,) = _of(_compared(results).differences, "reconstruction.fvu")
    assert fvu.is_tie == (abs(fvu.difference) < 2 * fvu.standard_error)
    for times, is_tie in ((1.99, True), (2.01, False)):
        value = results[1].reconstruction.fvu + times * fvu.standard_error
        shifted = results[0].reconstruction.model_copy(update={"fvu": value})
        reports = [_report("one", results[0]), _report("two", results[1])]
        reports[0] = reports[0].model_copy(update={"reconstruction": shifted})
        (found,) = _of(compare(judged(reports, results)).differences, "reconstruction.fvu")
        assert (found.is_tie, found.winner) == (is_tie, None if is_tie else "two")


def test_metrics_without_errors():
    """Any difference wins; equal ones tie; what nobody has does not appear."""
    results = _evaluated(_pair())
    sums = [each.sums for each in results]
    loss = LossReport(
        ce_original=1,
        ce_spliced=2,
        ce_zero=3,
        ce_recovered=0.5,
        kl_spliced=1,
        kl_zero=2,
        kl_recovered=None,
        n_tokens=9,
        n_predictions=8,
    )
    reports = [_report("one", results[0], loss=loss), _report("two", results[1], score=0.5)]
    found = compare([Judged(*each) for each in zip(reports, sums, strict=True)])
    (score,) = _of(found.differences, "absorption.score")
    assert (score.winner, score.difference, score.standard_error) == ("one", -0.25, None)
    (same,) = _of(found.differences, "cosines.max_decoder_cosine.mean")
    assert (same.winner, same.is_tie, same.difference) == (None, True, 0)
    (ce,) = _of(found.differences, "loss.ce_recovered")
    assert (ce.winner, ce.difference, ce.is_tie) == (None, None, False)
    assert not _of(found.metrics, "loss.kl_recovered")
    assert not _of(found.metrics, "cosines.encoder_decoder_cosine.mean")


def test_no_nan():
    """Values that are not finite count as undefined."""
    results = _evaluated(_pair())
    odd = [_report("one", results[0], score=math.nan), _report("two", results[1], score=0.5)]
    found = compare(judged(odd, results))
    (score,) = _of(found.metrics, "absorption.score")
    assert (score.values, score.winner) == ({"one": None, "two": 0.5}, None)


def test_refusals():
    """Different targets and different tokens are not compared."""
    results = _evaluated(_pair())
    one = _report("one", results[0])
    for changes in ({"y": "z"}, {"width": 10}):
        with pytest.raises(UsageError, match="different targets"):
            compare(judged([one, _report("two", results[1], **changes)], results))
    with pytest.raises(UsageError, match="different tokens"):
        compare(judged([one, _report("two", results[1], tokens="others")], results))
    (fewer,) = _evaluated([_pair()[1]], samples=40)
    with pytest.raises(UsageError, match="different tokens"):
        compare(judged([one, _report("two", fewer)], [results[0], fewer]))


def test_every_metric_is_there():
    """Each path leads somewhere, and those of the seed are among them."""
    report = _report("one", _evaluated(_pair())[0])
    for path in METRICS:
        value_at(report, path)
    better = {each.path: each.better for each in METRICS.values()}
    assert better["reconstruction.fvu"] == better["absorption.score"] == "lower"
    assert better["reconstruction.cosine_similarity"] == "higher"
    assert better["sparsity.mean_l0"] == "none"
