"""Which activation each dictionary of `sae-eval` reads and which is its target."""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from actcli.errors import UsageError

if TYPE_CHECKING:
    from actcli.commands.sae_eval import SaeEvalConfig
    from actcli.commands.sae_source import TokenSource
    from actcli.saes.dictionary import Dictionary, Place


class Keys(NamedTuple):
    """Of the token stream."""

    x: str
    y: str


def find_keys(
    config: "SaeEvalConfig", index: int, dictionary: "Dictionary", source: "TokenSource"
) -> Keys:
    """Return what a dictionary reads and its target: as asked for, or as its own config says.

    Args:
        config: the options.
        index: which of the dictionaries it is.
        dictionary: the dictionary.
        source: what has the activations.

    Raises:
        UsageError: neither says it, or the source does not have it.
    """
    origin = dictionary.origin
    x = asked_key(config, "x", index, source, _layer_of(config, origin.reads))
    if x is None:
        x = _own_key(config, dictionary, origin.reads, "x", source)
    y = asked_key(config, "y", index, source, _layer_of(config, origin.writes or origin.reads))
    if y is None:
        y = _target(config, dictionary, x, source)
    return Keys(x, y)


def asked_key(
    config: "SaeEvalConfig", option: str, index: int, source: "TokenSource", layer: int | None
) -> str | None:
    """Return the key that `--x` or `--y` names for a dictionary; None if it was not given.

    Raises:
        UsageError: the source does not have it.
    """
    words: tuple[str, ...] = getattr(config, option)
    if not words:
        return None
    word = words[0] if len(words) == 1 else words[index]
    key = source.key_of(word, layer)
    if key is None:
        raise UsageError(f"--{option} {word}: there is none of that name; {source.known()}")
    return key


def is_transcoder(dictionary: "Dictionary") -> bool:
    """Whether a dictionary's target is something else than what it reads."""
    origin = dictionary.origin
    if origin.is_transcoder is not None:
        return origin.is_transcoder
    return origin.writes is not None or dictionary.d_in != dictionary.d_out


def with_scope_places(dictionary: "Dictionary", layer: int | None) -> "Dictionary":
    """Say of a transcoder of Gemma Scope 1 what it reads, where its own files and path do not.

    Its files never do: it is in the name of the repository, and a copy may have another one.

    Args:
        dictionary: as opened; another one, or one that has places, comes back as it is.
        layer: of the model; None for the one that its path tells.
    """
    from actcli.saes.dictionary import Place

    origin = dictionary.origin
    is_told = origin.writes is not None or (origin.reads is not None and origin.reads.site)
    if origin.format != "gemma_scope" or is_told:
        return dictionary
    layer = origin.reads.layer if layer is None and origin.reads is not None else layer
    reads, writes = (Place(site, site, layer) for site in ("mlp_input_normed", "mlp_out"))
    return replace(
        dictionary, origin=replace(origin, reads=reads, writes=writes, is_transcoder=True)
    )


def _target(
    config: "SaeEvalConfig", dictionary: "Dictionary", x: str, source: "TokenSource"
) -> str:
    origin = dictionary.origin
    if not is_transcoder(dictionary):
        return x
    if origin.writes is None:
        raise UsageError(
            f"{origin.name} is a transcoder ({dictionary.d_in} to {dictionary.d_out}), and its "
            f"files do not say what it predicts: give its target with --y; {source.known()}"
        )
    return _own_key(config, dictionary, origin.writes, "y", source)


def _own_key(
    config: "SaeEvalConfig",
    dictionary: "Dictionary",
    place: "Place | None",
    option: str,
    source: "TokenSource",
) -> str:
    name, verb = dictionary.origin.name, "reads" if option == "x" else "writes"
    if place is None:
        raise UsageError(
            f"the files of {name} do not say what it {verb}: give it with --{option}; "
            f"{source.known()}"
        )
    layer = _layer_of(config, place)
    for each in (place.site, place.hook):
        key = None if each is None else source.key_of(each, layer)
        if key is not None:
            return key
    site = "" if place.site is None else f", which is the site {place.site}"
    where = "" if layer is None else f" of layer {layer}"
    raise UsageError(
        f"{name} {verb} {place.hook}{site}{where}, and there is none of that name: say with "
        f"--{option} which it is; {source.known()}"
    )


def _layer_of(config: "SaeEvalConfig", place: "Place | None") -> int | None:
    if config.layer is not None or place is None:
        return config.layer
    return place.layer
