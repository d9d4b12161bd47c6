"""`outliers`: which hidden dimensions of a dump are far from zero, where, and how often."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from actcli import completion
from actcli.errors import DumpError, UsageError
from actcli.sites import SITES
from actcli.terminal.config import OUTPUT_PANEL, CommandConfig
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli, IntRanges

if TYPE_CHECKING:
    from rich.console import RenderableType

    from actcli.reports.outliers import ComparedOutliersReport, OutlierReport
    from actcli.store.reader import Dump, StoredTensor

_SUFFIXES = (".json", ".csv", ".png")
_WHAT = "What counts"
_ESTIMATES = "Estimates"
_TABLES = "Tables"

_MASK = "mask"
_WITHOUT_TOKENS = {site.name for site in SITES if site.axes and "T" not in site.axes}

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class OutliersConfig(CommandConfig):
    """Options of `outliers`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli outliers --threshold 6",
        "actcli outliers --input acts.safetensors --key mlp_input --layers 0,3-5,-1",
        "actcli outliers --compare-key mlp_input --output outliers.png",
    )

    input: Annotated[Path, Cli(short="-i")] = Path("activations.safetensors")
    """Dump to read: .safetensors, .npz or .pt."""

    key: Annotated[str, Cli(short="-k", complete=completion.dump_keys)] = "attn_norm"
    """Activations to analyse, (N, L, T, H) or (N, T, H), of any float dtype."""

    compare_key: Annotated[str | None, Cli(complete=completion.dump_keys)] = None
    """Further activations to analyse, and to compare with the first."""

    layers: Annotated[IntRanges | None, Cli(panel=_WHAT, complete=completion.dump_layers)] = None
    """Layers to look at, as the model numbers them; all in the dump, if not given."""

    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False), Cli(short="-t", panel=_WHAT)] = (
        6.0
    )
    """An element is a hit if its magnitude exceeds this; compared exactly, whatever the dtype."""

    min_layer_fraction: Annotated[Share, Cli(panel=_WHAT)] = 0.25
    """A hit is an outlier if at least this fraction of the layers are hits there too: at the same
    sample, token and dimension."""

    layer_fraction: Annotated[bool, Cli(panel=_WHAT)] = True
    """Take every hit for an outlier, whatever the other layers hold."""

    iqr_samples: Annotated[NonNegativeInt | None, Cli(panel=_ESTIMATES)] = None
    """Estimate the quartiles of all elements from so many, drawn with replacement; 0 leaves the
    quartiles out. Exact, if not given."""

    outlier_samples: Annotated[NonNegativeInt | None, Cli(panel=_ESTIMATES)] = None
    """Estimate the magnitude statistics from so many outliers, drawn with replacement. Exact, if
    not given or 0."""

    iqr_seed: Annotated[NonNegativeInt, Cli(panel=_ESTIMATES)] = 0
    """Seed of these draws."""

    topk_dims: Annotated[PositiveInt, Cli(panel=_TABLES)] = 10
    """Dimensions in the table of the top dimensions."""

    one_sided_threshold: Annotated[Share, Cli(panel=_TABLES)] = 0.95
    """Share of one sign from which a dimension is called one-sided."""

    max_dim_list: Annotated[PositiveInt, Cli(panel=_TABLES)] = 48
    """Dimensions in the list of all that have outliers."""

    output: Annotated[Path | None, Cli(short="-o", panel=OUTPUT_PANEL)] = None
    """Also write the result to a file: .json, .csv, or .png for a picture (counts by layer and
    hidden dimension, and the magnitudes)."""

    force: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """Replace the file if it exists."""

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        if self.output is not None and self.output.suffix not in _SUFFIXES:
            raise ValueError(
                f"--output {self.output}: expected a name that ends in {', '.join(_SUFFIXES)}"
            )
        return self


def outliers(config: OutliersConfig) -> None:
    """Count activation outliers in a dump.

    Which hidden dimensions are far from zero, in which layers and at which tokens, how large they
    are, and at which layer they appear. All numbers are exact unless you ask for an estimate, and
    memory stays small whatever the file's size. Padding, which the dump's mask tells, never counts.
    """
    from actcli.render.records import check_report_target, write_outliers

    output = Output.of(config)
    if config.output is not None:
        check_report_target(config.output, force=config.force)
    report = _analyse(config, output)
    if config.output is not None:
        write_outliers(report, config.output)
    output.print_report(report, lambda each: _tables(each, config))
    if config.output is not None:
        output.note(f"wrote {config.output}")


def _tables(
    report: "OutlierReport | ComparedOutliersReport", config: OutliersConfig
) -> "Iterable[RenderableType]":
    from actcli.render.outliers import TableOptions, compared_tables, outlier_tables
    from actcli.reports.outliers import ComparedOutliersReport

    shown = TableOptions(config.topk_dims, config.one_sided_threshold, config.max_dim_list)
    if isinstance(report, ComparedOutliersReport):
        return compared_tables(report, shown)
    return outlier_tables(report, shown)


def _analyse(config: OutliersConfig, output: Output) -> "OutlierReport | ComparedOutliersReport":
    from actcli.reports.outliers import ComparedOutliersReport, DimComparison
    from actcli.store.reader import open_dump

    with open_dump(config.input) as dump:
        keys = [config.key] + ([config.compare_key] if config.compare_key is not None else [])
        for key in keys:
            _check(dump, key, config)
        reports = [_count(dump, key, config, output) for key in keys]
    if config.compare_key is None:
        return reports[0]
    first, second = reports
    comparison = DimComparison.of(first, second)
    return ComparedOutliersReport(first=first, second=second, comparison=comparison)


def _check(dump: "Dump", key: str, config: OutliersConfig) -> None:
    """Refuse a key or a choice of layers before any work is done."""
    from actcli.analysis.activation_chunks import ActivationChunks
    from actcli.analysis.token_mask import TokenMask

    mask = _mask(dump, key)
    ActivationChunks(
        dump.tensor(key),
        _chosen_layers(dump, key, config),
        mask=None if mask is None else TokenMask(mask),
    )


def _count(dump: "Dump", key: str, config: OutliersConfig, output: Output) -> "OutlierReport":
    from actcli.analysis.outlier_statistics import Sampling
    from actcli.analysis.outliers import Work, count_outliers

    tensor = dump.tensor(key)
    mib = tensor.info.nbytes / 2**20
    output.note(f"{key}: {tensor.dtype} {list(tensor.shape)}, {mib:,.1f} MiB")
    n_samples = tensor.shape[0]
    with output.progress(n_samples, f"counting {key}") as advance:
        report = count_outliers(
            tensor,
            threshold=config.threshold,
            min_layer_fraction=config.min_layer_fraction if config.layer_fraction else None,
            layers=_chosen_layers(dump, key, config),
            mask=_mask(dump, key),
            layer_names=_layer_names(dump, key),
            token_names=_recorded(dump, "positions", _axis_length(dump, key, "T")),
            sampling=Sampling(config.iqr_samples, config.outlier_samples, config.iqr_seed),
            work=Work(advance=advance),
            source=str(config.input),
        )
    _warn_of_non_finite(report, output)
    return report


def _mask(dump: "Dump", key: str) -> "StoredTensor | None":
    """Return which tokens are real, where the dump says so and the key has tokens."""
    if _MASK not in dump.header.tensors:
        return None
    if key in _WITHOUT_TOKENS:
        return None
    return dump.tensor(_MASK)


def _chosen_layers(dump: "Dump", key: str, config: OutliersConfig) -> list[int] | None:
    """Return the wanted layers' places on the layer axis, rising; None for all.

    Raises:
        UsageError: the key has no layer axis, or a layer is out of range.
        DumpError: the dump does not hold a layer.
    """
    if config.layers is None:
        return None
    names = _layer_names(dump, key)
    if names is None:
        raise UsageError(f"--layers: {key!r} has no layer axis; leave --layers out")
    n_layers = max([*names, _n_model_layers(dump) - 1]) + 1
    wanted = config.layers.resolve(n_layers)
    absent = [layer for layer in wanted if layer not in names]
    if absent:
        raise DumpError(
            f"{dump.path} does not hold layer {absent[0]} of {key!r}; it holds layers "
            f"{', '.join(map(str, names))}"
        )
    return sorted(names.index(layer) for layer in wanted)


def _layer_names(dump: "Dump", key: str) -> Sequence[int] | None:
    """Return the model's numbers of the layers on the axis; None if there is no such axis."""
    n_layers = _axis_length(dump, key, "L")
    if n_layers is None:
        return None
    return _recorded(dump, "layers", n_layers) or range(n_layers)


def _axis_length(dump: "Dump", key: str, axis: str) -> int | None:
    shape = dump.check_key(key).shape
    axes = {4: "NLTH", 3: "NTH"}.get(len(shape), "")
    return shape[axes.index(axis)] if axis in axes else None


def _recorded(dump: "Dump", name: str, length: int | None) -> list[int] | None:
    """Return a list of indices from the manifest, if it fits the axis."""
    value = dump.manifest.get(name)
    if not isinstance(value, list) or len(value) != length:
        return None
    return value if all(isinstance(each, int) for each in value) else None


def _n_model_layers(dump: "Dump") -> int:
    n_layers = dump.metadata.get("num_layers", "0")
    return int(n_layers) if n_layers.isdecimal() else 0


def _warn_of_non_finite(report: "OutlierReport", output: Output) -> None:
    if report.nan_count:
        output.warn(
            f"{report.key}: {report.nan_count:,} elements are NaN; they are never outliers and are "
            f"left out of the quartiles"
        )
    infinite = report.positive_infinity_count + report.negative_infinity_count
    if infinite:
        output.warn(
            f"{report.key}: {infinite:,} elements are infinite; they count as hits (an fp16 dump "
            f"overflows beyond 65504: use bf16 or fp32)"
        )
