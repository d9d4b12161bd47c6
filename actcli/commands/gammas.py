"""`gammas`: have the gains of a model's norms moved away from 1?"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from actcli.errors import CheckFailed, DumpError, ModelError
from actcli.sites import GAMMAS_PREFIX
from actcli.terminal.config import OUTPUT_PANEL, CommandConfig
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli

if TYPE_CHECKING:
    from actcli.store.reader import Dump, StoredTensor

_DEFAULT_INPUT = Path("activations.safetensors")


class GammasConfig(CommandConfig):
    """Options of `gammas`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli gammas --init demo://2048",
        "actcli gammas --input activations.safetensors --tolerance 0.001",
        "actcli gammas --init runs/mine --check --quiet",
    )

    input: Annotated[Path | None, Cli(short="-i")] = None
    """Dump to read: .safetensors, .npz or .pt, with gammas (`actcli dump --outputs
    rmsnorm_gammas`); activations.safetensors, if neither this nor --init is given."""

    init: str | None = None
    """Model to read instead of a dump: a folder, a .pt bundle, a .safetensors file beside its
    config.json, hf://org/repo[/subfolder][@revision], or demo://2048."""

    prefix: str = GAMMAS_PREFIX
    """Which tensors of the dump are gammas: those whose keys begin so. With --init: which norms,
    after this prefix of a dump's keys is put before their names."""

    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How far from 1 a gamma may be and still count as 1; 0 means exactly 1.0 in the stored
    dtype."""

    check: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """End with exit status 3 if all gammas are 1: the norms were not trained, or not loaded."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.input is not None and self.init is not None:
            raise ValueError("--input and --init exclude each other: give a dump or a model")
        return self


def gammas(config: GammasConfig) -> None:
    """Show how far the gains of a model's norms have moved from 1.

    Reads a dump or the model itself. A norm starts with all gammas at 1.0; ones that stay there
    hint at weights that were never trained or never loaded.
    """
    from actcli.analysis.gammas import summarise_gammas
    from actcli.render.gammas import gamma_tables

    output = Output.of(config)
    with ExitStack() as stack:
        found, source = _find_gammas(config, stack)
        report = summarise_gammas(found, tolerance=config.tolerance, source=source)
    output.print_report(report, gamma_tables)
    if config.check and report.all_ones:
        near = f"within {config.tolerance:g} of 1.0" if config.tolerance else "exactly 1.0"
        raise CheckFailed(f"all {report.total:,} gammas of {source} are {near}")


def _find_gammas(
    config: GammasConfig, stack: ExitStack
) -> "tuple[Mapping[str, StoredTensor], str]":
    from actcli.store.reader import open_dump

    if config.init is not None:
        return _gammas_of_model(config.init, config.prefix), config.init
    dump = stack.enter_context(open_dump(config.input or _DEFAULT_INPUT))
    return _gammas_of_dump(dump, config.prefix), str(dump.path)


def _gammas_of_dump(dump: "Dump", prefix: str) -> "dict[str, StoredTensor]":
    keys = [key for key in dump.header.tensors if key.startswith(prefix)]
    if not keys:
        raise DumpError(
            f"{dump.path} has no tensors whose keys begin with {prefix!r}; it holds "
            f"{', '.join(dump.header.tensors) or 'nothing'}: dump them with 'actcli dump --outputs "
            f"rmsnorm_gammas', or read them from the model with --init"
        )
    return {key.removeprefix(prefix): dump.tensor(key) for key in keys}


def _gammas_of_model(init: str, prefix: str) -> "dict[str, StoredTensor]":
    from actcli.models import load_model
    from actcli.store.reader import in_memory

    norms = load_model(init).norm_gammas()
    named = {GAMMAS_PREFIX + name: weight for name, weight in norms.items()}
    chosen = [key for key in named if key.startswith(prefix)]
    if not chosen:
        raise ModelError(
            f"{init} has no norm whose key in a dump begins with {prefix!r}; it has "
            f"{', '.join(named) or 'no norm with a gain'}"
        )
    return {
        key.removeprefix(prefix): in_memory(key, named[key].float().cpu().numpy()) for key in chosen
    }
