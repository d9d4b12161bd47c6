"""`attn-plot`: where attention heads look, as pictures, a page and numbers."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from actcli.commands.attn_plot_reading import ALL_LAYERS, read_maps
from actcli.terminal.config import OUTPUT_PANEL, CommandConfig
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, IntRanges

if TYPE_CHECKING:
    from actcli.reports.attention import AttentionMaps, AttentionReport, TextMaps

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
    """Dump to read, of boards or texts, with attn_weights or attn_norm: .safetensors, .npz or
    .pt."""

    init: str | None = None
    """Model that recomputes attention from attn_norm; the one that the dump names, if not given.
    Not needed where the dump holds attn_weights: then it is only checked that they are its own.
    The tokenizer in its folder gives the words of a text."""

    layer: Annotated[str, Cli(panel=_WHAT, aliases=("--layers",), metavar="<1,3-5,...|all>")] = "1"
    """Layers, counted from 1, or all."""

    heads: Annotated[IntRanges | None, Cli(panel=_WHAT)] = None
    """Query heads to draw and to report, counted from 0; all, if not given."""

    avg: Annotated[bool, Cli(panel=_WHAT)] = True
    """Leave out the mean over all heads."""

    n_boards: Annotated[PositiveInt, Cli(panel=_WHAT, aliases=("--n-texts",))] = 2
    """Boards, or texts, to draw at random from the dump."""

    seed: Annotated[NonNegativeInt, Cli(panel=_WHAT)] = 0
    """Seed of that draw."""

    samples: Annotated[IntRanges | None, Cli(panel=_WHAT)] = None
    """Rows of the dump to look at, instead of a draw."""

    grid: Annotated[bool, Cli(panel=_WHAT)] = False
    """Draw one picture a board or text: all heads of the layer, or all layers × heads."""

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
        if text != ALL_LAYERS:
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
    from actcli.analysis.attention import check_rows_sum_to_one
    from actcli.render.attention_tables import attention_tables
    from actcli.render.records import check_report_target
    from actcli.store.reader import open_dump

    output = Output.of(config)
    for target in (config.html, config.output):
        if target is not None:
            check_report_target(target, force=config.force)
    with open_dump(config.input) as dump:
        maps = read_maps(config, dump, output)
    check_rows_sum_to_one(maps)
    heads = _chosen_heads(config, maps)
    report = _measure(maps, heads, source=str(config.input))
    report = _write_files(config, maps, report, heads=heads, output=output)
    output.print_report(report, attention_tables)


def _measure(
    maps: "AttentionMaps | TextMaps", heads: list[int], *, source: str
) -> "AttentionReport":
    from actcli.analysis.attention import measure_heads
    from actcli.analysis.attention_text import measure_text_heads
    from actcli.reports.attention import TextMaps

    if isinstance(maps, TextMaps):
        return measure_text_heads(maps, heads=heads, source=source)
    return measure_heads(maps, heads=heads, source=source)


def _chosen_heads(config: AttnPlotConfig, maps: "AttentionMaps | TextMaps") -> list[int]:
    n_heads = len(maps.heads)
    return [*(config.heads.resolve(n_heads, name="head") if config.heads else range(n_heads))]


def _write_files(
    config: AttnPlotConfig,
    maps: "AttentionMaps | TextMaps",
    report: "AttentionReport",
    *,
    heads: list[int],
    output: Output,
) -> "AttentionReport":
    """Write pictures, page and numbers; return the report with what was written."""
    pages = [] if config.html is None else [str(_write_page(config, maps, report))]
    files: list[str] = []
    folder = None
    if config.pictures:
        folder = config.output_dir or _default_folder(config)
        n_files = len(maps.samples) * (1 + (1 if config.grid else len(maps.layers) * len(heads)))
        with output.progress(n_files, "drawing") as advance:
            for path in _pictures(config, maps, folder, heads):
                files.append(str(path))
                advance(1)
    files += pages
    if config.output is not None:
        from actcli.render.records import write_heads

        write_heads(report, config.output)
        files.append(str(config.output))
    shown = None if folder is None else str(folder)
    return report.model_copy(update={"folder": shown, "files": tuple(files)})


def _pictures(
    config: AttnPlotConfig, maps: "AttentionMaps | TextMaps", folder: Path, heads: list[int]
) -> Iterator[Path]:
    from actcli.render import attention_pictures as boards
    from actcli.render import attention_text as texts
    from actcli.render.attention_figures import colour_limit
    from actcli.reports.attention import TextMaps
    from actcli.store.writer import make_folder

    make_folder(folder)
    limit = config.vmax or colour_limit(maps)
    if isinstance(maps, TextMaps):
        yield from texts.write_token_lists(maps, folder)
        draw_text = texts.write_text_grids if config.grid else texts.write_text_heads
        yield from draw_text(maps, folder, heads=heads, average=config.avg, limit=limit)
        return
    yield from boards.write_board_texts(maps, folder)
    draw = boards.write_grid_pictures if config.grid else boards.write_head_pictures
    yield from draw(maps, folder, heads=heads, average=config.avg, limit=limit)


def _default_folder(config: AttnPlotConfig) -> Path:
    now = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    return _DEFAULT_FOLDER / f"{config.input.stem}_layer{config.layer}_{now}"


def _write_page(
    config: AttnPlotConfig, maps: "AttentionMaps | TextMaps", report: "AttentionReport"
) -> Path:
    from actcli.render.attention_page import attention_page
    from actcli.render.records import write_file

    assert config.html is not None
    page = attention_page(maps, report, title=f"Attention of {config.input.name}")
    write_file(config.html, page.encode())
    return config.html
