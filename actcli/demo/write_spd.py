"""Write a decomposition in the folder form of an SPD run, and read it back."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from actcli.demo.spd import Components, Sizes

TARGET, TEXT = "demo://facts", "demo://facts-text"


def write_run(
    folder: Path, components: dict[str, Components], *, sizes: Sizes, fields: dict[str, int]
) -> None:
    """Write the weights as float16, without the target's, and the config; older steps go.

    `fields` are the config's seed, n_steps, batch_size and n_tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model_*.pth"):
        old.unlink()
    tensors = {
        key: value.detach().half().contiguous()
        for name, each in components.items()
        for key, value in _named(name, each)
    }
    torch.save(tensors, folder / f"model_{fields['n_steps']}.pth")
    config = _CONFIG.format(target=TARGET, text=TEXT, **fields, **sizes._asdict())
    (folder / "final_config.yaml").write_text(config, encoding="utf-8")


def read_run(folder: Path) -> dict[str, Components]:
    """Read what `write_run` wrote, in float32, by the dotted path of the module."""
    [path] = folder.glob("model_*.pth")
    tensors = {key: value.float() for key, value in torch.load(path, weights_only=True).items()}
    dashed = [key.split(".")[1] for key in tensors if key.endswith(".V")]
    return {name.replace("-", "."): _components(tensors, name) for name in dashed}


def _named(name: str, each: Components) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module by the names of an SPD run.

    There an importance function is a pair of layers for each component: W (C, in, out), b (C, out).
    """
    dashed = name.replace(".", "-")
    yield f"_components.{dashed}.V", each.V_HC
    yield f"_components.{dashed}.U", each.U_CO
    layers = f"ci_fn._ci_fns.{dashed}.layers"
    yield f"{layers}.0.W", each.W_in_CM[:, None, :]
    yield f"{layers}.0.b", each.b_in_CM
    yield f"{layers}.2.W", each.W_out_CM[:, :, None]
    yield f"{layers}.2.b", each.b_out_C[:, None]


def _components(tensors: dict[str, Tensor], dashed: str) -> Components:
    """Undo `_named`."""
    layers = f"ci_fn._ci_fns.{dashed}.layers"
    V_HC, U_CO = (tensors[f"_components.{dashed}.{letter}"] for letter in "VU")
    made = Components(V_HC, U_CO, n_hidden=tensors[f"{layers}.0.b"].shape[1])
    state = {
        "V_HC": V_HC,
        "U_CO": U_CO,
        "W_in_CM": tensors[f"{layers}.0.W"][:, 0],
        "b_in_CM": tensors[f"{layers}.0.b"],
        "W_out_CM": tensors[f"{layers}.2.W"][..., 0],
        "b_out_C": tensors[f"{layers}.2.b"][:, 0],
    }
    made.load_state_dict(state)
    return made.requires_grad_(False)


_CONFIG = """\
# A decomposition that ships with actcli, in the form of an SPD run; see README.md beside it.
seed: {seed}
n_mask_samples: 1
ci_config:
  mode: layerwise
  fn_type: mlp
  hidden_dims:
  - {n_hidden}
sampling: continuous
sigmoid_type: leaky_hard
module_info:
- module_pattern: model.layers.*.self_attn.q_proj
  C: {n_q}
- module_pattern: model.layers.*.self_attn.k_proj
  C: {n_k}
identity_module_info: null
use_delta_component: true
output_loss_type: kl
steps: {n_steps}
batch_size: {batch_size}
pretrained_model_class: transformers.LlamaForCausalLM
pretrained_model_path: null
pretrained_model_name: {target}
pretrained_model_output_attr: logits
tokenizer_name: {target}
task_config:
  task_name: lm
  max_seq_len: {n_tokens}
  dataset_name: {text}
  column_name: text
  is_tokenized: false
  streaming: false
  train_data_split: train
  eval_data_split: train
"""
