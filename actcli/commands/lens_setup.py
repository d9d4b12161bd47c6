"""What `logit-lens` runs with: model, texts, answers and lens, checked against each other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from actcli.commands.lens_answers import Followed, describe, find_followed, prompt_of
from actcli.commands.lens_texts import LensTexts, load_adapter, open_dump_of, open_texts_of
from actcli.errors import UsageError
from actcli.terminal.fields import IntRanges

if TYPE_CHECKING:
    from actcli.analysis.lens import Lens, LensBatch
    from actcli.analysis.lens_collect import LensCollector
    from actcli.analysis.lens_states import WantedStates
    from actcli.analysis.lens_statistics import LensKernel
    from actcli.capture.lens_sources import CapturedTexts
    from actcli.commands.logit_lens import LogitLensConfig
    from actcli.models.transformer import HuggingFaceTransformer
    from actcli.reports.lens_table import LensTable
    from actcli.reports.logit_lens import LogitLensReport
    from actcli.store.reader import Dump

_MOST_REPORTED = 100


@dataclass(frozen=True)
class LensSetup:
    """All that a run needs."""

    config: "LogitLensConfig"
    adapter: "HuggingFaceTransformer"
    wanted: "WantedStates"
    source: LensTexts
    followed: Followed
    lens: "Lens"
    kernel: "LensKernel"
    collector: "LensCollector"
    blocks: tuple[int, ...]
    """What the layer axis of the activations stands for."""

    warnings: list[str] = field(default_factory=list)

    @property
    def n_samples(self) -> int:
        """How many texts are read."""
        return self.source.n_samples

    @property
    def top_k(self) -> int:
        """How many of the likeliest tokens each record lists."""
        return self.kernel.top_k

    @cached_property
    def text_of(self) -> Callable[[int], str]:
        """A token's text; its number where the model's folder has no tokenizer."""
        return self.source.text_of

    def ids_of(self, row: int) -> tuple[int, ...]:
        """The token ids of a text."""
        return tuple(map(int, self.source.ids_of(row)))

    def read(self) -> Iterator["LensTable"]:
        """Read all texts, a batch at a time."""
        from actcli.analysis.lens import read_lens
        from actcli.analysis.lens_collect import last_records

        positions: Any = self.config.positions
        if positions not in ("last", "all"):
            positions = IntRanges.parse(positions)
        for captured in self.source.batches():
            batch = self._batch(captured)
            table = read_lens(
                self.kernel,
                self.adapter.unembedding,
                batch,
                positions=positions,
                lens=self.lens,
            )
            self._note_texts(batch)
            self.collector.add(batch, table, last_records(table))
            yield table

    def report(self, *, elapsed_s: float) -> "LogitLensReport":
        """The summary, once all texts are read."""
        from actcli.commands.lens_describe import describe_lens, describe_model, describe_self_test
        from actcli.reports.logit_lens import LogitLensReport

        adapter, collector = self.adapter, self.collector
        return LogitLensReport(
            model=describe_model(adapter),
            lens=describe_lens(self.config, adapter, self.lens),
            self_test=describe_self_test(adapter),
            source=self.source.name,
            n_samples=self.n_samples,
            n_records=collector.n_records,
            positions=self.config.positions,
            streams=self.wanted.streams,
            top_k=self.top_k,
            elapsed_s=elapsed_s,
            samples=collector.samples(),
            layers=collector.averages.report(),
            raw_norm_check=collector.raw_norm_check(),
            warnings=tuple(self.warnings),
        )

    def _batch(self, captured: "CapturedTexts") -> "LensBatch":
        import numpy as np

        from actcli.analysis.lens import LensBatch

        final, states = self.wanted.of(captured.read, blocks=self.blocks)
        rows = [int(row) for row in captured.rows]
        lengths = [
            self.followed.length(row, int(length))
            for row, length in zip(rows, captured.lengths_B, strict=True)
        ]
        return LensBatch(
            samples_B=np.array(rows),
            tokens_BT=captured.tokens_BT,
            lengths_B=np.array(lengths),
            final_BTH=final,
            states=states,
            answers_B=self.followed.first_ids(rows, contrast=False),
            contrasts_B=self.followed.first_ids(rows, contrast=True),
        )

    def _note_texts(self, batch: "LensBatch") -> None:
        from actcli.analysis.lens_collect import LensText

        tokenizer = self.source.tokenizer
        for row, length in zip(batch.samples_B.tolist(), batch.lengths_B.tolist(), strict=True):
            if row >= self.collector.most_reported:
                return
            ids = self.source.ids_of(row)
            followed = [
                describe(golds[row], tokenizer) if golds and tokenizer else None
                for golds in (self.followed.answers, self.followed.contrasts)
            ]
            prompt = prompt_of(tokenizer, ids) if tokenizer else None
            self.collector.texts[row] = LensText(
                tuple(map(int, ids)), length - 1, prompt, *followed
            )


def prepare_lens(config: "LogitLensConfig", stack: ExitStack) -> LensSetup:
    """Load the model, open the texts, find the answers, and check that all fit together.

    Args:
        config: the options, with the built-in question where nothing was asked.
        stack: keeps a dump open.

    Raises:
        ActcliError: something is missing or does not fit.
    """
    from actcli.analysis.lens_states import WantedStates
    from actcli.analysis.lens_statistics import LensKernel

    dump = open_dump_of(config, stack)
    adapter = load_adapter(config, dump)
    unembedding = adapter.unembedding
    layers = _layers(config, adapter.n_layers, dump)
    wanted = WantedStates(config.streams, layers, adapter.n_layers)
    source, blocks = open_texts_of(config, adapter, wanted, dump)
    followed = find_followed(
        source.tokenizer,
        source.ids_of,
        n_samples=source.n_samples,
        answers=config.answer,
        contrasts=config.contrast,
    )
    top_k = min(config.top_k, adapter.vocab_size)
    lens = _lens(config, adapter)
    setup = LensSetup(
        config,
        adapter,
        wanted,
        source,
        followed,
        lens,
        LensKernel(unembedding, top_k=top_k),
        _collector(config, adapter, wanted, source.text_of),
        blocks,
    )
    setup.warnings.extend(_warnings(config, setup))
    return setup


def _layers(config: "LogitLensConfig", n_layers: int, dump: "Dump | None") -> tuple[int, ...]:
    """The layers to read, rising: those asked for, or all that there are; 0 enters block 0."""
    if config.layers is not None:
        return tuple(sorted(config.layers.resolve(n_layers + 1)))
    if dump is None:
        return tuple(range(n_layers + 1))
    first = [0] if "embeddings" in dump.header.tensors else []
    return (*first, *(block + 1 for block in dump.manifest.get("layers", range(n_layers))))


def _lens(config: "LogitLensConfig", adapter: "HuggingFaceTransformer") -> "Lens":
    from actcli.analysis.lens import Lens

    if config.lens == "raw" and not adapter.unembedding.has_raw:
        raise UsageError(
            f"--lens raw: the head of {type(adapter.net).__name__} cannot read the residual stream "
            f"itself (between them: {adapter.unembedding.describe()['method']}); use --lens norm"
        )
    if config.translator is None:
        return Lens(norm=config.lens == "norm")
    from actcli.models.translators import load_translators

    translators = load_translators(
        config.translator, d_model=adapter.d_model, n_layers=adapter.n_layers
    )
    return Lens(translators=translators.to(adapter.unembedding.device))


def _collector(
    config: "LogitLensConfig",
    adapter: "HuggingFaceTransformer",
    wanted: "WantedStates",
    text_of: Callable[[int], str],
) -> "LensCollector":
    from actcli.analysis.lens_collect import LensCollector, raw_check_kernel
    from actcli.analysis.lens_summary import check_layers

    raw_layers = [each for each in check_layers(adapter.n_layers) if each in wanted.layers]
    checks = (
        bool(raw_layers)
        and adapter.unembedding.has_raw
        and "resid" in wanted.streams
        and config.translator is None
    )
    return LensCollector(
        text_of,
        adapter.n_layers,
        most_reported=_MOST_REPORTED,
        most_drawn=config.draw,
        is_normed=config.lens == "norm",
        raw_kernel=raw_check_kernel(adapter.unembedding) if checks else None,
        raw_layers=tuple(raw_layers),
    )


def _warnings(config: "LogitLensConfig", setup: LensSetup) -> Iterator[str]:
    long = [each for each in setup.followed.answers + setup.followed.contrasts if each.n_tokens > 1]
    for gold in dict.fromkeys((each.text, each.n_tokens) for each in long):
        yield f"{gold[0]!r} has {gold[1]} tokens here; the lens follows the first alone"
    if not setup.adapter.is_causal:
        yield (
            f"{type(setup.adapter.net).__name__} sees the whole text at once: the next token of "
            f"the text is no prediction of it, only --answer has a meaning"
        )
    if setup.source.tokenizer is None:
        yield "the model's folder has no tokenizer: tokens are shown as their numbers"
    if config.top_k > setup.top_k:
        yield f"the vocabulary has {setup.top_k} tokens: --top-k {config.top_k} lists all of them"
