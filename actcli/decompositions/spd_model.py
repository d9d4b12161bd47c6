"""The model that an SPD run decomposed: from the run's own checkpoint, or from where it says.

Its sizes stand in `model_config.yaml` (a target of SPD's own classes) or in the configuration of
the package transformers; shapes alone would not tell heads, rotary base or epsilon.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from actcli.builtin import is_builtin
from actcli.decompositions.spd_checkpoint import find_checkpoint, read_checkpoint, read_state
from actcli.decompositions.spd_config import (
    SpdConfig,
    find_model_config,
    find_named,
    read_config,
    read_yaml,
)
from actcli.decompositions.spd_target import SIMPLE_CLASSES, SimpleTarget, load_simple
from actcli.errors import ModelError, UsageError, nearest
from actcli.models import find_model
from actcli.models.adapter import ModelAdapter
from actcli.models.source import DEFAULTS, LoadOptions

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_run_target(
    place: Path,
    *,
    target: str | None = None,
    device: str = "cpu",
    options: LoadOptions = DEFAULTS,
) -> ModelAdapter:
    """Load the model that a run decomposed.

    Args:
        place: the run's folder, or one of its checkpoints.
        target: the model in place of the one that the run names: anything that `--init` takes, or
            the folder of a model of SPD's own classes, of which only the sizes are read where the
            run has its weights.
        device: a torch device.
        options: dtype and the like.

    Raises:
        ModelError: it is not there, or of a class that is not known.
        UsageError: options that the target has no use for.
    """
    folder = folder_of(place)
    config = read_config(folder)
    find_checkpoint(place)  # a folder without weights is refused for that, whatever its target
    init = plain_target(folder, target)
    if init is not None:
        return find_model(init, options).load(device=device)
    simple = find_simple(folder, config, target)
    weights, file = _target_weights(place, config, target)
    holder = folder if (folder / "tokenizer.json").is_file() else Path(simple.where).parent
    adapter = load_simple(simple, weights, init=f"spd:{place}", folder=holder, file=file)
    _place(adapter, device, options)
    return adapter


def plain_target(folder: Path, target: str | None = None) -> str | None:
    """What to load as `--init`; None for a target of SPD's own classes.

    Raises:
        ModelError: it is a model of the package transformers that is not on this machine.
    """
    config = read_config(folder)
    if target is not None:
        return None if _is_simple(Path(target).expanduser()) else target
    named = config.target_name
    if named is not None and is_builtin(named):
        return named
    for place in (folder, find_named(folder, named)):
        if place is not None and (place / "config.json").is_file():
            return str(place)
    if config.is_plain:
        raise ModelError(
            f"{folder} decomposes {config.class_name} {named or ''}, which does not lie there: "
            f"give it with --target, as a folder or as hf://org/repo"
        )
    return None


def find_simple(folder: Path, config: SpdConfig, target: str | None) -> SimpleTarget:
    """The class and sizes of a target of SPD's own classes.

    Args:
        folder: the run.
        config: what it says.
        target: a folder or `model_config.yaml` to look at first.

    Raises:
        ModelError: neither is found, or the class is not known.
    """
    found = find_model_config(folder, config.target_name)
    if target is not None:
        path = Path(target).expanduser()
        is_config = path.suffix == ".yaml"
        found = (
            (path, read_yaml(path)) if is_config else find_model_config(path, str(path.resolve()))
        )
    if found is None:
        raise ModelError(
            f"{folder} does not say how many heads its target has: model_config.yaml is neither "
            f"there nor where the run says ({config.target_name}); give it with --target FOLDER"
        )
    where, fields = found
    named = fields.get("model_type") or config.class_name
    if named not in SIMPLE_CLASSES:
        raise ModelError(
            f"the target of {folder} is of the class {named}, which actcli cannot make; it knows "
            f"{', '.join(SIMPLE_CLASSES)} and models of the package transformers (--target); "
            f"{nearest(str(named), SIMPLE_CLASSES)}"
        )
    return SimpleTarget(named, fields, str(where))


def folder_of(place: Path) -> Path:
    """The run's folder, of the folder itself or of a checkpoint in it."""
    return place.parent if place.is_file() else place


def _place(adapter: ModelAdapter, device: str, options: LoadOptions) -> None:
    """Bring a model to its device and dtype; tables of positions stay in float32."""
    if options.device_map is not None:
        raise UsageError(
            f"{adapter.files.source.init} is loaded onto one device: leave out --device-map"
        )
    adapter.net.to(device)
    if options.dtype is not None:
        for parameter in adapter.net.parameters():
            parameter.data = parameter.data.to(_DTYPES[options.dtype])


def _is_simple(path: Path) -> bool:
    return path.suffix == ".yaml" or (
        path.is_dir()
        and not (path / "config.json").is_file()
        and find_model_config(path, None) is not None
    )


def _target_weights(
    place: Path, config: SpdConfig, target: str | None
) -> tuple[Mapping[str, Tensor], Path]:
    """The target's weights: those of the run, or else those of the training run it came from."""
    checkpoint = read_checkpoint(find_checkpoint(place))
    if checkpoint.target:
        return checkpoint.target, checkpoint.path
    named = (
        Path(target).expanduser() if target else find_named(folder_of(place), config.target_name)
    )
    files = [named] if named and named.is_file() and named.suffix == ".pt" else []
    if named and named.is_dir():
        files = sorted(named.rglob("model_step_*.pt"), key=_step)
    if not files:
        raise ModelError(
            f"{checkpoint.path} holds no weights of its target (target_model.*), and none lie "
            f"where it says ({config.target_name}); give the target with --target"
        )
    return read_state(files[-1]), files[-1]


def _step(file: Path) -> int:
    return int("".join(each for each in file.stem if each.isdigit()) or 0)
