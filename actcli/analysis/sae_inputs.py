"""Whether tokens are what a dictionary was made for: widths, places, and what a norm left of them.

A dictionary gives numbers for any tokens of its width. Most that look bad were given other ones
than they were trained on, so what can be told from its file and from the tokens is told.

Tensor legend: N tokens, H hidden.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from torch import Tensor

from actcli.errors import UsageError
from actcli.saes.dictionary import Dictionary, Place
from actcli.sites import SITES

_NORMED = "mlp_input_normed"
_WITH_GAIN = ("mlp_input", "attn_norm")
_TOLERANCE = 0.05
"""How far a token's mean square may be from 1: eps of the norm, rounding to half precision."""

_MOST_OFF = 0.05
"""Share of the tokens that may be further off: very short ones, where eps weighs more."""

_ENOUGH_TOKENS = 4096
_MOST_NAMES = 8
_SITES = {site.name for site in SITES}

Found = tuple[str, int | None]
"""Site, or key of a dump, and layer."""


def check_widths(
    dictionary: Dictionary, *, x: str, y: str, widths: Mapping[str, int], known: Mapping[str, int]
) -> None:
    """Refuse tokens of another width than the dictionary's.

    Args:
        dictionary: which reads `x` and whose target is `y`.
        x: key or place of its input.
        y: of its target.
        widths: numbers per token of both.
        known: the same of all that could be given, to name what fits.

    Raises:
        UsageError: a width differs; names what is of the width expected.
    """
    name, pairs = dictionary.origin.name, (("x", x, dictionary.d_in), ("y", y, dictionary.d_out))
    for option, key, expected in pairs:
        found = widths[key]
        if found == expected:
            continue
        fits = [each for each, width in known.items() if width == expected]
        more = f", ... ({len(fits)} in all)" if len(fits) > _MOST_NAMES else ""
        hint = f"; of that width are {', '.join(fits[:_MOST_NAMES])}{more}" if fits else ""
        verb = "reads" if option == "x" else "writes"
        place = dictionary.origin.reads if option == "x" else dictionary.origin.writes
        said = f" ({place.hook}, as its file says)" if place is not None else ""
        raise UsageError(
            f"--{option} {key} has {found} numbers per token, but {name} {verb} "
            f"{expected}{said}{hint or '; nothing here is of that width: is it of another model?'}"
        )


def place_warnings(dictionary: Dictionary, *, x: Found, y: Found) -> tuple[str, ...]:
    """Return what speaks against input and target, going by the dictionary's own file.

    Args:
        dictionary: as opened.
        x: site (or key of a dump) and layer of its input.
        y: of its target.
    """
    origin = dictionary.origin
    return (
        *_differences(origin.name, "reads", origin.reads, x),
        *(_differences(origin.name, "writes", origin.writes, y) if origin.is_transcoder else ()),
        *_wrong_target(dictionary, x=x, y=y),
    )


def model_note(dictionary: Dictionary, model: str | None) -> str | None:
    """Return a remark if the dictionary's file names another model than the tokens are of."""
    trained_on = dictionary.origin.model
    if trained_on is None or model is None or _bare(trained_on) == _bare(model):
        return None
    return f"{dictionary.origin.name} was trained on {trained_on}, the tokens are of {model}"


@dataclass
class MeanSquares:
    """The mean square of the first tokens of one key: 1 behind a norm without gain."""

    key: str
    n_tokens: int = 0
    n_off: int = 0
    total: float = 0.0

    def add(self, acts_NH: Tensor) -> None:
        """Take tokens (N, H); those after the first few thousand are not looked at."""
        some_NH = acts_NH[: _ENOUGH_TOKENS - self.n_tokens]
        if not len(some_NH):
            return
        squares_N = some_NH.float().square().mean(dim=-1)
        self.n_tokens += len(squares_N)
        self.n_off += int(((squares_N - 1).abs() > _TOLERANCE).sum())
        self.total += float(squares_N.double().sum())

    @property
    def is_normed(self) -> bool:
        """Whether nearly all tokens have mean square 1."""
        return self.n_off <= _MOST_OFF * self.n_tokens

    def warning(self, dictionary: Dictionary) -> str | None:
        """Return what speaks against these tokens as the dictionary's input; None if nothing."""
        reads = dictionary.origin.reads
        if not self.n_tokens or reads is None:
            return None
        name, mean = dictionary.origin.name, self.total / self.n_tokens
        if reads.site == _NORMED and not self.is_normed:
            return (
                f"{name} reads normalised tokens without gain ({reads.hook}), whose mean square is "
                f"1, but that of {self.key} is {mean:.3g} on average, and {self.n_off} of "
                f"{self.n_tokens} tokens are off by more than {_TOLERANCE:.0%}: these look like "
                f"tokens with gain, or without the norm; use {_NORMED}"
            )
        if reads.site in _WITH_GAIN and self.is_normed:
            return (
                f"{name} reads tokens with the gain of the norm ({reads.hook}), but those of "
                f"{self.key} have mean square 1: these look like {_NORMED}; use {reads.site}"
            )
        return None


def _differences(name: str, verb: str, said: Place | None, found: Found) -> Iterator[str]:
    site, layer = found
    if said is None:
        return
    if said.site is not None and site in _SITES and site != said.site:
        yield f"{name} {verb} {said.site} ({said.hook}, as its file says), and was given {site}"
    if said.layer is not None and layer is not None and layer != said.layer:
        yield (
            f"{name} is of layer {said.layer} ({said.hook}, as its file says), and was given layer "
            f"{layer} of {site}"
        )


def _wrong_target(dictionary: Dictionary, *, x: Found, y: Found) -> Iterator[str]:
    name, is_transcoder = dictionary.origin.name, dictionary.origin.is_transcoder
    if is_transcoder and x == y:
        yield f"{name} is a transcoder, but its target is what it reads: give what it writes as --y"
    if is_transcoder is False and x != y:
        yield f"{name} is an SAE, whose target is what it reads, but another one is given as --y"


def _bare(model: str) -> str:
    """The name without its owner, a revision or signs that are written in several ways."""
    name = PurePosixPath(model.removeprefix("hf://").partition("@")[0].rstrip("/")).name.lower()
    return name.replace("_", "-").replace(".", "-")
