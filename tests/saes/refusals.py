"""Small files to break, and what is said of them."""

import json

import pytest
from safetensors.torch import save_file

from actcli.errors import ModelError
from tests.saes.cases import opened, random

D, I = 10, 6  # noqa: E741


def state(**changes):
    w = {
        "W_enc": random(I, D), "b_enc": random(D), "W_dec": random(D, I), "b_dec": random(I)
    }  # fmt: skip
    return {key: value for key, value in {**w, **changes}.items() if value is not None}


def saelens(tmp_path, tensors=None, **config):
    save_file(state() if tensors is None else tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    return tmp_path


def refused(path, message, error=ModelError, **options):
    with pytest.raises(error, match=message):
        opened(path, **options)
