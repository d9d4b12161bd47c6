"""Activations replaced in a running model: against plain hooks on the models' own modules."""

import pytest
import torch

from actcli.analysis.loss_recovered import measure_losses
from actcli.capture.splice import Spliced, run_spliced
from actcli.errors import CaptureError
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

SITES = ("mlp_out", "attn_out", "layer_outputs", "resid_mid", "mlp_input")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_ids(tmp_path_factory.mktemp("ids") / "ids.npy")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return Adapters(tmp_path_factory.mktemp)


def write_output(module, new):
    """Replace what a module gives at all tokens but the first of a sample."""

    def hook(_module, args, output):
        value = (output[0] if isinstance(output, tuple) else output).clone()
        value[:, 1:] = new(args, value)[:, 1:]
        return (value, *output[1:]) if isinstance(output, tuple) else value

    return lambda net: net.get_submodule(module).register_forward_hook(hook)


CASES = {
    "llama": ("mlp_input.1", "mlp_out.1", "model.layers.1.mlp", lambda args, y: rebuilt(args[0])),
    "gemma2": (
        "mlp_out.1",
        "mlp_out.1",
        "model.layers.1.post_feedforward_layernorm",
        lambda args, y: rebuilt(y),
    ),
    "granite": (
        "mlp_input.1",
        "mlp_out.1",
        "model.layers.1.mlp",
        lambda args, y: rebuilt(args[0]) / 0.22,
    ),
    "gpt2": ("layer_outputs.1", "layer_outputs.1", "transformer.h.1", lambda args, y: rebuilt(y)),
    "gpt_neox": (
        "attn_out.1",
        "attn_out.1",
        "gpt_neox.layers.1.attention",
        lambda args, y: rebuilt(y),
    ),
    "cohere": ("mlp_out.1", "mlp_out.1", "model.layers.1.mlp", lambda args, y: rebuilt(y)),
    "mixtral": ("mlp_out.1", "mlp_out.1", "model.layers.1.mlp", lambda args, y: rebuilt(y)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch_tokens", [1, 30])
def test_against_plain_hooks(opened, samples, name, batch_tokens):
    adapter = opened(name)
    x, y, module, new = CASES[name]
    logits, places, following = gathered(
        adapter, samples, [Spliced(x, y, rebuilt)], batch_tokens=batch_tokens
    )
    assert places == [(n, t) for n, length in enumerate(LENGTHS) for t in range(1, length)]
    ids = samples.batch(range(len(LENGTHS))).stored["token_ids"]
    assert following == [int(ids[n, t + 1]) if t + 1 < LENGTHS[n] else -1 for n, t in places]
    zero = slowly(adapter, samples, [write_output(module, lambda args, y: torch.zeros_like(y))])
    spliced = slowly(adapter, samples, [write_output(module, new)])
    for key, expected in {("zero", (0,)): zero, ("spliced", (0,)): spliced}.items():
        torch.testing.assert_close(
            logits[key], torch.stack([expected[n][t] for n, t in places]), rtol=1e-3, atol=2e-4
        )
    assert float((logits["zero", (0,)] - logits["spliced", (0,)]).abs().max()) > 1e-2


def test_the_stream_between_attention_and_mlp(opened, samples):
    """By two hooks: the norm reads the new stream, and what the MLP adds carries the rest."""
    adapter = opened("llama")
    logits, places, _ids = gathered(
        adapter, samples, [Spliced("resid_mid.1", "resid_mid.1", rebuilt)]
    )
    kept = {}

    def norm(_module, args):
        new = args[0].clone()
        new[:, 1:] = rebuilt(new)[:, 1:]
        kept["difference"] = new - args[0]
        return (new,)

    expected = slowly(
        adapter,
        samples,
        [
            lambda net: net.get_submodule(
                "model.layers.1.post_attention_layernorm"
            ).register_forward_pre_hook(norm),
            lambda net: net.get_submodule("model.layers.1.mlp").register_forward_hook(
                lambda _module, _args, output: output + kept["difference"]
            ),
        ],
    )
    torch.testing.assert_close(
        logits["spliced", (0,)],
        torch.stack([expected[n][t] for n, t in places]),
        rtol=1e-3,
        atol=2e-4,
    )


@pytest.mark.parametrize("name", architectures.DECODERS)
def test_what_is_written_back_changes_nothing(opened, samples, name):
    adapter = opened(name)
    spliced = [
        Spliced(f"{site}.1", f"{site}.1", lambda x: x)
        for site in SITES
        if adapter.layer_points(site, 1) is not None
    ]
    if adapter.layer_points("mlp_input", 1) == adapter.layer_points("attn_norm", 1):
        with pytest.raises(CaptureError, match="attention and MLP both read it"):
            measure_losses(
                run_spliced(adapter, samples, spliced, rules=RULES, batch_tokens=60),
                n_dictionaries=len(spliced),
            )
        spliced = [each for each in spliced if each.y != "mlp_input.1"]
    assert len(spliced) >= 3
    reports = measure_losses(
        run_spliced(adapter, samples, spliced, rules=RULES, batch_tokens=60),
        n_dictionaries=len(spliced),
    )
    for each, (report, _estimates) in zip(spliced, reports, strict=True):
        assert abs(report.kl_spliced) < 1e-6, each.y
        assert report.ce_spliced == pytest.approx(report.ce_original, abs=1e-6)
        assert report.kl_zero > 2e-6, each.y
