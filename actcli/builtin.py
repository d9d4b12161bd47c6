"""What ships with actcli: models and data sets, named `demo://NAME`."""

from pathlib import Path

from actcli.errors import ActcliError, nearest

PREFIX = "demo://"
MODEL = "demo://2048"
STEPS = "demo://2048-steps"
TEXT_MODEL = "demo://facts"
TEXT = "demo://facts-text"
DECOMPOSITION = "demo://facts-spd"
MATRYOSHKA = "demo://facts-matryoshka"
GEMMA_SCOPE = "demo://facts-gemma-scope"
DICTIONARIES = (MATRYOSHKA, GEMMA_SCOPE)
"""Transcoders of layer 4 of the text model, in two formats."""

QUESTION = "give the city name only . the capital of Germany is called simply"
"""What the built-in text model is asked where nothing else is said."""
_ASSETS = Path(__file__).parent / "demo" / "assets"


def is_builtin(uri: str) -> bool:
    """Whether the string names something that ships with actcli."""
    return uri.startswith(PREFIX)


def find_builtin(uri: str, *, holding: str, error: type[ActcliError]) -> Path:
    """Return the folder of a built-in thing, told by a file that all of its kind hold.

    Raises:
        error: there is none of that name and kind.
    """
    known = {PREFIX + each.parent.name: each.parent for each in _ASSETS.glob(f"*/{holding}")}
    if uri not in known:
        raise error(f"nothing of the kind is built in under {uri!r}; {nearest(uri, known)}")
    return known[uri]
