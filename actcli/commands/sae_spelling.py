"""`sae-eval --absorption first-letter`: the words that it is measured on."""

from pathlib import Path
from typing import TYPE_CHECKING

from actcli.commands.sae_places import is_transcoder
from actcli.commands.sae_source import ModelSource
from actcli.errors import UsageError

if TYPE_CHECKING:
    from actcli.commands.sae_setup import SaeSetup
    from actcli.samples.spelling import Spelling

_WORDS = ".txt"


def open_spellings(setup: "SaeSetup") -> "list[Spelling | None]":
    """Return the words of each dictionary, as it reads them; None without --spelling.

    Raises:
        UsageError: a dictionary is a transcoder, or words are to be read and there is no model.
        SamplesError: the file cannot be used.
    """
    path = setup.config.spelling
    if path is None:
        return [None] * len(setup.dictionaries)
    for each in setup.dictionaries:
        if is_transcoder(each):
            raise UsageError(
                f"--absorption first-letter: {each.origin.name} is a transcoder, and it is defined "
                f"for dictionaries that write what they read; leave it out"
            )
    if path.suffix != _WORDS:
        from actcli.samples.spelling import read_spelling

        return [read_spelling(path)] * len(setup.dictionaries)
    return _read_by_model(setup, path)


def _read_by_model(setup: "SaeSetup", path: Path) -> "list[Spelling | None]":
    from actcli.capture.spelling import capture_spelling
    from actcli.samples.spelling import read_words

    words, source = read_words(path), setup.source
    if not isinstance(source, ModelSource) or source.tokenizer is None:
        raise UsageError(
            f"--spelling {path} holds words, which a model with a tokenizer must read: give --init"
        )
    found = {
        key: capture_spelling(
            source.adapter,
            words,
            source.tokenizer,
            place=key,
            batch_tokens=source.batch_tokens,
        )
        for key in dict.fromkeys(keys.x for keys in setup.keys)
    }
    return [found[keys.x] for keys in setup.keys]
