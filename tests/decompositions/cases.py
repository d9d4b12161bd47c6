"""Runs to read: the golden ones, and small ones written here."""

import functools
from pathlib import Path

import numpy as np
import torch
import yaml

from actcli.decompositions import load_target, open_decomposition
from actcli.models.qk import qk_layers

DATA = Path(__file__).parent.parent / "data" / "qk-contrib"
RUNS = DATA / "runs"
GOLDEN_RUNS = ("mha_exact", "mha_noisy", "gqa_noisy", "bias_noisy")
CASES = ((0, 5, 1), (1, 11, 3), (2, 15, 0))  # sample, query, layer


@functools.cache
def parts():
    with np.load(RUNS / "parts.npz") as file:
        return dict(file)


@functools.cache
def opened(run):
    """Adapter, decomposition and layers of a golden run."""
    spec = f"spd:{RUNS / run}"
    adapter = load_target(spec)
    return adapter, open_decomposition(spec, adapter), qk_layers(adapter, range(adapter.n_layers))


def state_of(run):
    return torch.load(RUNS / run / "model_0.pth", weights_only=True)


def config_of(run):
    return yaml.safe_load((RUNS / run / "final_config.yaml").read_text())


def sizes_of(run):
    place = DATA / "pretrain" / Path(config_of(run)["pretrained_model_name"]).parts[-3]
    return yaml.safe_load((place / "model_config.yaml").read_text())


def write_run(folder, state, config, sizes=None, step=0):
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(state, folder / f"model_{step}.pth")
    (folder / "final_config.yaml").write_text(yaml.safe_dump(config))
    if sizes is not None:
        (folder / "model_config.yaml").write_text(yaml.safe_dump(sizes))
    return f"spd:{folder}"


def exact_components(target, modules):
    """Components that give the weights of these modules, in the names of a checkpoint."""
    state = {}
    for module in modules:
        weight = target[f"{module}.weight"].float()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        name = module.replace(".", "-")
        state[f"_components.{name}.V"] = right.T.contiguous()
        state[f"_components.{name}.U"] = (left * values).T.contiguous()
    return state


def module_inputs(adapter, modules, ids):
    """What modules read in one forward."""
    found = {}
    handles = [
        adapter.net.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: found.__setitem__(name, args[0][0])
        )
        for name in modules
    ]
    with torch.no_grad():
        adapter.forward({"tokens": torch.as_tensor(ids)[None]})
    for handle in handles:
        handle.remove()
    return found
