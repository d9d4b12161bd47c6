"""Small models and boards for the capture tests."""

import numpy as np
import torch
from safetensors.torch import save_file

from actcli.models import load_model
from actcli.models.encoder2048 import Encoder2048, EncoderConfig
from actcli.samples.boards import BoardSamples
from actcli.samples.steps import open_steps
from tests.golden import DATA

CONFIG = {
    "input_vocab_size": 17,
    "output_n_bins": 5,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-6,
    "use_qk_norm": True,
    "use_attention_sinks": True,
}


def save_model(folder, **changes):
    """Write a random encoder and return the folder's name."""
    config = EncoderConfig.model_validate(CONFIG | changes)
    torch.manual_seed(0)
    encoder = Encoder2048(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json())
    save_file(encoder.state_dict(), folder / "model.safetensors")
    return str(folder)


def make_adapter(folder, *, device="cpu", **changes):
    """A random encoder, loaded as users load theirs."""
    return load_model(save_model(folder, **changes), device=device)


def board_samples(count):
    """The first boards of the golden data set."""
    return BoardSamples(open_steps(str(DATA / "steps_single")), np.arange(count))
