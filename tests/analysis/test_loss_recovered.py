"""Cross-entropy and KL recovered: SAELens' own figures, and a slow version in float64."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.analysis.loss_recovered import measure_losses, row_losses
from actcli.analysis.sae_formulas import error_of

GOLDEN = Path(__file__).parents[1] / "data/sae-eval/golden"


@dataclass(frozen=True)
class Chunk:
    original_RV: torch.Tensor
    other_RV: torch.Tensor
    next_R: torch.Tensor


@dataclass(frozen=True)
class Pair:
    kind: str
    numbers: tuple
    whole: Chunk
    size: int = 5

    def chunks(self):
        for start in range(0, len(self.whole.next_R), self.size):
            part = slice(start, start + self.size)
            whole = self.whole
            yield Chunk(whole.original_RV[part], whole.other_RV[part], whole.next_R[part])


@dataclass(frozen=True)
class Batch:
    made: tuple
    samples_N: np.ndarray

    def pairs(self):
        yield from self.made


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "loss_recovered.npz") as found:
        arrays = {key: torch.from_numpy(found[key]) for key in found.files}
    return arrays, json.loads((GOLDEN / "loss_recovered.json").read_text())["metrics"]


def pairs_of(arrays):
    tokens = arrays["tokens"]
    next_BT = torch.cat([tokens[:, 1:], torch.full((len(tokens), 1), -1)], dim=1)
    counts_BT = ~torch.isin(tokens, arrays["ignore_tokens"])
    original = arrays["logits_original"][counts_BT]
    for kind, key in (("zero", "logits_zero"), ("spliced", "logits_sae")):
        yield Pair(kind, (0,), Chunk(original, arrays[key][counts_BT], next_BT[counts_BT]))


def samples_of(arrays):
    counts_BT = ~torch.isin(arrays["tokens"], arrays["ignore_tokens"])
    return counts_BT.nonzero()[:, 0].numpy()


def test_means_and_scores_of_saelens(golden):
    arrays, expected = golden
    ((report, _estimates),) = measure_losses(
        [Batch(tuple(pairs_of(arrays)), samples_of(arrays))], n_dictionaries=1
    )
    found = {
        "kl_div_with_sae": report.kl_spliced,
        "kl_div_with_ablation": report.kl_zero,
        "ce_loss_with_sae": report.ce_spliced,
        "ce_loss_without_sae": report.ce_original,
        "ce_loss_with_ablation": report.ce_zero,
        "kl_div_score": report.kl_recovered,
        "ce_loss_score": report.ce_recovered,
    }
    assert found == pytest.approx(expected, abs=1e-5)
    counts_BT = arrays["tokens"] != 0
    assert report.n_tokens == int(counts_BT.sum())
    assert report.n_predictions == int(counts_BT[:, :-1].sum())


def test_every_token_of_saelens(golden):
    arrays, _expected = golden
    tokens = arrays["tokens"]
    next_R = torch.cat([tokens[:, 1:], torch.full((len(tokens), 1), -1)], dim=1).flatten()
    for key, suffix in (("sae", "sae"), ("zero", "ablation")):
        losses = row_losses(
            arrays["logits_original"].flatten(0, 1), arrays[f"logits_{key}"].flatten(0, 1), next_R
        )
        for found, name in (
            (losses.kl_R.view(tokens.shape), f"kl_div_with_{suffix}_per_token"),
            (losses.ce_other_R.view(tokens.shape)[:, :-1], f"ce_loss_with_{suffix}_per_token"),
            (losses.ce_original_R.view(tokens.shape)[:, :-1], "ce_loss_without_sae_per_token"),
        ):
            torch.testing.assert_close(found.float(), arrays[name], rtol=1e-5, atol=1e-5)
        assert not losses.ce_other_R.view(tokens.shape)[:, -1].any()


def test_a_slow_version():
    generator = np.random.default_rng(0)
    z, q = generator.normal(0, 4, (2, 6, 9))
    following = np.array([3, -1, 8, 0, 2, -1])
    losses = row_losses(
        torch.from_numpy(z).float(), torch.from_numpy(q).float(), torch.from_numpy(following)
    )
    for row in range(6):
        p_z = np.exp(z[row]) / np.exp(z[row]).sum()
        p_q = np.exp(q[row]) / np.exp(q[row]).sum()
        kl = sum(p_z[v] * np.log(p_z[v] / p_q[v]) for v in range(9))
        assert float(losses.kl_R[row]) == pytest.approx(kl, rel=1e-5)
        token = following[row]
        ce = (-np.log(p_z[token]), -np.log(p_q[token])) if token >= 0 else (0, 0)
        assert float(losses.ce_original_R[row]) == pytest.approx(ce[0], rel=1e-5)
        assert float(losses.ce_other_R[row]) == pytest.approx(ce[1], rel=1e-5)
        assert bool(losses.has_next_R[row]) == (token >= 0)


def test_forbidden_tokens_lose_nothing():
    z = torch.tensor([[0.0, 1.0, -torch.inf]])
    losses = row_losses(z, torch.tensor([[1.0, 0.0, -torch.inf]]), torch.tensor([0]))
    plain = row_losses(z[:, :2], torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert float(losses.kl_R) == pytest.approx(float(plain.kl_R))


def test_batches_do_not_matter(golden):
    arrays, _expected = golden
    pairs, samples_N = tuple(pairs_of(arrays)), samples_of(arrays)
    whole = measure_losses(
        [Batch(tuple(replace(pair, size=99) for pair in pairs), samples_N)], n_dictionaries=1
    )
    parts = []
    for row in range(0, len(pairs[0].whole.next_R), 7):
        part = [
            replace(
                pair,
                whole=Chunk(
                    pair.whole.original_RV[row : row + 7],
                    pair.whole.other_RV[row : row + 7],
                    pair.whole.next_R[row : row + 7],
                ),
            )
            for pair in pairs
        ]
        parts.append(Batch(tuple(part), samples_N[row : row + 7]))
    split = measure_losses(parts, n_dictionaries=1)
    assert split[0].report.standard_errors == pytest.approx(whole[0].report.standard_errors)
    errors = {"standard_errors"}
    assert split[0].report.model_dump(exclude=errors) == pytest.approx(
        whole[0].report.model_dump(exclude=errors), rel=1e-12
    )


def test_zero_is_shared_and_spliced_is_not():
    z, q, r = torch.randn(3, 4, 5)
    following = torch.tensor([1, 2, 3, -1])
    made = (
        Pair("zero", (0, 1), Chunk(z, q, following)),
        Pair("spliced", (0,), Chunk(z, r, following)),
        Pair("spliced", (1,), Chunk(z, z, following)),
    )
    found = measure_losses([Batch(made, np.zeros(4, np.int64))], n_dictionaries=2)
    first, second = (each.report for each in found)
    assert first.ce_zero == second.ce_zero
    assert first.kl_spliced > 0
    assert second.kl_spliced == 0
    assert second.ce_recovered == second.kl_recovered == 1
    assert first.n_predictions == 3


def test_what_cannot_be_defined_is_none():
    z = torch.randn(2, 5)
    same = Chunk(z, z, torch.tensor([1, 2]))
    pairs = (Pair("zero", (0,), same), Pair("spliced", (0,), same))
    (found,) = measure_losses([Batch(pairs, np.array([0, 1]))], n_dictionaries=1)
    assert found.report.ce_recovered is None
    assert found.report.kl_recovered is None
    assert set(found.estimates) == {"ce_original", "ce_spliced", "ce_zero", "kl_spliced", "kl_zero"}
    assert measure_losses([], n_dictionaries=1) == [None]


def test_errors_are_those_of_leaving_out_one_sample():
    """The jackknife over samples gives nearly the same standard errors, and paired ones."""
    generator = torch.Generator().manual_seed(1)
    z, near, nearer, off = torch.randn(4, 1200, 6, generator=generator)
    near, nearer, off = z + 0.5 * near, z + 0.45 * near + 0.1 * nearer, z + 2 * off
    following = torch.randint(0, 6, (1200,), generator=generator)
    samples_N = np.repeat(np.arange(60), 20)

    def measured(rows):
        made = [("zero", (0, 1), off), ("spliced", (0,), near), ("spliced", (1,), nearer)]
        pairs = [Pair(k, n, Chunk(z[rows], other[rows], following[rows])) for k, n, other in made]
        return measure_losses([Batch(tuple(pairs), samples_N[rows])], n_dictionaries=2)

    whole = measured(np.arange(1200))
    left_out = [measured(np.flatnonzero(samples_N != each)) for each in range(60)]
    for field in ("ce_recovered", "kl_recovered", "ce_spliced"):
        values = np.array([[getattr(each.report, field) for each in two] for two in left_out])
        apart = values[:, 0] - values[:, 1]
        slow = [np.sqrt(59 / 60 * ((v - v.mean()) ** 2).sum()) for v in (*values.T, apart)]
        psi = [each.estimates[field].psi_C for each in whole]
        found = [error_of(each) for each in (*psi, psi[0] - psi[1])]
        assert found == pytest.approx(slow, rel=0.05)
        assert whole[0].report.standard_errors[field] == found[0]
        assert found[2] < 0.7 * found[0]
