"""What `--decomp` may say."""

import pytest

from actcli.decompositions import load_target, open_decomposition, target_of
from actcli.errors import UsageError
from tests.decompositions.cases import RUNS, opened


@pytest.mark.parametrize("spec", ["svd", "svd:8", "svd-head", "svd-head:2"])
def test_singular_vectors_are_of_any_model(spec):
    assert open_decomposition(spec, opened("gqa_noisy")[0]).name == spec
    assert target_of(spec) is None
    with pytest.raises(UsageError, match="name the model with --init"):
        load_target(spec)
    assert load_target(spec, target="demo://facts").vocab_size > 0


def test_a_run_of_a_class_of_its_own_has_no_init():
    assert target_of(f"spd:{RUNS / 'mha_noisy'}") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sdv", "names no decomposition: give spd:FOLDER, .*; did you mean 'svd'"),
        ("svd:", "names no decomposition"),
        ("svd:0", "whole number of at least 1, not '0'"),
        ("svd-head:-2", "whole number of at least 1, not '-2'"),
        ("svd:half", "whole number of at least 1, not 'half'"),
        ("spd:", "spd: needs a path"),
        ("spd:/no/such/folder", "there is nothing at /no/such/folder"),
        ("file:none.safetensors", "there is nothing at none.safetensors"),
        (str(RUNS / "mha_noisy"), f"for the run in that folder spd:{RUNS / 'mha_noisy'}"),
        (str(RUNS / "mha_noisy" / "model_0.pth"), "for that file spd:"),
        ("demo://facts", "nothing of the kind is built in under 'demo://facts'"),
    ],
)
def test_refuses_other_words(spec, message):
    with pytest.raises(UsageError, match=message):
        open_decomposition(spec, opened("mha_noisy")[0])
