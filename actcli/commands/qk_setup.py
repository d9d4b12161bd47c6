"""What `qk-contrib` runs with: model, components, texts, layers and queries, held together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from actcli.commands.qk_pairs_asked import part_numbers
from actcli.commands.text_options import open_text_samples
from actcli.errors import UsageError
from actcli.terminal.fields import IntRanges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from actcli.analysis.qk_pairs import QkAsk
    from actcli.commands.qk_contrib import QkContribConfig
    from actcli.commands.text_options import TextInput
    from actcli.decompositions.factors import Decomposition, Factors
    from actcli.models.adapter import ModelAdapter
    from actcli.models.qk import QkLayer
    from actcli.reports.qk import QkPairs, QkSideReport


class Sides(NamedTuple):
    """The components of a layer; None for a side that is not decomposed."""

    q: "Factors | None"
    k: "Factors | None"


class ReadQuery(NamedTuple):
    """The pairs of a query, and the tokens of its text."""

    pairs: "QkPairs"
    ids_T: "NDArray[np.integer]"


@dataclass(frozen=True)
class QkSetup:
    """All that a run needs."""

    config: "QkContribConfig"
    adapter: "ModelAdapter"
    decomposition: "Decomposition"
    init: str
    layers: "Mapping[int, QkLayer]"
    sides: Mapping[int, Sides]

    @cached_property
    def texts(self) -> "TextInput":
        """The samples, checked against the model."""
        opened = open_text_samples(
            self.config,
            self.adapter.files.source.path,
            trust_remote_code=self.config.trust_remote_code,
        )
        self.adapter.check_tokens(
            n_tokens=opened.samples.n_tokens, largest_token=opened.samples.largest_token
        )
        return opened

    @cached_property
    def queries(self) -> dict[int, tuple[int, ...]]:
        """The queries of each sample, all of them checked."""
        samples = self.texts.samples
        wanted = self.config.samples or IntRanges.parse("0--1")
        rows = wanted.resolve(len(samples), name="sample")
        return {row: self._queries_of(row) for row in rows}

    @property
    def n_readings(self) -> int:
        """How many queries are read, over all samples and layers."""
        return len(self.layers) * sum(map(len, self.queries.values()))

    def ids_of(self, row: int) -> "NDArray[np.integer]":
        """Token ids of a text, without padding."""
        samples = self.texts.samples
        ids_T: NDArray[np.integer] = samples.batch(range(row, row + 1)).inputs["tokens"][0]
        return ids_T[: self._length(row)]

    def text_of(self, token: int) -> str:
        """A token's text; its number where the model's folder has no tokenizer."""
        tokenizer = self.texts.tokenizer
        return f"#{token}" if tokenizer is None else tokenizer.text_of(token)

    def read(self) -> Iterator[ReadQuery]:
        """Read all queries: text by text, one forward pass each, then by layer."""
        import torch

        from actcli.analysis.qk_pairs import QkReader
        from actcli.commands.qk_importance import importances
        from actcli.models.qk import qk_texts

        for row, queries in self.queries.items():
            ids_T = self.ids_of(row)
            tokens_T = torch.tensor(ids_T, dtype=torch.int64)
            found = importances(self, tokens_T) if self.config.mode == "binary" else {}
            for layer, text in qk_texts(self.adapter, tokens_T, self.layers).items():
                q, k = self.sides[layer]
                ci = found.get(layer, (None, None))
                reader = QkReader(text, q, k, self._ask(layer), ci, row)
                for query in queries:
                    yield ReadQuery(reader.read(query), ids_T)

    def side_reports(self) -> "tuple[QkSideReport, ...]":
        """Say of each side what it was decomposed into."""
        from actcli.reports.qk import QkSideReport

        return tuple(
            QkSideReport(
                layer=number,
                side=side,
                module=half.module,
                n_components=1 if factors is None else len(factors.ids_C),
                exact=factors is None,
            )
            for number, layer in self.layers.items()
            for side, half, factors in (
                ("q", layer.q, self.sides[number].q),
                ("k", layer.k, self.sides[number].k),
            )
        )

    def export(self) -> None:
        """Write the components of the layers as a file of factors, where that was asked for."""
        from actcli.decompositions.factors_file import write_factors

        path = self.config.export
        if path is not None:
            layers = list(self.layers.values())
            write_factors(path, self.decomposition, layers=layers, adapter=self.adapter)

    def _length(self, row: int) -> int:
        samples = self.texts.samples
        return samples.n_tokens if samples.lengths is None else int(samples.lengths[row])

    def _queries_of(self, row: int) -> tuple[int, ...]:
        length, wanted = self._length(row), self.config.queries
        if wanted in ("all", "last"):
            return tuple(range(length)) if wanted == "all" else (length - 1,)
        try:
            return IntRanges.parse(wanted).resolve(length, name="query")
        except UsageError as error:
            raise UsageError(f"sample {row} has {length} tokens: {error}") from error

    def _ask(self, layer: int) -> "QkAsk":
        from actcli.analysis.qk_pairs import QkAsk

        config, sides = self.config, self.sides[layer]
        pairs = [part_numbers(each, sides, layer=layer) for each in config.pairs]
        return QkAsk(
            mode=config.mode,
            rank=config.rank,
            top_n=config.top_n,
            pairs=pairs or None,
            ci_threshold=config.ci_threshold,
            gauge=config.gauge,
        )


def prepare(config: "QkContribConfig") -> QkSetup:
    """Load the model, open the components, and check that all fit together.

    Args:
        config: the options, with the built-in things where nothing was asked.

    Raises:
        ActcliError: something is missing or does not fit.
    """
    from actcli.capture.device import find_device
    from actcli.decompositions import load_target, open_decomposition
    from actcli.decompositions.factors import sides_of
    from actcli.models.qk import qk_layers

    spec = config.decomp
    assert spec is not None
    device = str(find_device(config.device))
    adapter = (
        load_target(spec, target=config.target, device=device, options=config.load_options)
        if config.init is None
        else _load(config, device=device)
    )
    decomposition = open_decomposition(
        spec, adapter, target=config.target, layout=config.layout, harvest=config.harvest
    )
    layers = qk_layers(adapter, _layers(config, adapter, decomposition))
    sides = {number: Sides(*sides_of(decomposition, layer)) for number, layer in layers.items()}
    init = config.init or config.target or adapter.files.source.init
    return QkSetup(config, adapter, decomposition, init, layers, sides)


def _layers(
    config: "QkContribConfig", adapter: "ModelAdapter", decomposition: "Decomposition"
) -> tuple[int, ...]:
    """The layers to read, rising: those asked for, or all that are decomposed."""
    known = decomposition.layers()
    if config.layers is None and known:
        return known
    asked = config.layers.resolve(adapter.n_layers) if config.layers else ()
    absent = [layer for layer in asked if layer not in known]
    if absent or not known:
        which = f"layer {absent[0]}" if absent else "any layer"
        raise UsageError(
            f"{decomposition.name} decomposes neither the Q nor the K of {which}; it has "
            f"{_listed(known)}"
        )
    return tuple(sorted(asked))


def _listed(layers: tuple[int, ...]) -> str:
    return f"layers {', '.join(map(str, layers))}" if layers else "none at all"


def _load(config: "QkContribConfig", *, device: str) -> "ModelAdapter":
    from actcli.models import find_model

    assert config.init is not None
    found = find_model(config.init, config.load_options)
    if found.reads != "text":
        raise UsageError(
            f"{config.init} is a model of the family {found.family.FAMILY!r}, which reads no "
            f"texts: qk-contrib needs a language model"
        )
    return found.load(device=device)
