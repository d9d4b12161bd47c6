"""Models: where they come from, and what the other rooms must know of each family."""

from types import ModuleType

from actcli.errors import ModelError
from actcli.models import board_encoder
from actcli.models.adapter import ModelAdapter
from actcli.models.source import find_source

FAMILIES: tuple[ModuleType, ...] = (board_encoder,)
"""Each has `FAMILY`, `recognises(source)` and `load(source, device=, weights=)`."""


def load_model(init: str, *, device: str = "cpu", weights: bool = True) -> ModelAdapter:
    """Load the model that `init` names, by the first family that recognises its files.

    Args:
        init: `demo://2048`, a folder, a file, or `hf://org/repo[/subfolder][@revision]`.
        device: a torch device.
        weights: False gives the network on the meta device, for its shapes alone.

    Raises:
        ModelError: nothing is there, no family knows it, or it is damaged.
    """
    source = find_source(init)
    for family in FAMILIES:
        if family.recognises(source):
            adapter: ModelAdapter = family.load(source, device=device, weights=weights)
            return adapter
    known = ", ".join(family.FAMILY for family in FAMILIES)
    raise ModelError(f"{source.path} is of no known model family ({known}): is a file missing?")
