"""`sae-eval --browse`: which experiments a folder holds."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.errors import SamplesError, UsageError, nearest
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from actcli.reports.feature_samples import Experiment

_LAYER = re.compile(r"layer[_-]?(\d+)", re.IGNORECASE)
_CHECKPOINTS = {
    "checkpoint.pt",
    "sae.pt",
    "ae.pt",
    "autoencoder.pt",
    "params.npz",
    "params.safetensors",
    "sae.safetensors",
    "sae_weights.safetensors",
}
"""As the programs call them whose dictionaries can be opened."""


def browse_folders(
    root: Path,
    *,
    output: Output,
    model: str | None = None,
    layer: int | None = None,
    experiment: str | None = None,
) -> None:
    """List the experiments under a folder: results/<model>/layer<L>/<experiment>, or any depth.

    An experiment is a folder that holds a checkpoint or activation samples.

    Args:
        root: where to look.
        output: where they are listed.
        model: only those of this model.
        layer: only those of this layer; 0 is one.
        experiment: only those of this name.

    Raises:
        SamplesError: the folder is not there.
        UsageError: there are experiments, but none of this model, layer or name.
    """
    from actcli.render.feature_text import experiment_tables
    from actcli.reports.feature_samples import ExperimentList

    if not root.is_dir():
        found = "is a file" if root.exists() else "is not there"
        raise SamplesError(f"{root} {found}: expected a folder of experiments, such as results")
    every = sorted(
        find_experiments(root),
        key=lambda each: (each.model or "", -1 if each.layer is None else each.layer, each.name),
    )
    chosen = every
    for field, wanted in (("model", model), ("layer", layer), ("name", experiment)):
        if wanted is not None:
            chosen = _only(chosen, field, wanted)
    listed = ExperimentList(root=str(root), experiments=tuple(chosen))
    output.print_report(listed, experiment_tables)


def find_experiments(root: Path) -> "Iterator[Experiment]":
    """Yield the folders that hold a checkpoint or activation samples, at any depth.

    Hidden folders are left out, and links to folders are not followed.
    """
    from actcli.render.feature_files import SUBFOLDER

    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            each for each in folders if not each.startswith(".") and each != SUBFOLDER
        )
        found = _experiment(root, Path(folder), files)
        if found is not None:
            yield found


def _only(experiments: "list[Experiment]", field: str, wanted: str | int) -> "list[Experiment]":
    kept = [each for each in experiments if getattr(each, field) == wanted]
    if experiments and not kept:
        known = {str(getattr(each, field)) for each in experiments} - {"None"}
        word = "experiment" if field == "name" else field
        if not known:
            raise UsageError(
                f"no folder here says its {word}: expected <model>/layer<L>/<experiment>; leave "
                f"out --{word} to see all {len(experiments)}"
            )
        raise UsageError(f"there is no {word} {wanted}; {nearest(str(wanted), known)}")
    return kept


def _experiment(root: Path, folder: Path, files: list[str]) -> "Experiment | None":
    from actcli.render.feature_files import sample_files
    from actcli.reports.feature_samples import Experiment

    checkpoints = sorted(_CHECKPOINTS.intersection(files))
    n_features = len(sample_files(folder))
    if not (checkpoints or n_features):
        return None
    model, layer, name = _parts(root, folder)
    return Experiment(
        path=str(folder),
        model=model,
        layer=layer,
        name=name,
        has_checkpoint=bool(checkpoints),
        checkpoints=tuple(checkpoints),
        has_samples=n_features > 0,
        n_features=n_features,
    )


def _parts(root: Path, folder: Path) -> tuple[str | None, int | None, str]:
    """Model, layer and name: what stands above the last `layer<L>`, its number, what is below."""
    parts = folder.absolute().parts
    for place in reversed(range(len(parts))):
        match = _LAYER.fullmatch(parts[place])
        if match:
            model = parts[place - 1] if place > 1 else None
            return model, int(match[1]), "/".join(parts[place + 1 :])
    return None, None, str(folder.relative_to(root)) if folder != root else folder.absolute().name
