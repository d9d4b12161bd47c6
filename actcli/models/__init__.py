"""Models: where they come from, and what the other rooms must know of each family."""

from dataclasses import dataclass
from types import ModuleType

from actcli.errors import ModelError
from actcli.models import board_encoder, hugging_face
from actcli.models.adapter import ModelAdapter
from actcli.models.source import DEFAULTS, LoadOptions, ModelSource, find_source

FAMILIES: tuple[ModuleType, ...] = (board_encoder, hugging_face)
"""Each has FAMILY, READS, `recognises(source)` and `load(source, device=, weights=, options=)`."""


@dataclass(frozen=True)
class FoundModel:
    """A model whose family is known, not loaded yet."""

    source: ModelSource
    family: ModuleType
    options: LoadOptions

    @property
    def reads(self) -> str:
        """What its samples are: `boards` or `text`."""
        return str(self.family.READS)

    def load(self, *, device: str = "cpu", weights: bool = True) -> ModelAdapter:
        """Load it.

        Args:
            device: a torch device.
            weights: False gives the network on the meta device, for its shapes alone.

        Raises:
            ModelError: it is damaged or incomplete.
        """
        adapter: ModelAdapter = self.family.load(
            self.source, device=device, weights=weights, options=self.options
        )
        return adapter


def find_model(init: str, options: LoadOptions = DEFAULTS) -> FoundModel:
    """Find the model that `init` names, and the first family that recognises its files.

    Args:
        init: `demo://2048`, a folder, a file, or `hf://org/repo[/subfolder][@revision]`.
        options: dtype, placement, revision, and whether the model's own code may run.

    Raises:
        ModelError: nothing is there, or no family knows it.
    """
    source = find_source(init, options)
    for family in FAMILIES:
        if family.recognises(source):
            return FoundModel(source, family, options)
    known = ", ".join(family.FAMILY for family in FAMILIES)
    raise ModelError(f"{source.path} is of no known model family ({known}): is a file missing?")


def load_model(
    init: str, *, device: str = "cpu", weights: bool = True, options: LoadOptions = DEFAULTS
) -> ModelAdapter:
    """Find a model and load it; see `find_model` and `FoundModel.load`."""
    return find_model(init, options).load(device=device, weights=weights)
