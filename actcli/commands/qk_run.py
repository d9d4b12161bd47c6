"""What `qk-contrib` does once everything is open: read queries, or weights over offsets."""

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from actcli.commands.qk_describe import describe_reading, describe_table
from actcli.commands.qk_files import QkFiles, QkTargets, StaticFiles
from actcli.commands.qk_pairs_asked import component_numbers
from actcli.errors import UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from actcli.analysis.qk_table import QkTable
    from actcli.commands.qk_setup import QkSetup, ReadQuery
    from actcli.render.qk_view import QkView
    from actcli.reports.qk import QkReadingReport, QkReport, QkStatic

_MOST_REPORTED = 100


def run_texts(setup: "QkSetup", targets: QkTargets, output: Output) -> None:
    """Read all queries, writing records as they come, then the pictures, page and summary."""
    from actcli.analysis.qk_table import QkTable
    from actcli.render.qk_tables import qk_tables

    began = time.perf_counter()
    found, n_readings = _Found(QkTable()), setup.n_readings
    with (
        QkFiles(targets, setup.decomposition.name, setup.config.draw) as files,
        output.progress(n_readings, "reading") as advance,
    ):
        for read in setup.read():
            reading = describe_reading(read, setup.text_of)
            files.write(_view(setup, read), reading)
            found.add(read, reading)
            advance(1)
    report = _report(setup, found)
    for warning in report.warnings:
        output.warn(warning)
    report = files.finish(report, elapsed_s=time.perf_counter() - began)
    output.print_report(report, partial(qk_tables, n_readings=n_readings))


class _Found:
    """What is kept of the queries: the table over all, and the first of them."""

    def __init__(self, table: "QkTable") -> None:
        self.table = table
        self.readings: list[QkReadingReport] = []
        self.worst: tuple[float, float] | None = None
        """The gap and tolerance of the reading that comes nearest to its tolerance."""

    def add(self, read: "ReadQuery", reading: "QkReadingReport") -> None:
        """Take in a query."""
        self.table.add(read.pairs, read.ids_T.tolist())
        if len(self.readings) < _MOST_REPORTED:
            self.readings.append(reading)
        if reading.ledger_gap is not None and reading.tolerance is not None:
            this = (reading.ledger_gap, reading.tolerance)
            self.worst = max(self.worst or this, this)


def _report(setup: "QkSetup", found: _Found) -> "QkReport":
    queries = sorted({query for each in setup.queries.values() for query in each})
    gap, tolerance = found.worst or (None, None)
    return _plain_report(
        setup,
        samples=tuple(setup.queries),
        queries=tuple(queries),
        ledger_gap=gap,
        tolerance=tolerance,
        readings=tuple(found.readings),
        table=describe_table(found.table, setup.text_of),
        warnings=tuple(_warnings(setup)),
    )


def _plain_report(setup: "QkSetup", **more: Any) -> "QkReport":
    from actcli.reports.qk import QkReport

    config = setup.config
    return QkReport(
        model=setup.init,
        decomposition=setup.decomposition.name,
        mode=config.mode,
        rank=config.rank,
        layers=tuple(setup.layers),
        sides=setup.side_reports(),
        **more,
    )


def _warnings(setup: "QkSetup") -> Iterator[str]:
    if setup.texts.tokenizer is None:
        yield "the model's folder has no tokenizer: tokens are shown as their numbers"
    if setup.config.model_dtype in ("fp16", "bf16"):
        yield (
            f"the model computes in {setup.config.model_dtype}: its own logits are rounded, so "
            f"the ledger closes coarsely; drop --model-dtype"
        )


def _view(setup: "QkSetup", read: "ReadQuery") -> "QkView":
    from actcli.render.qk_view import QkView

    pairs, ids_T = read
    return QkView(
        run=setup.decomposition.name,
        pairs=pairs,
        query_token=setup.text_of(int(ids_T[pairs.query])),
        tokens=tuple(setup.text_of(int(ids_T[key])) for key in pairs.keys_P),
    )


def run_static(setup: "QkSetup", targets: QkTargets, output: Output) -> None:
    """Read the weights of each layer over offsets, and write what comes of it."""
    from actcli.render.qk_static import static_tables

    began = time.perf_counter()
    static_readings = [*_read_static(setup)]
    report = _plain_report(setup, samples=(), queries=())
    files = StaticFiles(targets, setup.config.draw)
    report = files.finish(report, static_readings, elapsed_s=time.perf_counter() - began)
    output.print_report(report, partial(static_tables, static_readings=static_readings))


def _read_static(setup: "QkSetup") -> "Iterator[QkStatic]":
    import torch

    from actcli.analysis.qk_static import read_static
    from actcli.models.qk import qk_texts

    config, adapter = setup.config, setup.adapter
    n_offsets = config.offsets.ranges[0].last + 1
    if n_offsets > adapter.max_tokens:
        raise UsageError(
            f"--offsets {config.offsets}: the model has positions for {adapter.max_tokens} tokens; "
            f"give at most 0-{adapter.max_tokens - 1}"
        )
    tokens_T = torch.arange(n_offsets) % adapter.vocab_size  # for their positions alone
    for layer, text in qk_texts(adapter, tokens_T, setup.layers).items():
        q, k = setup.sides[layer]
        pairs = [component_numbers(pair, layer=layer) for pair in config.pairs]
        yield read_static(
            text,
            q,
            k,
            rank=config.rank,
            n_offsets=n_offsets,
            top_n=config.top_n,
            alive=config.alive,
            pairs=pairs or None,
        )
