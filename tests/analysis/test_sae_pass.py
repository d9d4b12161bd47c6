"""A pass over the tokens, against slow versions; other libraries' figures are in `*_golden`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.analysis.sae_pass import Candidate, DictionaryPass
from actcli.errors import UsageError
from actcli.saes.activations import Threshold
from actcli.saes.dictionary import Dictionary, Origin
from tests.analysis.slow_sae import slow_activity, slow_features, slow_measures


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def evaluate(dictionary, x_NI, y_NO, *, batch=None, samples_N=None, **options):
    own = DictionaryPass([Candidate(dictionary, "x", "y")], **options)
    samples_N = np.arange(len(x_NI)) // 50 if samples_N is None else samples_N
    batch = batch or len(x_NI)
    for first in range(0, len(x_NI), batch):
        part = slice(first, first + batch)
        own.add({"x": x_NI[part], "y": y_NO[part]}, samples_N[part])
    return own.results()[0]


def random_dictionary(*, d_in=12, width=9, n_features=40, seed=0, **changes):
    draws = torch.Generator().manual_seed(seed)
    parts = {
        "origin": Origin("random", Path("random"), "none", "jumprelu", "float32"),
        "W_enc_ID": torch.randn(d_in, n_features, generator=draws),
        "b_enc_D": torch.randn(n_features, generator=draws),
        "W_dec_DO": torch.randn(n_features, width, generator=draws),
        "b_dec_O": torch.randn(width, generator=draws),
        "activation": Threshold(torch.rand(n_features, generator=draws) * 4),
    }
    return Dictionary(**{**parts, **changes})


def test_slow_version():
    """All figures of a random dictionary, with tokens, features and outputs that are 0."""
    dictionary = random_dictionary(W_dec_DO=torch.randn(40, 9), b_dec_O=torch.zeros(9))
    x_NI, y_NO = torch.randn(300, 12), torch.randn(300, 9) + 100
    dictionary.activation.threshold_D[:3] = 1e6
    x_NI[7] = -1e3 * dictionary.W_enc_ID.sum(1)
    y_NO[11] = 0
    acts_ND, r_NO = slow_features(dictionary, x_NI)
    found = evaluate(dictionary, x_NI, y_NO, batch=64)
    for name, value in slow_measures(y_NO, r_NO).items():
        assert getattr(found.reconstruction, name) == pytest.approx(value, rel=1e-5), name
    expected = slow_activity(acts_ND)
    assert found.density_D.tolist() == expected.pop("densities")
    parts = (found.sparsity, found.utilization, found.activation_stats)
    for name, value in expected.items():
        own = next(getattr(part, name) for part in parts if hasattr(part, name))
        assert own == pytest.approx(value, rel=1e-6), name
    assert expected["dead_count"] >= 3
    l0 = found.sparsity.l0_histogram
    assert sum(l0.counts) == 300
    assert sum(found.density.log10_density.counts) == found.utilization.alive_count


def test_lower_median():
    """Of an even number of tokens, the smaller of the two in the middle."""
    own = random_dictionary(
        d_in=5, n_features=5, W_enc_ID=torch.eye(5), b_enc_D=torch.zeros(5), activation=Threshold()
    )
    x_NI = torch.ones(4, 5).tril() * torch.tensor([[1.0], [0], [1], [1]])
    found = evaluate(own, x_NI, torch.randn(4, 9)).sparsity
    assert (found.median_l0, found.min_l0, found.max_l0) == (1, 0, 4)


def test_prefixes():
    """Each part by itself: its own new features, dead ones among them, and its own errors."""
    dictionary = random_dictionary(prefixes=(8, 20, 40))
    dictionary.activation.threshold_D[[1, 2, 12, 30, 31, 32]] = 1e6
    x_NI, y_NO = torch.randn(200, 12), torch.randn(200, 9)
    found = evaluate(dictionary, x_NI, y_NO, batch=60)
    acts_ND, _r_NO = slow_features(dictionary, x_NI)
    for own, (first, stop) in zip(found.prefixes, ((0, 8), (8, 20), (20, 40)), strict=True):
        part = acts_ND[:, :stop]
        r_NO = part @ dictionary.W_dec_DO[:stop].double().numpy() + dictionary.b_dec_O.numpy()
        expected = slow_measures(y_NO, r_NO)
        for name in ("fvu", "mse", "cosine_similarity"):
            assert getattr(own, name) == pytest.approx(expected[name], rel=1e-5), name
        assert own.mean_l0 == (part != 0).sum() / 200
        assert own.dead_count == (acts_ND[:, first:stop] == 0).all(0).sum()
        assert (own.n_features, own.n_new_features) == (stop, stop - first)
    assert all(each.dead_count >= n for each, n in zip(found.prefixes, (2, 1, 3), strict=True))


def test_large_offsets():
    """A mean 10,000 times the spread does not spoil the variance."""
    torch.manual_seed(0)
    y_NO = torch.randn(400, 9) + torch.linspace(1e3, 1e4, 9)
    dictionary = random_dictionary(W_dec_DO=torch.randn(40, 9) / 9, b_dec_O=y_NO.mean(0))
    x_NI = torch.randn(400, 12)
    y_NO[0] *= 30
    _acts, r_NO = slow_features(dictionary, x_NI)
    r_NO = np.asarray(r_NO, np.float32)
    for batch in (1, 37, 400):
        found = evaluate(dictionary, x_NI, y_NO, batch=batch).reconstruction
        expected = slow_measures(y_NO, r_NO)
        assert found.fvu == pytest.approx(expected["fvu"], rel=1e-4)
        assert found.explained_variance_legacy == pytest.approx(
            expected["explained_variance_legacy"], rel=1e-3
        )


def test_large_constant_error():
    """An error that is the same for all tokens, 10,000 times the others, does not hide these."""
    y_NO = torch.randn(400, 9) + torch.linspace(5e3, 1e4, 9)
    dictionary = random_dictionary(W_dec_DO=torch.randn(40, 9) / 9, b_dec_O=torch.zeros(9))
    x_NI = torch.randn(400, 12)
    _acts, r_NO = slow_features(dictionary, x_NI)
    expected = slow_measures(y_NO, r_NO)["explained_variance_centered"]
    for batch in (1, 37, 400):
        found = evaluate(dictionary, x_NI, y_NO, batch=batch).reconstruction
        assert found.explained_variance_centered == pytest.approx(expected, rel=1e-5), batch


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 77}, {"chunk_bytes": 700}])
def test_batches_and_chunks(options):
    """Nothing depends on how the tokens come."""
    x_NI, y_NO = torch.randn(240, 12), torch.randn(240, 9)
    dictionary = random_dictionary(prefixes=(8, 20, 40))
    whole, parts = evaluate(dictionary, x_NI, y_NO), evaluate(dictionary, x_NI, y_NO, **options)
    _all_close(whole.reconstruction.model_dump(), parts.reconstruction.model_dump())
    _all_close(whole.sparsity.model_dump(), parts.sparsity.model_dump())
    for one, other in zip(whole.prefixes, parts.prefixes, strict=True):
        _all_close(one.model_dump(), other.model_dump())
    assert (whole.density_D == parts.density_D).all()
    assert len(whole.sums.n_C) == len(parts.sums.n_C) == 5


def _all_close(one, other):
    for name, value in one.items():
        if isinstance(value, dict):
            _all_close(value, other[name])
        elif isinstance(value, str | None):
            assert other[name] == value, name
        else:
            assert other[name] == pytest.approx(value, rel=2e-6), name


def test_several_dictionaries():
    """Each gets what it would alone; features come back by dictionary."""
    x_NI, y_NO = torch.randn(90, 12), torch.randn(90, 9)
    one, other = random_dictionary(seed=1), random_dictionary(seed=2, width=12)
    candidates = [Candidate(one, "x", "y"), Candidate(other, "x", "x")]
    own = DictionaryPass(candidates, chunk_bytes=1000)
    samples_N = np.arange(90) // 9
    acts = own.add({"x": x_NI, "y": y_NO}, samples_N)
    first, second = own.results()
    alone = [
        evaluate(one, x_NI, y_NO, samples_N=samples_N),
        evaluate(other, x_NI, x_NI, samples_N=samples_N),
    ]
    _all_close(alone[0].reconstruction.model_dump(), first.reconstruction.model_dump())
    _all_close(alone[1].reconstruction.model_dump(), second.reconstruction.model_dump())
    expected = one.encode(x_NI)
    assert acts[0].tokens_M.tolist() == expected.tokens_M.tolist()
    assert acts[0].features_M.tolist() == expected.features_M.tolist()
    assert acts[0].n_tokens == 90
    assert own.add({"x": x_NI[:0], "y": y_NO[:0]}, samples_N[:0])[1].n_tokens == 0


def test_undefined():
    """A target that does not vary, no feature that fires, one sample: null, and words."""
    silent = random_dictionary(activation=Threshold(torch.tensor(1e9)))
    x_NI = torch.randn(64, 12)
    y_NO = torch.full((64, 9), 0.1)
    found = evaluate(silent, x_NI, y_NO, batch=10, samples_N=np.zeros(64, np.int64))
    undefined = (
        *("fvu", "explained_variance", "explained_variance_centered"),
        *("explained_variance_legacy", "fvu_scalar_mean"),
    )
    for name in undefined:
        assert getattr(found.reconstruction, name) is None, name
    assert set(found.reconstruction.standard_errors.values()) == {None}
    assert found.activation_stats.mean_activation is None
    assert found.activation_stats.max_activation is None
    assert found.utilization.dead_percentage == 100
    assert found.sparsity.mean_l0 == 0
    words = " ".join(found.warnings)
    assert "no variance" in words
    assert "no feature fires" in words
    assert "one sample" in words
    found.reconstruction.model_dump_json()


def test_one_feature_and_one_token():
    """The smallest dictionary and the smallest set of tokens."""
    small = random_dictionary(n_features=1, activation=Threshold())
    found = evaluate(small, torch.randn(1, 12), torch.randn(1, 9))
    assert found.sparsity.l0_std is None
    assert found.reconstruction.fvu is None
    assert found.utilization.total_features == 1


def test_zero_target():
    """A target of zeros has no direction and no length."""
    found = evaluate(random_dictionary(), torch.randn(20, 12), torch.zeros(20, 9)).reconstruction
    assert found.fvu_about_zero is None
    assert found.cosine_similarity is None
    assert found.cosine_flat is None
    assert found.l2_ratio is None
    assert found.relative_reconstruction_bias is None


def test_dead_bound():
    """A feature of the density of the bound stays silent with probability 5 %."""
    found = evaluate(random_dictionary(), torch.randn(500, 12), torch.randn(500, 9)).utilization
    assert (1 - found.dead_density_bound) ** 500 == pytest.approx(0.05)


def test_wrong_input():
    """Width, key, numbers, no token at all."""
    own = DictionaryPass([Candidate(random_dictionary(), "x", "y")])
    x_NI, y_NO, samples_N = torch.randn(4, 12), torch.randn(4, 9), np.zeros(4, np.int64)
    with pytest.raises(UsageError, match="no token"):
        own.results()
    with pytest.raises(UsageError, match=r"reads vectors of width 12.*\(4, 13\)"):
        own.add({"x": torch.randn(4, 13), "y": y_NO}, samples_N)
    with pytest.raises(UsageError, match="writes y, which is not there: x"):
        own.add({"x": x_NI}, samples_N)
    y_NO[2, 3] = torch.inf
    with pytest.raises(UsageError, match="not finite"):
        own.add({"x": x_NI, "y": y_NO}, samples_N)
