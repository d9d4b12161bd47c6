"""The mean ratio about a mean that is known last: exact, from a sample, or said to be unknown."""

import numpy as np
import pytest
import torch

from actcli.analysis.sae_clusters import SampleClusters
from actcli.analysis.sae_held import HeldTargets
from actcli.analysis.sae_pass import Candidate, DictionaryPass
from tests.analysis.slow_sae import slow_features
from tests.analysis.test_sae_pass import random_dictionary

NAME = "explained_variance_legacy"
TOKENS, WIDTH, OF_SAMPLE = 9000, 48, 60


def _targets(order):
    """Tokens whose mean differs from sample to sample; the first of each is far off."""
    torch.manual_seed(3)
    samples_N = torch.arange(TOKENS) // OF_SAMPLE
    level_N1 = torch.linspace(-1, 1, TOKENS)[:, None]
    way_O = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0) * WIDTH**0.5
    y_NO = torch.randn(TOKENS, WIDTH) + torch.randn(TOKENS // OF_SAMPLE, WIDTH)[samples_N] + 5
    y_NO[::OF_SAMPLE] *= 20
    if order == "drifts":
        y_NO += 2 * level_N1 * way_O
    if order == "begins elsewhere":
        y_NO[: TOKENS // 10] += 8 * way_O
    if order == "jumps":
        y_NO += (level_N1 * 3).floor() * way_O
    return y_NO, samples_N.numpy()


def _evaluate(y_NO, samples_N, *, batch=500, **options):
    dictionary = random_dictionary(d_in=WIDTH, width=WIDTH, seed=4)
    own = DictionaryPass([Candidate(dictionary, "y", "y")], keep_acts=False, **options)
    for first in range(0, len(y_NO), batch):
        own.add({"y": y_NO[first : first + batch]}, samples_N[first : first + batch])
    return dictionary, own.results()[0]


def _slow(dictionary, y_NO):
    """The mean ratio and the standard fvu, in float64."""
    t_NO, r_NO = y_NO.double().numpy(), slow_features(dictionary, y_NO)[1]
    errors_N = ((t_NO - r_NO) ** 2).sum(1)
    apart_N = ((t_NO - t_NO.mean(0)) ** 2).sum(1)
    return (errors_N / apart_N).mean(), errors_N.sum() / apart_N.sum()


ORDERS = ("random", "drifts", "begins elsewhere", "jumps")


@pytest.mark.parametrize("order", ORDERS)
def test_all_kept(order):
    """As long as there is room it is exact, however the mean moves."""
    y_NO, samples_N = _targets(order)
    dictionary, found = _evaluate(y_NO, samples_N)
    ratio = 1 - getattr(found.reconstruction, NAME)
    assert ratio == pytest.approx(_slow(dictionary, y_NO)[0], rel=1e-6)
    assert not found.warnings


@pytest.mark.parametrize("batch", [130, 5000])
@pytest.mark.parametrize("part", [3, 8])
def test_random_order(batch, part):
    """With room for a part of the tokens it is right to 1e-4, and its error is the exact one's."""
    y_NO, samples_N = _targets("random")
    held_bytes = 4 * WIDTH * TOKENS // part
    dictionary, found = _evaluate(y_NO, samples_N, batch=batch, held_bytes=held_bytes)
    _dictionary, exact = _evaluate(y_NO, samples_N)
    ratio = 1 - getattr(found.reconstruction, NAME)
    assert ratio == pytest.approx(_slow(dictionary, y_NO)[0], rel=1e-4)
    assert abs(ratio - _slow(dictionary, y_NO)[0]) < found.sums.legacy.open / TOKENS
    one, other = (each.reconstruction.standard_errors[NAME] for each in (found, exact))
    assert one == pytest.approx(other, rel=0.02)
    assert one != other
    assert not found.warnings


@pytest.mark.parametrize("order", ORDERS[1:])
def test_moving_mean(order):
    """Where a sample cannot tell it there is none, and the reason; all else is as it was."""
    y_NO, samples_N = _targets(order)
    dictionary, found = _evaluate(y_NO, samples_N, held_bytes=4 * WIDTH * TOKENS // 8)
    assert getattr(found.reconstruction, NAME) is None
    assert found.reconstruction.standard_errors[NAME] is None
    assert "mean of its target y moves" in " ".join(found.warnings)
    ratio, fvu = _slow(dictionary, y_NO)
    assert found.reconstruction.fvu == pytest.approx(fvu, rel=1e-5)
    legacy = found.sums.legacy
    assert abs(legacy.total / legacy.n - ratio) < legacy.open / legacy.n


def _held(batch, *, tokens, width=4, room=2000):
    held, clusters = HeldTargets(width, held_bytes=4 * width * room), SampleClusters()
    for first in range(0, tokens, batch):
        numbers_N = torch.arange(first, min(first + batch, tokens))
        runs = clusters.runs((numbers_N // OF_SAMPLE).numpy())
        held.add(numbers_N[:, None].expand(-1, width).float(), numbers_N.float(), runs)
    return held, clusters


@pytest.mark.parametrize("batch", [7, 999, 60000])
def test_what_is_kept(batch):
    """The first ones, and others evenly: of each place in samples of 64, of each stretch."""
    held, clusters = _held(batch, tokens=60000)
    numbers_S, samples_S, t_SO, scales_S = held.tokens()
    assert 1000 < len(numbers_S) == held.count <= 2000
    assert numbers_S[:1000].tolist() == list(range(1000))
    later_S = numbers_S[1000:]
    assert (np.diff(numbers_S) > 0).all()
    assert np.bincount(later_S % 64, minlength=64).min() >= 5
    stretches = np.histogram(later_S, np.linspace(1000, 60000, 11))[0]
    assert stretches.max() - stretches.min() <= 4
    assert t_SO[:, 2].tolist() == scales_S.tolist() == numbers_S.tolist()
    assert (samples_S // clusters.width == numbers_S // OF_SAMPLE // clusters.width).all()
    assert held.keeps(np.arange(60000)).nonzero()[0].tolist() == numbers_S.tolist()


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_targets_of_any_size(scale):
    """Squares of ratios may be beyond float32; the figure and its error are not."""
    y_NO, samples_N = _targets("random")
    y_NO = y_NO[:300] * scale
    dictionary = random_dictionary(d_in=WIDTH, width=WIDTH, seed=4)
    own = DictionaryPass([Candidate(dictionary, "x", "y")], keep_acts=False)
    x_NI = torch.randn(300, WIDTH)
    own.add({"x": x_NI, "y": y_NO}, samples_N[:300])
    found = own.results()[0].reconstruction
    t_NO, r_NO = y_NO.double().numpy(), slow_features(dictionary, x_NI)[1]
    ratios_N = ((t_NO - r_NO) ** 2).sum(1) / ((t_NO - t_NO.mean(0)) ** 2).sum(1)
    assert 1 - getattr(found, NAME) == pytest.approx(ratios_N.mean(), rel=1e-5)
    assert found.standard_errors[NAME] is not None
