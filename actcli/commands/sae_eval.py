"""`sae-eval`: is this SAE or transcoder any good, and better than the published one."""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import PositiveInt, model_validator

from actcli import builtin, completion
from actcli.commands.model_options import MODEL_PANEL, ModelOptions
from actcli.commands.sae_options import (
    RESERVED_NAMES,
    DictionaryOptions,
    FeatureOptions,
    MetricOptions,
    TokenOptions,
)
from actcli.commands.text_options import SAMPLES_PANEL, TextOptions
from actcli.terminal.config import OUTPUT_PANEL
from actcli.terminal.console import Output
from actcli.terminal.fields import Cli

_RAW_ONLY = ("mapping", "activation", "k")
_ABOUT_MODEL = (
    "model_dtype",
    "device_map",
    "trust_remote_code",
    "loss",
    "n_samples",
    "batch_tokens",
)
_WITH_SAMPLES = {"feature", "top_contexts", "rich", "force", "json_output", "quiet", "device"}
_READS_SAMPLES = {
    "view": _WITH_SAMPLES | {"find"},
    "report": _WITH_SAMPLES,
    "browse": {"layer", "json_output", "quiet", "device"},
}
"""Options that read what exists, and those that have a meaning beside each, or (--device, which an
environment variable may give) do no harm."""


class SaeEvalConfig(
    FeatureOptions, MetricOptions, TokenOptions, TextOptions, ModelOptions, DictionaryOptions
):
    """Options of `sae-eval`."""

    examples: ClassVar[tuple[str, ...]] = (
        "actcli sae-eval",
        "actcli sae-eval --checkpoint results/gemma_2_2b/layer8/2025-10-28_run "
        "--from-dump acts.safetensors --exclude-bos",
        "actcli sae-eval --checkpoint runs/mine --google-dir gemma-scope-2b-pt-transcoders "
        "--layer 8 --init hf://google/gemma-2-2b --text texts.txt --n-tokens 100000",
        "actcli sae-eval --checkpoint demo://facts-matryoshka --samples out/samples",
        "actcli sae-eval --view out/samples --feature 42",
    )

    from_dump: Annotated[Path | None, Cli(panel=SAMPLES_PANEL)] = None
    """Read activations from a dump, or from any .safetensors, .npz or .pt file with tensors
    (tokens, d), (N, T, d) or (N, L, T, d), instead of running a model."""

    init: Annotated[str | None, Cli(panel=MODEL_PANEL)] = None
    """Model to run: a folder, hf://org/repo[/subfolder][@revision], or demo://facts, which is built
    in and stands here if nothing is given. Activations are judged as they come, and not stored."""

    device: Annotated[
        str, Cli(envvar="ACTCLI_DEVICE", panel=MODEL_PANEL, complete=completion.devices)
    ] = "auto"
    """Where dictionaries and model run: auto, cpu, cuda, cuda:N or mps."""

    n_samples: Annotated[PositiveInt | None, Cli(short="-n", panel=SAMPLES_PANEL)] = None
    """Use the first texts alone."""

    max_tokens: Annotated[
        PositiveInt | None, Cli(aliases=("--seq-len", "--seq_len"), panel=SAMPLES_PANEL)
    ] = None
    """Cut samples that have more tokens; else those too long for the model are refused."""

    batch_tokens: Annotated[PositiveInt, Cli(panel=MODEL_PANEL)] = 2048
    """Tokens in one forward pass of the model, padding included; figures change with it by the
    model's own rounding alone."""

    output_dir: Annotated[Path | None, Cli(aliases=("--output_dir",), panel=OUTPUT_PANEL)] = None
    """Folder for metrics.json or comparison.json, summary.txt, plots and a page;
    out/sae_eval/<name>_<time>, if not given."""

    output: Annotated[Path | None, Cli(short="-o", panel=OUTPUT_PANEL)] = None
    """Write the answer to this file too: .json, or .csv with a line for each dictionary."""

    files: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = True
    """Write nothing into --output-dir; the tables alone."""

    force: Annotated[bool, Cli(panel=OUTPUT_PANEL)] = False
    """Replace files that exist."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        mode = self.reading_mode
        if mode is not None:
            self._check_mode(mode)
            return self
        self._check_dictionaries()
        self._check_activations()
        self._check_metrics()
        self._check_samples()
        if self.output is not None and self.output.suffix not in (".json", ".csv"):
            raise ValueError(f"--output {self.output}: expected a name ending in .json or .csv")
        if self.output_dir is not None and not self.files:
            raise ValueError("--output-dir says where files go, --no-files that there are none")
        return self

    @property
    def reading_mode(self) -> str | None:
        """Which of --view, --report and --browse is given."""
        given = [name for name in _READS_SAMPLES if self.is_given(name)]
        return given[0] if given else None

    def _check_mode(self, mode: str) -> None:
        allowed = _READS_SAMPLES[mode] | {mode}
        idle = [name for name in self.model_fields_set if self.is_given(name)]
        for name in sorted(set(idle) - allowed):
            raise ValueError(
                f"--{mode} reads what exists and evaluates nothing: {_flag(name)} has no effect "
                f"with it, leave it out"
            )
        if self.rich is not None and self.rich.suffix != ".jsonl":
            raise ValueError(f"--rich {self.rich}: expected a name ending in .jsonl")

    def _check_dictionaries(self) -> None:
        n = self.n_dictionaries
        for name in ("name", "x", "y"):
            given = getattr(self, name)
            several = n if name == "name" else max(n, 1)
            if given and len(given) != several and (name == "name" or len(given) != 1):
                once = "" if name == "name" else "once, or "
                raise ValueError(
                    f"--{name} was given {len(given)} times and there are {n} dictionaries: give "
                    f"it {once}once for each"
                )
        taken = [each for each in self.name if each in RESERVED_NAMES]
        if taken:
            raise ValueError(f"--name {taken[0]}: comparison.json has a key of that name already")
        if len(set(self.name)) != len(self.name):
            raise ValueError("--name: two dictionaries cannot have the same name")
        if self.google_dir is not None and not self.checkpoint:
            raise ValueError(
                "--google-dir is what --checkpoint is compared with: give one, or the folder "
                "itself as --checkpoint"
            )
        raw = [name for name in _RAW_ONLY if self.is_given(name)]
        if raw and self.format != "raw":
            raise ValueError(f"{_flag(raw[0])} is for --format raw: it has no effect here")

    def _check_activations(self) -> None:
        if self.from_dump is not None:
            idle = [_flag(name) for name in ("init", *_ABOUT_MODEL) if self.is_given(name)]
            idle += [self.given_source] if self.given_source is not None else []
            if idle:
                raise ValueError(
                    f"--from-dump holds its own activations: leave out {idle[0]}, or run the model"
                )
        given = "--from-dump" if self.from_dump is not None else "--init"
        own = self.from_dump is not None or self.init not in (None, builtin.TEXT_MODEL)
        if own and not self.checkpoint:
            raise ValueError(f"{given}: there is nothing to evaluate, give --checkpoint")
        if self.batches is not None and self.n_tokens is not None:
            raise ValueError("--batches and --n-tokens both say when to stop: give one of them")
        if self.batch_size is not None and self.batches is None and self.compat is None:
            raise ValueError(
                "--batch-size is the batch of --batches and --compat upstream: no other figure "
                "depends on batches, leave it out (--batch-tokens is that of a forward pass)"
            )

    def _check_metrics(self) -> None:
        if (self.absorption == "first-letter") != (self.spelling is not None):
            raise ValueError(
                "--absorption first-letter and --spelling FILE go together: it is measured on "
                "words, which a dictionary alone does not have"
            )
        if self.compat is not None and self.n_dictionaries > 2:
            raise ValueError(
                "--compat upstream compares two dictionaries at most: leave out others"
            )
        if self.compat is not None and self.is_given("threshold"):
            raise ValueError("--compat upstream has the threshold 0.9: leave out --threshold")

    def _check_samples(self) -> None:
        if self.find is not None:
            raise ValueError("--find looks through the samples of --view: give it a folder")
        for name in ("feature", "top_features", "top_contexts", "context", "rich"):
            if self.is_given(name) and self.samples is None:
                raise ValueError(f"{_flag(name)} has no effect without --samples or --view")
        if self.feature and self.is_given("top_features"):
            raise ValueError("--feature says which features, --top-features how many: give one")
        if self.rich is not None and self.n_dictionaries > 1:
            raise ValueError(
                f"--rich takes the samples of one dictionary, and there are {self.n_dictionaries}: "
                f"export those of each afterwards, with --view {self.samples}/NAME --rich FILE"
            )
        if self.rich is not None and self.rich.suffix != ".jsonl":
            raise ValueError(f"--rich {self.rich}: expected a name ending in .jsonl")

    @property
    def n_dictionaries(self) -> int:
        """How many dictionaries are judged."""
        n = len(self.checkpoint) or len(builtin.DICTIONARIES)
        return n + (self.google_dir is not None)

    def with_demo(self) -> "SaeEvalConfig":
        """The same, with the built-in model and pair where nothing was said."""
        told: dict[str, object] = {}
        if not self.checkpoint:
            told |= {"checkpoint": builtin.DICTIONARIES, "loss": self.compat is None}
        of_demo = all(map(builtin.is_builtin, self.checkpoint)) and self.google_dir is None
        if self.init is None and self.from_dump is None and of_demo:
            # In bfloat16, as it is stored, rounding is a good part of what its loss differs by.
            told |= {"init": builtin.TEXT_MODEL, "model_dtype": self.model_dtype or "fp32"}
        return self.model_copy(update=told)


def _flag(name: str) -> str:
    field = SaeEvalConfig.model_fields[name]
    cli = next((each for each in field.metadata if isinstance(each, Cli)), Cli())
    flag = cli.flag or "--" + name.replace("_", "-")
    return f"--no-{flag.removeprefix('--')}" if field.default is True else flag


def sae_eval(config: SaeEvalConfig) -> None:
    """Judge SAEs and transcoders of any format on the same tokens, in one pass, and compare them.

    FVU, L0, dead features, cosine, decoder redundancy and more, each with its definition and the
    tokens that counted; differences with standard errors over samples.
    """
    output = Output.of(config)
    if config.reading_mode is not None:
        from actcli.commands.sae_features import read_samples

        read_samples(config, output)
        return
    from actcli.commands.sae_run import run

    run(config, output)
