"""`attn-plot`: where attention heads look, as pictures, a page and numbers."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from actcli.errors import ModelError, UsageError
from actcli.terminal.config import OUTPUT_PANEL, CommandConfig
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, IntRanges

if TYPE_CHECKING:
    from actcli.models.adapter import ModelAdapter
    from actcli.reports.attention import AttentionMaps, AttentionReport
    from actcli.store.reader import Dump

_ALL = "all"
_DEFAULT_FOLDER = Path("out/attn_viz")
_NUMBERS = (".csv", ".json")
_WHAT = "What to draw"


class AttnPlotConfig(CommandConfig):
    """Options of `attn-plot`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli attn-plot --layer 1 --n-boards 2",
        "actcli attn-plot --layer all --samples 3,17 --grid --html report.html",
        "actcli attn-plot --layer all --no-pictures --output heads.csv",
    )

    input: Annotated[Path, Cli(short="-i")] = Path("activations.safetensors")
    """Dump to read, with boards and attn_weights, or attn_norm: .safetensors, .npz or .pt."""

    init: str | None = None
    """Model that recomputes attention from attn_norm; the one that the dump names, if not given.
    Not needed where the dump holds attn_weights: then it is only checked that they are its own."""

    layer: Annotated[str, Cli(panel=_WHAT, aliases=("--layers",), metavar="<1,3-5,...|all>")] = "1"
    """Layers, counted from 1, or all."""

    heads: Annotated[IntRanges | None, Cli(panel=_WHAT)] = None
    """Query heads to draw and to report, counted from 0; all, if not given."""

    avg: Annotated[bool, Cli(panel=_WHAT)] = True
    """Leave out the mean over all heads."""

    n_boards: Annotated[PositiveInt, Cli(panel=_WHAT)] = 2
    """Boards to draw at random from the dump."""

    seed: Annotated[NonNegativeInt, Cli(panel=_WHAT)] = 0
    """Seed of that draw."""

    samples: Annotated[IntRanges | None, Cli(panel=_WHAT)] = None
    """Rows of the dump to look at, instead of a draw."""

    grid: Annotated[bool, Cli(panel=_WHAT)] = False
    """Draw one picture a board: all heads of the layer, or all layers × heads."""

    vmax: Annotated[float | None, Field(gt=0, le=1), Cli(panel=_WHAT)] = None
    """Weight at which the colour scale ends; the largest weight shown, if not given."""

    pictures: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = True
    """Write no pictures, only what --html and --output ask for, and the table."""

    output_dir: Annotated[Path | None, Cli(panel=OUTPUT_PANEL)] = None
    """Folder for the pictures; out/attn_viz/<input>_layer<L>_<time>, if not given."""

    html: Annotated[Path | None, Cli(panel=OUTPUT_PANEL)] = None
    """Also write a page to explore: one file, no network."""

    output: Annotated[Path | None, Cli(short="-o", panel=OUTPUT_PANEL)] = None
    """Also write the numbers of the heads to a file: .csv or .json."""

    force: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """Replace the page and the file of numbers if they exist."""

    @field_validator("layer", mode="before")
    @classmethod
    def _check_layer(cls, value: object) -> str:
        text = str(value).strip()
        if text != _ALL:
            IntRanges.parse(text)
        return text

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        if self.output is not None and self.output.suffix not in _NUMBERS:
            raise ValueError(f"--output {self.output}: expected a name ending in .csv or .json")
        return self


def attn_plot(config: AttnPlotConfig) -> None:
    """Draw where attention heads look, exactly as the model computes it.

    Attention comes from the dump's attn_weights, or is recomputed from its attn_norm by the model's
    own attention code, after a check that the dump was made from that model.
    """
    from actcli.analysis.attention import check_rows_sum_to_one, measure_heads
    from actcli.render.attention_tables import attention_tables
    from actcli.render.records import check_report_target
    from actcli.store.reader import open_dump

    output = Output.of(config)
    for target in (config.html, config.output):
        if target is not None:
            check_report_target(target, force=config.force)
    with open_dump(config.input) as dump:
        maps = _read_maps(config, dump, output)
    check_rows_sum_to_one(maps)
    heads = _chosen_heads(config, maps)
    report = measure_heads(maps, heads=heads, source=str(config.input))
    report = _write_files(config, maps, report, heads=heads, output=output)
    output.print_report(report, attention_tables)


def _read_maps(config: AttnPlotConfig, dump: "Dump", output: Output) -> "AttentionMaps":
    from actcli.analysis.attention_maps import (
        attention_layers,
        check_attention_dump,
        holds_weights,
        read_boards,
        stored_attention,
    )

    check_attention_dump(dump)
    held = attention_layers(dump)
    layers = _chosen_layers(config, dump, held)
    samples = _chosen_samples(config, dump)
    boards = read_boards(dump, samples)
    if holds_weights(dump) and config.init is None:
        return stored_attention(dump, samples, boards, layers=layers)
    from actcli.analysis.attention_recomputed import recomputed_attention
    from actcli.capture.belongs import check_belongs

    adapter = _load_model_of(config, dump)
    check_belongs(dump, adapter, boards=boards[:1], row=samples[0])
    if holds_weights(dump):
        return stored_attention(dump, samples, boards, layers=layers)
    dtype = dump.check_key("attn_norm").dtype
    if dtype in ("BF16", "F16"):
        output.note(
            f"attn_norm is stored in {dtype}: recomputed weights carry its rounding; dump "
            f"attn_weights, or attn_norm with --dtype fp32, for exact ones"
        )
    return recomputed_attention(dump, samples, boards, adapter, layers=layers)


def _load_model_of(config: AttnPlotConfig, dump: "Dump") -> "ModelAdapter":
    """Load --init, or the model that the dump was made from.

    The manifest knows the folder's whole path; the plain key has it as it was typed.
    """
    from actcli.models import load_model

    if config.init is not None:
        return load_model(config.init)
    typed = dump.metadata.get("checkpoint")
    if typed is None:
        raise UsageError(
            f"{dump.path} holds no attn_weights and does not name its model: give --init"
        )
    whole = dump.manifest.get("model", {}).get("path", "")
    is_local = "://" not in typed
    try:
        return load_model(whole if is_local and whole and Path(whole).exists() else typed)
    except ModelError as error:
        raise ModelError(
            f"{error} ({dump.path} names it as its model; --init gives another)"
        ) from error


def _chosen_layers(config: AttnPlotConfig, dump: "Dump", held: Sequence[int]) -> list[int]:
    """Model layers, counted from 0, rising."""
    if config.layer == _ALL:
        return sorted(held)
    n_layers = max(max(held) + 1, _recorded_layers(dump))
    try:
        layers = sorted(each - 1 for each in IntRanges.parse(config.layer).resolve(n_layers + 1))
    except UsageError:
        layers = [-1]
    if layers[0] < 0:
        raise UsageError(
            f"--layer {config.layer}: the model has layers 1 to {n_layers}, counted from 1; give "
            f"some of them, or all"
        )
    absent = [layer + 1 for layer in layers if layer not in held]
    if absent:
        have = ", ".join(str(layer + 1) for layer in held)
        raise UsageError(f"--layer: {dump.path} does not hold layer {absent[0]}; it holds {have}")
    return layers


def _recorded_layers(dump: "Dump") -> int:
    recorded = dump.metadata.get("num_layers", "")
    return int(recorded) if recorded.isdecimal() else 0


def _chosen_samples(config: AttnPlotConfig, dump: "Dump") -> list[int]:
    import numpy as np

    n_rows = dump.check_key("boards").shape[0]
    if config.samples is not None:
        return list(config.samples.resolve(n_rows, name="sample"))
    rng = np.random.default_rng(config.seed)
    return [int(row) for row in rng.choice(n_rows, min(config.n_boards, n_rows), replace=False)]


def _chosen_heads(config: AttnPlotConfig, maps: "AttentionMaps") -> list[int]:
    n_heads = len(maps.heads)
    return [*(config.heads.resolve(n_heads, name="head") if config.heads else range(n_heads))]


def _write_files(
    config: AttnPlotConfig,
    maps: "AttentionMaps",
    report: "AttentionReport",
    *,
    heads: list[int],
    output: Output,
) -> "AttentionReport":
    """Write pictures, page and numbers; return the report with what was written."""
    files: list[str] = []
    folder = None
    if config.pictures:
        folder = config.output_dir or _default_folder(config)
        n_files = len(maps.samples) * (1 + (1 if config.grid else len(maps.layers) * len(heads)))
        with output.progress(n_files, "drawing") as advance:
            for path in _pictures(config, maps, folder, heads):
                files.append(str(path))
                advance(1)
    if config.html is not None:
        files.append(str(_write_page(config, maps, report)))
    if config.output is not None:
        from actcli.render.records import write_heads

        write_heads(report, config.output)
        files.append(str(config.output))
    shown = None if folder is None else str(folder)
    return report.model_copy(update={"folder": shown, "files": tuple(files)})


def _pictures(
    config: AttnPlotConfig, maps: "AttentionMaps", folder: Path, heads: list[int]
) -> Iterator[Path]:
    from actcli.render import attention_pictures as draw
    from actcli.store.writer import make_folder

    make_folder(folder)
    limit = config.vmax or draw.colour_limit(maps)
    yield from draw.write_board_texts(maps, folder)
    if config.grid:
        yield from draw.write_grid_pictures(
            maps, folder, heads=heads, average=config.avg, limit=limit
        )
    else:
        yield from draw.write_head_pictures(
            maps, folder, heads=heads, average=config.avg, limit=limit
        )


def _default_folder(config: AttnPlotConfig) -> Path:
    now = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    return _DEFAULT_FOLDER / f"{config.input.stem}_layer{config.layer}_{now}"


def _write_page(config: AttnPlotConfig, maps: "AttentionMaps", report: "AttentionReport") -> Path:
    from actcli.render.attention_page import attention_page
    from actcli.render.records import write_file

    assert config.html is not None
    page = attention_page(maps, report, title=f"Attention of {config.input.name}")
    write_file(config.html, page.encode())
    return config.html
