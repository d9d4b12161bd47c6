"""What `sae-eval` runs with: dictionaries, what each reads and writes, and the tokens."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.commands.sae_places import Keys, asked_key, find_keys, with_scope_places
from actcli.commands.sae_source import TokenSource, open_source
from actcli.errors import UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    import torch

    from actcli.capture.token_stream import TokenStream
    from actcli.commands.sae_eval import SaeEvalConfig
    from actcli.saes.checkpoint import OpenOptions
    from actcli.saes.dictionary import Dictionary

_PROBE_TOKENS = 2048
"""Over so many tokens the first dictionary's L0 is measured, to choose one like it."""

_OURS, _GOOGLE = "ours", "google"


@dataclass(frozen=True)
class SaeSetup:
    """All that a run needs."""

    config: "SaeEvalConfig"
    source: TokenSource
    dictionaries: tuple["Dictionary", ...]
    keys: tuple[Keys, ...]
    stream: "TokenStream"

    @property
    def names(self) -> tuple[str, ...]:
        """What the dictionaries are called, all different."""
        return tuple(each.origin.name for each in self.dictionaries)

    def place(self, key: str) -> str:
        """Name a key of the stream so that equal places are equal words: `mlp_out.8`."""
        site, layer = self.stream.places[key]
        return site if layer is None else f"{site}.{layer}"


def prepare(config: "SaeEvalConfig", output: Output, stack: ExitStack) -> SaeSetup:
    """Open dictionaries and activations, and check that they fit.

    Args:
        config: the options, with the built-in things where nothing was asked.
        output: where it is told what was chosen.
        stack: keeps the dump open.

    Raises:
        ActcliError: something is missing or does not fit.
    """
    from actcli.capture.device import find_device

    device = find_device(config.device)
    first = open_source(config, device, stack) if _reads_early(config) else None
    options = _open_options(config, first)
    dictionaries = [
        _open(config, spec, options, index, device) for index, spec in enumerate(config.checkpoint)
    ]
    source = first or open_source(config, device, stack)
    if config.google_dir is not None:
        dictionaries.append(_open_google(config, dictionaries[0], source, output, device))
    dictionaries = _with_own_names(dictionaries)
    for each in dictionaries:
        for note in each.origin.notes:
            output.note(f"{each.origin.name}: {note}")
    keys = [find_keys(config, index, each, source) for index, each in enumerate(dictionaries)]
    _note_keys(config, dictionaries, keys, output)
    setup = SaeSetup(config, source, tuple(dictionaries), tuple(keys), _open_stream(source, keys))
    _check(setup, output)
    return setup


def _check(setup: SaeSetup, output: Output) -> None:
    """Refuse widths that do not fit, and say where a dictionary is of another model."""
    from actcli.analysis.sae_inputs import check_widths, model_note

    stream = setup.stream
    for each, keys in zip(setup.dictionaries, setup.keys, strict=True):
        known = stream.known_widths()
        check_widths(each, x=keys.x, y=keys.y, widths=stream.widths, known=known)
        note = model_note(each, stream.model)
        if note is not None:
            output.note(note)


def _open_stream(source: TokenSource, keys: Sequence[Keys]) -> "TokenStream":
    every = dict.fromkeys(key for each in keys for key in each)
    read = dict.fromkeys(each.x for each in keys)
    return source.open([*every], normed=[*read])


def _reads_early(config: "SaeEvalConfig") -> bool:
    """Whether activations are opened before dictionaries: a model takes long, so it comes last."""
    return config.from_dump is not None or config.format == "raw"


def _open_options(config: "SaeEvalConfig", source: TokenSource | None) -> "OpenOptions":
    from actcli.saes.checkpoint import OpenOptions

    width = None
    if config.format == "raw":
        key = None if source is None else asked_key(config, "x", 0, source, config.layer)
        if source is None or key is None:
            raise UsageError("--format raw: say with --x what the dictionaries read")
        width = source.open([key], normed=[key]).widths[key]
    return OpenOptions(
        format=config.format,
        mapping=dict(each.split("=", 1) for each in config.mapping),
        activation=config.activation,
        k=config.k,
        width=width,
        layer=config.layer,
        l0=config.l0,
        revision=config.revision if config.init is None else None,
    )


def _open(
    config: "SaeEvalConfig", spec: str, options: "OpenOptions", index: int, device: "torch.device"
) -> "Dictionary":
    from actcli.saes import open_dictionary

    name = config.name[index] if config.name else None
    if name is None and config.google_dir is not None and len(config.checkpoint) == 1:
        name = _OURS
    return open_dictionary(spec, options, name=name, device=str(device))


def _open_google(
    config: "SaeEvalConfig",
    first: "Dictionary",
    source: TokenSource,
    output: Output,
    device: "torch.device",
) -> "Dictionary":
    from actcli.saes import open_dictionary
    from actcli.saes.checkpoint import OpenOptions

    assert config.google_dir is not None
    layer = config.layer
    if layer is None and first.origin.reads is not None:
        layer = first.origin.reads.layer
    spec = config.google_dir if layer is None else _of_layer(config, layer, first, source, output)
    name = config.name[-1] if config.name else _GOOGLE
    options = OpenOptions(layer=layer, l0=config.l0)
    found = open_dictionary(spec, options, name=name, device=str(device))
    return _as_transcoder(found, first, layer, output)


def _as_transcoder(
    found: "Dictionary", first: "Dictionary", layer: int | None, output: Output
) -> "Dictionary":
    """Take it for a transcoder of Gemma Scope 1 where nothing else is said and it meets one."""
    target = first.origin.writes
    if found.origin.is_transcoder is not None or target is None or target.site != "mlp_out":
        return found
    told = with_scope_places(found, layer)
    if told is not found:
        output.note(
            f"nothing says what {found.origin.name} reads: taken for a transcoder of Gemma Scope "
            f"1, which reads the MLP's input before the gain of the norm, and predicts what the "
            f"MLP adds; --x and --y say otherwise"
        )
    return told


def _of_layer(
    config: "SaeEvalConfig",
    layer: int,
    first: "Dictionary",
    source: TokenSource,
    output: Output,
) -> str:
    """Choose among the average_l0_* of a layer: as asked for, or like the first dictionary."""
    from actcli.saes.gemma_scope import average_l0s

    spec = str(config.google_dir)
    folder = Path(spec).expanduser()
    there = dict(average_l0s(folder, layer=layer)) if folder.is_dir() else {}
    if not there:
        return spec
    wanted = float(config.l0) if config.l0 is not None else None
    if wanted is None and len(there) > 1:
        wanted = _first_l0(config, first, source)
        output.note(
            f"--google-dir has average_l0 {', '.join(map(str, there))} for layer {layer}: takes "
            f"the nearest to the {wanted:.1f} of {first.origin.name}; --l0 takes another"
        )
    nearest = min(there, key=lambda l0: abs(l0 - (wanted or 0)))
    output.note(f"--google-dir: took {there[nearest]}")
    return str(there[nearest])


def _first_l0(config: "SaeEvalConfig", first: "Dictionary", source: TokenSource) -> float:
    """Return the mean L0 of the first dictionary on the first tokens."""
    import torch

    key = find_keys(config, 0, first, source).x
    limits = (_PROBE_TOKENS, config.most_tokens)
    most = min(each for each in limits if each is not None)
    n_active = n_tokens = 0
    with torch.no_grad():
        for batch in source.open([key], normed=[key], most_tokens=most).batches():
            acts = first.encode(batch.acts[key])
            n_active += len(acts.values_M)
            n_tokens += acts.n_tokens
    return n_active / n_tokens


def _with_own_names(dictionaries: "Sequence[Dictionary]") -> "list[Dictionary]":
    """Number those that would have the same name."""
    taken: set[str] = set()
    found = []
    for each in dictionaries:
        name, n = each.origin.name, 1
        while name in taken:
            n += 1
            name = f"{each.origin.name}-{n}"
        taken.add(name)
        found.append(each.named(name))
    return found


def _note_keys(
    config: "SaeEvalConfig",
    dictionaries: "Sequence[Dictionary]",
    keys: Sequence[Keys],
    output: Output,
) -> None:
    """Tell what was not asked for: by the dictionaries' own files, or taken for granted."""
    for each, (x, y) in zip(dictionaries, keys, strict=True):
        own = [f"reads {x}"] if not config.x else []
        own += [f"its target is {y}"] if not config.y and x != y else []
        if own:
            output.note(f"{each.origin.name} {', '.join(own)}")
