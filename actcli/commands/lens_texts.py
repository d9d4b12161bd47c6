"""Where the texts of `logit-lens` and their activations come from: a model that runs, or a dump."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actcli.commands.text_options import open_text_samples
from actcli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actcli.analysis.lens_states import WantedStates
    from actcli.capture.lens_sources import CapturedTexts
    from actcli.commands.logit_lens import LogitLensConfig
    from actcli.models.transformer import HuggingFaceTransformer
    from actcli.samples.tokenizer import TextTokenizer
    from actcli.store.reader import Dump


@dataclass(frozen=True)
class LensTexts:
    """The texts, and a way to go through their activations."""

    name: str
    n_samples: int
    tokenizer: "TextTokenizer | None"
    ids_of: Callable[[int], "NDArray[np.integer]"]
    """Token ids of a text, without padding."""

    batches: Callable[[], Iterator["CapturedTexts"]]

    @property
    def text_of(self) -> Callable[[int], str]:
        """A token's text; its number where the model's folder has no tokenizer."""
        return self.tokenizer.text_of if self.tokenizer else _number


def open_dump_of(config: "LogitLensConfig", stack: ExitStack) -> "Dump | None":
    """The dump of --from-dump, open as long as the stack is."""
    from actcli.store.reader import open_dump

    return None if config.from_dump is None else stack.enter_context(open_dump(config.from_dump))


def load_adapter(config: "LogitLensConfig", dump: "Dump | None") -> "HuggingFaceTransformer":
    """Load --init, or the model that the dump names."""
    from actcli.capture.device import find_device
    from actcli.models import find_model
    from actcli.models.transformer import HuggingFaceTransformer

    init = config.init or (dump.metadata.get("checkpoint") if dump else None)
    if init is None:
        raise UsageError(f"{config.from_dump} does not name its model: give --init")
    found = find_model(init, config.load_options)
    if found.reads != "text":
        raise UsageError(
            f"{init} is a model of the family {found.family.FAMILY!r}, which has no vocabulary of "
            f"words: a logit lens needs a language model"
        )
    adapter = found.load(device=str(find_device(config.device)))
    assert isinstance(adapter, HuggingFaceTransformer)
    return adapter


def open_texts_of(
    config: "LogitLensConfig",
    adapter: "HuggingFaceTransformer",
    wanted: "WantedStates",
    dump: "Dump | None",
) -> tuple[LensTexts, tuple[int, ...]]:
    """The texts, and the blocks that their activations will have."""
    from actcli.capture.lens_sources import open_dumped_texts, run_model

    if dump is not None:
        texts = open_dumped_texts(dump, adapter, sites=wanted.sites, blocks=wanted.blocks)
        n_samples = min(len(texts), config.n_samples or len(texts))
        source = LensTexts(
            str(dump.path),
            n_samples,
            _tokenizer_of(adapter, config),
            texts.ids_of,
            lambda: texts.batches(wanted.sites, n_samples=n_samples),
        )
        return source, texts.blocks
    opened = open_text_samples(
        config,
        adapter.files.source.path,
        n_samples=config.n_samples,
        trust_remote_code=config.trust_remote_code,
    )
    samples = opened.samples

    def ids_of(row: int) -> "NDArray[np.integer]":
        ids_T: NDArray[np.integer] = samples.batch(range(row, row + 1)).inputs["tokens"][0]
        return ids_T

    source = LensTexts(
        config.given_source or "text",
        len(samples),
        opened.tokenizer,
        ids_of,
        lambda: run_model(
            adapter,
            samples,
            sites=wanted.sites,
            blocks=wanted.blocks,
            batch_tokens=config.batch_tokens,
        ),
    )
    return source, wanted.blocks


def _number(token: int) -> str:
    return f"#{token}"


def _tokenizer_of(
    adapter: "HuggingFaceTransformer", config: "LogitLensConfig"
) -> "TextTokenizer | None":
    from actcli.samples.tokenizer import has_tokenizer, load_tokenizer

    folder = adapter.files.source.path
    if not has_tokenizer(folder):
        return None
    return load_tokenizer(folder, trust_remote_code=config.trust_remote_code)


def _text_of(tokenizer: "TextTokenizer | None") -> Callable[[int], str]:
    return tokenizer.text_of if tokenizer else lambda token: f"#{token}"
