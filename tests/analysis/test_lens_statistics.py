"""The fused kernel against float64: golden files, slow loops, ties, saturation, and every cut.

Tensor legend: as in `actcli.analysis.lens_statistics`, and S texts, T positions.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actcli.analysis import lens_strips
from actcli.analysis.lens_statistics import METRICS, LensKernel
from actcli.analysis.lens_top import largest
from actcli.errors import UsageError
from actcli.models import load_model
from tests.analysis.slow_lens import slow_statistics

GOLDEN = Path(__file__).parents[1] / "data" / "logit-lens"
ARCHITECTURES = ("gemma2", "gpt2", "gpt_neox", "llama", "olmo2", "qwen3")
IN_GOLDEN = {name: name for name in METRICS} | {"top_ids": "topk_ids", "top_p": "topk_p"}
NOT_IN_GOLDEN = {"p_contrast", "rank_contrast", "resid_norm"}


@cache
def golden(architecture):
    """The unembedding and, by layer, text and position made rows, what is expected."""
    adapter = load_model(str(GOLDEN / architecture))
    stored = dict(np.load(GOLDEN / architecture / "expected.npz"))
    by_row = {
        name: each.reshape(5, 18, *each.shape[3:])
        for name, each in stored.items()
        if len(each) == 5
    }
    return adapter.unembedding, by_row | {"target": stored["target"].reshape(-1)}


class PlainHead:
    """Logits are the state itself: for rows made by hand."""

    device = torch.device("cpu")

    def __init__(self, vocab_size):
        self.vocab_size = self.d_model = vocab_size

    def normed(self, resid_RH):
        return resid_RH.float()

    def logits_into(self, normed_RH, out_RV):
        out_RV.copy_(normed_RH)

    def describe(self):
        return {}


def read_golden(architecture, **options):
    unembedding, expected = golden(architecture)
    states = list(torch.from_numpy(expected["resid"]))
    kernel = LensKernel(unembedding, **options)
    return kernel.read(states[-1], states, targets_R=expected["target"]), expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(set(METRICS) - NOT_IN_GOLDEN))
def test_every_column_at_every_layer_equals_the_golden_one(architecture, name):
    columns, expected = read_golden(architecture)
    wanted = expected[IN_GOLDEN[name]]
    if wanted.dtype.kind in "ib":
        assert np.array_equal(columns[name], wanted)
    else:
        assert np.abs(columns[name] - wanted).max() < 3e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_is_the_models_own_output(architecture):
    columns, expected = read_golden(architecture)
    logits = torch.from_numpy(expected["lens_logits"][-1])
    own = torch.log_softmax(logits, dim=-1)
    target = own[torch.arange(18), torch.from_numpy(expected["target"])]
    assert np.allclose(columns["nll_target_bits"][-1], -target / np.log(2), atol=1e-5)
    assert (columns["kl_to_final_bits"][-1] == 0).all()
    assert (columns["js_bits"][-1] == 0).all()
    assert (columns["cos_to_final"][-1] == 1).all()
    assert columns["top1_agree"][-1].all()


def test_norms_and_contrasts():
    unembedding, expected = golden("llama")
    states = list(torch.from_numpy(expected["resid"]))
    kernel = LensKernel(unembedding)
    ours = kernel.read(states[-1], states, targets_R=expected["target"])
    turned = kernel.read(
        states[-1], states, targets_R=np.zeros(18, int), contrasts_R=expected["target"]
    )
    assert np.array_equal(turned["p_contrast"], ours["p_target"])
    assert np.array_equal(turned["rank_contrast"], ours["rank_target"])
    assert np.isnan(ours["p_contrast"]).all()
    assert not ours["rank_contrast"].any()
    norms = np.sqrt((expected["resid"].astype(float) ** 2).sum(-1))
    assert ours["resid_norm"] == pytest.approx(norms, rel=1e-6)


def test_the_norm_of_the_next_block_is_another_lens():
    """The usual mistake: inner layers through the next block's norm, off by whole bits."""
    adapter = load_model(str(GOLDEN / "llama"))
    unembedding, expected = golden("llama")
    states = list(torch.from_numpy(expected["resid"]))
    with torch.no_grad():
        wrong = [
            adapter.net.model.layers[layer].input_layernorm if layer < 4 else None
            for layer in range(5)
        ]
        columns = LensKernel(unembedding).read(states[-1], states, decode=wrong)
    difference = np.abs(columns["entropy_bits"] - expected["entropy_bits"]).max(axis=1)
    assert (difference[:4] > 0.1).all()
    assert difference[4] < 1e-5


def test_without_the_soft_cap_gemma_2_is_another_model():
    unembedding, expected = golden("gemma2")
    assert unembedding.describe()["transform"] == "softcap"
    states = list(torch.from_numpy(expected["resid"]))

    class Uncapped(type(unembedding)):
        def logits_into(self, normed_RH, out_RV):
            torch.mm(normed_RH, unembedding._weight_VH.T, out=out_RV)

    bare = Uncapped.__new__(Uncapped)
    bare.__dict__ = unembedding.__dict__
    columns = LensKernel(bare).read(states[-1], states)
    assert np.abs(columns["kl_from_final_bits"] - expected["kl_from_final_bits"]).max() > 1e-2


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 17])
def test_chunks_and_strips_do_not_change_the_answer(rows, monkeypatch):
    whole, _expected = read_golden("gemma2")
    monkeypatch.setattr("actcli.analysis.lens_statistics._STRIP_BYTES", 2 * 101 * 4)
    cut, _expected = read_golden("gemma2", chunk_bytes=rows * 101 * 4 + 3)
    for name in METRICS:
        assert np.allclose(cut[name], whole[name], atol=2e-6, rtol=1e-5, equal_nan=True), name


def test_a_row_too_wide_for_a_chunk_is_a_chunk():
    whole, _expected = read_golden("gpt2")
    cut, _expected = read_golden("gpt2", chunk_bytes=1)
    assert np.array_equal(cut["top_ids"], whole["top_ids"])


@pytest.mark.parametrize("name", METRICS)
def test_each_column_alone(name):
    whole, _expected = read_golden("qwen3")
    alone, _expected = read_golden("qwen3", metrics=[name])
    assert list(alone) == [name]
    assert np.array_equal(alone[name], whole[name], equal_nan=True)


def test_the_final_state_is_computed_once():
    unembedding, expected = golden("gpt2")
    calls = []

    class Counting(type(unembedding)):
        def logits_into(self, normed_RH, out_RV):
            calls.append(len(out_RV))
            super().logits_into(normed_RH, out_RV)

    counting = Counting.__new__(Counting)
    counting.__dict__ = unembedding.__dict__
    states = list(torch.from_numpy(expected["resid"]))
    LensKernel(counting).read(states[-1], states)
    assert calls == [18] * 5
    LensKernel(counting).read(states[-1], states, decode=[torch.Tensor.float] * 5)
    assert calls == [18] * 11, "read another way it is not the final distribution"


LOGITS = st.sampled_from([-1e4, -200.0, -30.0, -1.0, 0.0, 0.5, 30.0, 1e4])


@given(st.lists(st.lists(LOGITS, min_size=7, max_size=7), min_size=2, max_size=6), st.data())
def test_hard_rows_equal_slow_loops(rows, data):
    k = data.draw(st.integers(1, 7))
    final, *others = torch.tensor(rows)
    targets = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=1))
    columns = LensKernel(PlainHead(7), top_k=k).read(
        final[None], [other[None] for other in others], targets_R=np.array(targets)
    )
    for place, other in enumerate(others):
        slow = slow_statistics(other, final, targets[0], k)
        for name, wanted in slow.items():
            found = columns[name][place, 0]
            assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5, nan_ok=True), name
            if np.asarray(found).dtype.kind in "ib":
                assert np.array_equal(found, wanted), name


def test_saturated_logits_give_numbers():
    saturated = torch.full((3, 400), -1e30)
    saturated[:, 7] = 1e30
    final = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    kernel = LensKernel(PlainHead(400))
    columns = kernel.read(final, [saturated / 1e20, saturated * 0 + 30], targets_R=np.full(3, 7))
    for name in set(METRICS) - NOT_IN_GOLDEN:
        assert np.isfinite(columns[name]).all(), name
    entropy = columns["entropy_bits"]
    assert (entropy[0] == 0).all()
    assert not np.signbit(entropy).any(), "never -0.0"
    assert entropy[1] == pytest.approx(np.log2(400), abs=1e-5)
    assert columns["kl_from_final_bits"][0].min() > 1e9, "no epsilon caps a divergence"
    assert columns["rest_mass"][0] == pytest.approx(0, abs=0)


def test_a_small_rest_is_not_lost_in_rounding():
    logits = torch.full((1, 40), -30.0)
    logits[0, 3] = 0.0
    columns = LensKernel(PlainHead(40), top_k=2).read(logits.clone(), [logits])
    assert columns["rest_mass"][0, 0] == pytest.approx(38 * np.exp(-30), rel=1e-3)


def test_ties_go_to_the_lower_id_and_share_the_better_rank():
    logits = torch.zeros(1, 3000)
    logits[0, [2999, 40, 2000]] = 5.0
    logits[0, 1500] = 6.0
    columns = LensKernel(PlainHead(3000), top_k=6).read(
        logits, [logits.clone()], targets_R=np.array([2999])
    )
    assert columns["top_ids"][0, 0].tolist() == [1500, 40, 2000, 2999, 0, 1]
    assert columns["rank_target"][0, 0] == 2


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([1, 4, 16]), st.integers(40, 700)
)
def test_block_search_is_a_stable_sort(seed, k, block, vocab):
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randint(-80, 0, (6, vocab), generator=generator).float() / 8
    logits_RV[::2] += torch.rand(3, vocab, generator=generator) / 16
    top = largest(logits_RV, k, block=block)
    wanted = torch.sort(logits_RV, dim=1, descending=True, stable=True)
    assert torch.equal(top.ids_Rk, wanted.indices[:, :k])
    assert torch.equal(top.values_Rk, wanted.values[:, :k])


def test_rows_without_a_target():
    unembedding, expected = golden("llama")
    states = list(torch.from_numpy(expected["resid"]))
    targets = np.where(np.arange(18) % 3, expected["target"], -1)
    columns = LensKernel(unembedding).read(states[-1], states, targets_R=targets)
    missing = targets < 0
    assert not columns["rank_target"][:, missing].any()
    assert np.isnan(columns["p_target"][:, missing]).all()
    assert np.isnan(columns["nll_target_bits"][:, missing]).all()
    assert np.array_equal(columns["rank_target"][:, ~missing], expected["rank_target"][:, ~missing])
    assert np.isfinite(columns["entropy_bits"]).all()


def test_half_precision_states_are_widened():
    unembedding, expected = golden("llama")
    states = [each.bfloat16() for each in torch.from_numpy(expected["resid"])]
    kernel = LensKernel(unembedding)
    half = kernel.read(states[-1], states)
    wide = kernel.read(states[-1].float(), [each.float() for each in states])
    assert np.allclose(half["entropy_bits"], wide["entropy_bits"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 0}, "top 0 tokens"),
        ({"top_k": 102}, "vocabulary of 101"),
        ({"metrics": ["entropy"]}, "did you mean 'entropy_bits'"),
    ],
)
def test_refuses(options, said):
    with pytest.raises(UsageError, match=said):
        LensKernel(golden("llama")[0], **options)


@pytest.mark.cuda
def test_on_cuda_it_is_the_same():
    on_cpu, expected = read_golden("gemma2")
    unembedding = load_model(str(GOLDEN / "gemma2"), device="cuda").unembedding
    states = list(torch.from_numpy(expected["resid"]).cuda())
    on_cuda = LensKernel(unembedding).read(states[-1], states, targets_R=expected["target"])
    for name in METRICS:
        assert np.allclose(on_cuda[name], on_cpu[name], atol=1e-4, equal_nan=True), name


def test_powers_of_two_stand_for_e():
    assert np.float64(lens_strips.LOG2_E) == np.log2(np.e)
