"""Runs with replaced activations: several dictionaries, which tokens count, what is refused."""

import copy

import pytest
import torch

from actcli.analysis.loss_recovered import measure_losses
from actcli.capture.splice import Spliced, run_spliced
from actcli.capture.token_rules import TokenRules
from actcli.capture.token_stream import open_model_tokens
from actcli.errors import ActcliError, UsageError
from actcli.models import load_model
from tests.capture.helpers import board_samples, make_adapter
from tests.capture.splice_helpers import (
    LENGTHS,
    RULES,
    Adapters,
    gathered,
    rebuilt,
    slowly,
    write_ids,
)
from tests.models import architectures


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_ids(tmp_path_factory.mktemp("ids") / "ids.npy")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return Adapters(tmp_path_factory.mktemp)


def test_several_dictionaries_and_targets(opened, samples):
    adapter = opened("llama")
    first = Spliced("mlp_input.1", "mlp_out.1", rebuilt)
    second = Spliced("layer_outputs.2", "layer_outputs.2", rebuilt)
    third = Spliced("mlp_out.1", "mlp_out.1", lambda x: x / 2)
    logits, _places, _ids = gathered(adapter, samples, [first, second, third])
    assert set(logits) == {
        ("zero", (0, 2)), ("spliced", (0,)), ("spliced", (2,)), ("zero", (1,)), ("spliced", (1,)),
    }  # fmt: skip
    for number, each in enumerate((first, second, third)):
        alone, *_rest = gathered(adapter, samples, [each])
        torch.testing.assert_close(logits["spliced", (number,)], alone["spliced", (0,)])
    together = measure_losses(
        run_spliced(adapter, samples, [first, second], rules=RULES, batch_tokens=20),
        n_dictionaries=2,
    )
    for found, each in zip(together, (first, second), strict=True):
        (alone,) = measure_losses(
            run_spliced(adapter, samples, [each], rules=RULES, batch_tokens=20), n_dictionaries=1
        )
        assert _means(found) == pytest.approx(_means(alone), rel=1e-6)


def _means(found):
    return found.report.model_dump(exclude={"standard_errors"})


def test_small_pieces_of_the_vocabulary(opened, samples, monkeypatch):
    adapter = opened("gemma2")
    spliced = [Spliced("mlp_out.1", "mlp_out.1", rebuilt)]
    whole, *_rest = gathered(adapter, samples, spliced)
    monkeypatch.setattr("actcli.capture.splice_logits._PIECE_BYTES", 40 * architectures.VOCAB * 2)
    for batch in run_spliced(adapter, samples, spliced, rules=RULES, batch_tokens=99):
        for pair in batch.pairs():
            assert max(len(chunk.next_R) for chunk in pair.chunks()) == 2
    pieces, *_rest = gathered(adapter, samples, spliced)
    for key, logits in whole.items():
        assert torch.equal(pieces[key], logits)


@pytest.mark.parametrize(
    "rules",
    [
        TokenRules(max_norm_multiple=1.02),
        TokenRules(exclude_first=True, max_norm_multiple=1.02, most_tokens=13),
        TokenRules(most_tokens=14, exclude_positions=(-1,)),
    ],
)
def test_the_same_tokens_count_as_in_a_stream(opened, samples, rules):
    adapter = opened("llama")
    stream = open_model_tokens(
        adapter,
        samples,
        places=["mlp_input.1", "mlp_out.1"],
        rules=rules,
        batch_tokens=11,
        normed=["mlp_input.1"],
    )
    expected = [
        place
        for batch in stream.batches()
        for place in zip(batch.samples_N.tolist(), batch.positions_N.tolist(), strict=True)
    ]
    reports = []
    for batch_tokens in (1, 22, 100):
        spliced = [Spliced("mlp_input.1", "mlp_out.1", rebuilt)]
        _logits, places, _ids = gathered(
            adapter, samples, spliced, rules=rules, batch_tokens=batch_tokens
        )
        assert places == expected
        run = run_spliced(adapter, samples, spliced, rules=rules, batch_tokens=batch_tokens)
        reports += measure_losses(run, n_dictionaries=1)
    assert len(expected) < sum(LENGTHS)
    for found in reports[1:]:
        assert _means(found) == pytest.approx(_means(reports[0]), rel=1e-4)


def test_the_model_is_as_it_was(opened, samples):
    adapter = opened("gpt2")
    before = slowly(adapter, samples, [])
    gathered(adapter, samples, [Spliced("resid_mid.1", "resid_mid.1", rebuilt)])
    for left, right in zip(before, slowly(adapter, samples, []), strict=True):
        assert torch.equal(left, right)


def test_the_built_in_model(tmp_path):
    adapter = load_model("demo://facts")
    samples = write_ids(tmp_path / "ids.npy", adapter.vocab_size, [12, 7, 12])
    spliced = [
        Spliced("mlp_input.4", "mlp_out.4", torch.zeros_like),
        Spliced("mlp_out.4", "mlp_out.4", lambda x: 0.9 * x),
    ]
    run = run_spliced(adapter, samples, spliced, rules=RULES, batch_tokens=50)
    nothing, most = (each.report for each in measure_losses(run, n_dictionaries=2))
    assert nothing.kl_spliced == nothing.kl_zero == most.kl_zero
    assert nothing.kl_recovered == 0
    assert 0 < most.kl_spliced < most.kl_zero
    assert (most.n_tokens, most.n_predictions) == (28, 25)


def refused(adapter, samples, spliced, rules=RULES):
    run = run_spliced(adapter, samples, spliced, rules=rules, batch_tokens=20)
    with pytest.raises(ActcliError) as info:
        measure_losses(run, n_dictionaries=len(spliced))
    return str(info.value)


def test_refusals(opened, samples, tmp_path):
    adapter = opened("llama")
    back = Spliced("mlp_out.2", "mlp_out.1", lambda x: x)
    assert "mlp_out.2 is computed after mlp_out.1" in refused(adapter, samples, [back])
    narrow = Spliced("mlp_out.1", "mlp_out.1", lambda x: x[:, :5])
    assert "is [12, 5], but mlp_out.1 is [12, 48]" in refused(adapter, samples, [narrow])
    wrong = Spliced("mlp_out.1", "mlp_out.1", lambda x: x * torch.nan)
    assert "NaN or infinite" in refused(adapter, samples, [wrong])
    normed = Spliced("mlp_input_normed.1", "mlp_input_normed.1", lambda x: x)
    assert "is computed from its input" in refused(adapter, samples, [normed])
    heads = Spliced("q.1", "q.1", lambda x: x)
    assert "expected one vector per token" in refused(adapter, samples, [heads])
    sae = Spliced("mlp_out.1", "mlp_out.1", lambda x: x)
    assert "no token of the samples counts" in refused(
        adapter, samples, [sae], TokenRules(exclude_positions=tuple(range(9)))
    )
    assert "predict the next one" in refused(opened("bert"), samples, [sae])
    boards = make_adapter(tmp_path / "boards")
    message = refused(boards, board_samples(3), [Spliced("mlp_out.1", "mlp_out.1", lambda x: x)])
    assert "2048 encoder" in message
    assert "are for language models" in message
    with pytest.raises(UsageError, match="there is no layer 7"):
        list(
            run_spliced(
                adapter,
                samples,
                [Spliced("mlp_out.7", "mlp_out.7", rebuilt)],
                rules=RULES,
                batch_tokens=9,
            )
        )


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gpt2"])
def test_half_precision(samples, tmp_path, name):
    half = copy.deepcopy(architectures.build(name)).to(torch.bfloat16)
    half.save_pretrained(tmp_path / name)
    adapter = load_model(str(tmp_path / name))
    sites = [
        site
        for site in ("mlp_out", "attn_out", "layer_outputs", "resid_mid")
        if adapter.layer_points(site, 1) is not None
    ]
    spliced = [Spliced(f"{site}.1", f"{site}.1", lambda x: x) for site in sites]
    run = run_spliced(adapter, samples, spliced, rules=RULES, batch_tokens=60)
    for report, _estimates in measure_losses(run, n_dictionaries=len(spliced)):
        assert 0 <= abs(report.kl_spliced) < 0.1 * report.kl_zero
