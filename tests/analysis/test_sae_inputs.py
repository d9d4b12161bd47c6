"""Tokens that a dictionary was not made for are told."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actcli.analysis.sae_inputs import MeanSquares, check_widths, model_note, place_warnings
from actcli.errors import UsageError
from actcli.saes.activations import Threshold
from actcli.saes.dictionary import Dictionary, Origin, Place

D_IN, D_OUT, FEATURES = 6, 4, 9


def dictionary(**origin):
    fields = {
        "name": "ours",
        "path": Path("params.npz"),
        "format": "gemma_scope",
        "architecture": "jumprelu",
        "dtype": "float32",
    }
    return Dictionary(
        Origin(**fields | origin),
        torch.zeros(D_IN, FEATURES),
        torch.zeros(FEATURES),
        torch.zeros(FEATURES, D_OUT),
        torch.zeros(D_OUT),
        Threshold(torch.zeros(FEATURES)),
    )


WIDTHS = {"mlp_input.3": D_IN, "mlp_out.3": D_OUT, "mlp_act.3": 12}
KNOWN = {"mlp_input": D_IN, "attn_norm": D_IN, "mlp_out": D_OUT, "mlp_act": 12}


def test_widths():
    check_widths(dictionary(), x="mlp_input.3", y="mlp_out.3", widths=WIDTHS, known=KNOWN)
    reads = Place("blocks.3.ln2.hook_normalized", "mlp_input_normed", 3)
    with pytest.raises(UsageError) as info:
        check_widths(
            dictionary(reads=reads), x="mlp_act.3", y="mlp_out.3", widths=WIDTHS, known=KNOWN
        )
    message = str(info.value)
    assert "--x mlp_act.3 has 12 numbers per token, but ours reads 6" in message
    assert "blocks.3.ln2.hook_normalized" in message
    assert "of that width are mlp_input, attn_norm" in message
    with pytest.raises(UsageError, match=r"--y mlp_input\.3 has 6 .* ours writes 4; of .* mlp_out"):
        check_widths(dictionary(), x="mlp_input.3", y="mlp_input.3", widths=WIDTHS, known=KNOWN)
    with pytest.raises(UsageError, match="nothing here is of that width"):
        check_widths(dictionary(), x="a", y="a", widths={"a": 5}, known={"a": 5})


def test_places():
    reads, writes = Place("ln2.hook_normalized", "mlp_input_normed", 3), Place("out", "mlp_out", 3)
    one = dictionary(reads=reads, writes=writes, is_transcoder=True)
    assert place_warnings(one, x=("mlp_input_normed", 3), y=("mlp_out", 3)) == ()
    assert place_warnings(one, x=("anything", None), y=("else", None)) == ()
    site, layer = place_warnings(one, x=("mlp_input", 3), y=("mlp_out", 4))
    assert "reads mlp_input_normed (ln2.hook_normalized" in site
    assert "given mlp_input" in site
    assert "is of layer 3" in layer
    assert "given layer 4 of mlp_out" in layer


def test_targets():
    transcoder = dictionary(is_transcoder=True)
    (said,) = place_warnings(transcoder, x=("a", 1), y=("a", 1))
    assert "is a transcoder" in said
    (said,) = place_warnings(dictionary(is_transcoder=False), x=("a", 1), y=("b", 1))
    assert "is an SAE" in said
    assert place_warnings(dictionary(), x=("a", 1), y=("b", 1)) == ()


def test_models():
    one = dictionary(model="google/gemma-2-2b")
    for same in ("/models/gemma-2-2b/", "hf://google/gemma-2-2b@main", "gemma_2_2b", None):
        assert model_note(one, same) is None
    assert "trained on google/gemma-2-2b" in model_note(one, "gemma-2-9b")
    assert model_note(dictionary(), "gemma-2-9b") is None


def normalised(n=300, *, eps=1e-6):
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)) + 0.3
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def squares(*parts):
    found = MeanSquares("mlp_input.3")
    for each in parts:
        found.add(each)
    return found


def test_mean_square_1_is_what_normalised_tokens_have():
    one = dictionary(reads=Place("hook_normalized", "mlp_input_normed", 3))
    x = normalised()
    assert squares(x).warning(one) is None
    assert squares(x.bfloat16()[:100], x[100:]).warning(one) is None
    some_short = torch.cat([x, normalised(10) * 0.1])
    assert squares(some_short).warning(one) is None
    gain = 1 + 0.5 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    message = squares(x * gain).warning(one)
    mean = float((x * gain).double().square().mean())
    assert f"is {mean:.3g} on average" in message
    assert "these look like tokens with gain" in message
    assert "use mlp_input_normed" in message


def test_normalised_tokens_are_told_where_the_gain_is_wanted():
    one = dictionary(reads=Place("mlp.hook_in", "mlp_input", 3))
    assert "use mlp_input" in squares(normalised()).warning(one)
    assert squares(2 * normalised()).warning(one) is None
    for other in (dictionary(), dictionary(reads=Place("resid", "resid_mid", 3))):
        assert squares(normalised()).warning(other) is None
    assert squares().warning(one) is None


def test_the_first_tokens_are_enough():
    x = normalised(5000)
    x[4096:] *= 7
    found = squares(x[:3000], x[3000:], x)
    assert (found.n_tokens, found.n_off) == (4096, 0)
    assert replace(found).is_normed
