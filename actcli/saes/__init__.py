"""Sparse dictionaries: SAEs and transcoders, in whatever format they were published."""

from collections.abc import Sequence
from types import ModuleType

from actcli.errors import ModelError, UsageError, nearest
from actcli.saes import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    linear_pt,
    llama_scope,
    matryoshka,
    openai,
    qwen_scope,
    raw,
    saelens,
    sparsify,
    transcoder_circuits,
)
from actcli.saes.checkpoint import DEFAULTS, Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary
from actcli.saes.refused import refuse_content, refuse_other
from actcli.saes.source import find_checkpoint, short_name

__all__ = ["FORMATS", "OpenOptions", "open_dictionary"]

FORMATS: tuple[ModuleType, ...] = (
    saelens,
    gemma_scope,
    dictionary_learning,
    sparsify,
    circuit_tracer,
    qwen_scope,
    llama_scope,
    matryoshka,
    openai,
    transcoder_circuits,
    linear_pt,
    raw,
)
"""One module each: FORMAT (its name), FILES (names of files with weights), matches, load.

In the order in which they are looked for.
"""


def open_dictionary(
    spec: str,
    options: OpenOptions = DEFAULTS,
    *,
    name: str | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Open a dictionary; its format is found by looking at its files.

    Args:
        spec: a folder, a file, hf://org/repo/path[@revision], or demo://NAME.
        options: what the files do not tell.
        name: what to call it; by default its folder or file.
        device: a torch device.

    Raises:
        ModelError: nothing is there, it is damaged, or of a kind that cannot be evaluated.
        UsageError: several are there, or the options do not fit.
    """
    chosen = _forced(options.format)
    patterns = [each for module in FORMATS for each in module.FILES]
    checkpoint = find_checkpoint(spec, options, patterns=patterns)
    module = chosen or _matching(checkpoint)
    dictionary: Dictionary = module.load(checkpoint, options)
    called = name or short_name(spec)
    return (dictionary if called is None else dictionary.named(called)).to(device)


def _forced(name: str | None) -> ModuleType | None:
    if name is None:
        return None
    known = {module.FORMAT: module for module in FORMATS}
    if name not in known:
        raise UsageError(f"there is no format {name!r}; {nearest(name, known)}")
    return known[name]


def _matching(checkpoint: Checkpoint) -> ModuleType:
    refuse_content(checkpoint)
    for module in FORMATS:
        if module.matches(checkpoint):
            return module
    refuse_other(checkpoint)
    raise ModelError(
        f"{checkpoint.path} is of no known format; it holds {_shown(list(checkpoint.content))}; "
        f"known are: {', '.join(each.FORMAT for each in FORMATS)}; any file of tensors can be "
        f"read with --format raw --map W_enc=KEY --map W_dec=KEY"
    )


def _shown(keys: Sequence[str], most: int = 8) -> str:
    return ", ".join(sorted(keys)[:most]) + (", ..." if len(keys) > most else "")
