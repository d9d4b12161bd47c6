"""What a harvest database says of components: mean causal importance, firing density, sign.

`harvest.db` is SQLite, written over a data set after training: a row of `components` for each that
ever fired. The sign of a component is that of its mean activation on the tokens where it fires: on
the first such token of each stored example, or, where none is stored, of its mean over all tokens.

Tensor legend: C components.
"""

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actcli.errors import ModelError, reason

_FILE = "harvest.db"
_RUN_ID = re.compile(r"(?:[a-z]-)?[a-z0-9]{8}$")
_QUERY = (
    "SELECT component_idx, firing_density, mean_activations, activation_examples "
    "FROM components WHERE layer = ? ORDER BY component_idx"
)


def find_harvest(run: Path) -> Path | None:
    """The latest harvest database of a run, or None.

    Looked for in the run's folder, in the folder `harvest` of the place where runs lie beside each
    other, and below $SPD_OUT_DIR; the last in the order of their dates in `h-<date>_<time>`.
    """
    found: list[Path] = []
    for folder in _places(run.resolve()):
        found += folder.glob(f"h-*/{_FILE}")
        found += folder.glob(_FILE)
    return max(found, key=lambda path: path.parent.name, default=None)


def read_notes(database: Path, module: str, *, n_components: int) -> dict[str, Tensor]:
    """What is known of the components of one module.

    Args:
        database: the file.
        module: its name in the run.
        n_components: how many components it has.

    Returns:
        `mean_ci`, `firing_density` (0 for those that never fired) and `sign` (+1 for those), (C,).
        Nothing where the database has nothing of this module.

    Raises:
        ModelError: the database cannot be read, or is of another run.
    """
    mean_ci_C, density_C = torch.zeros(n_components), torch.zeros(n_components)
    sign_C, n_found = torch.ones(n_components), 0
    try:
        for index, density, means, examples in _rows(database, module):
            if not 0 <= index < n_components:
                raise ModelError(
                    f"{database} knows a component {index} of {module}, and the run has "
                    f"{n_components}: it is the database of another run"
                )
            values = json.loads(means)
            mean_ci_C[index], density_C[index] = values["causal_importance"], density
            sign_C[index] = _sign(json.loads(examples), values["component_activation"])
            n_found += 1
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read the harvest in {database}: {reason(error)}") from error
    if not n_found:
        return {}
    return {"mean_ci": mean_ci_C, "firing_density": density_C, "sign": sign_C}


def _places(run: Path) -> list[Path]:
    folder = run if run.is_dir() else run.parent
    names = [folder.name]
    if found := _RUN_ID.search(folder.name):
        names.append(found[0])
    roots = [folder.parent / "harvest", folder.parent.parent / "harvest"]
    if out := os.environ.get("SPD_OUT_DIR"):
        roots.append(Path(out) / "harvest")
    return [folder, folder / "harvest", *(root / name for root in roots for name in names)]


def _rows(database: Path, module: str) -> Iterator[tuple[Any, ...]]:
    """The components of a module; `immutable`, so that nothing is locked or written."""
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?immutable=1", uri=True)
    try:
        yield from connection.execute(_QUERY, (module,))
    finally:
        connection.close()


def _sign(examples: list[dict[str, Any]], overall_mean: float) -> float:
    """+1 or -1."""
    at_firing = [
        each["activations"]["component_activation"][each["firings"].index(True)]
        for each in examples
        if True in each["firings"]
    ]
    mean = sum(at_firing) / len(at_firing) if at_firing else overall_mean
    return -1.0 if mean < 0 else 1.0
