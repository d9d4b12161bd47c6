"""What reports are made of."""

from pydantic import BaseModel, ConfigDict

from actcli import __version__


class Report(BaseModel):
    """What every report has."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")

    schema_version: int = 1
    """Rises when a field changes its meaning or goes."""

    actcli_version: str = __version__
    """The version that computed it."""


class Histogram(BaseModel):
    """How many values lie between one edge and the next: the upper edge excluded, but the last."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    edges: tuple[float, ...]
    """One more than there are counts; rising."""

    counts: tuple[int, ...]
    """Values between two edges."""
