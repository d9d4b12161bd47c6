"""Options of `sae-eval` in groups: which dictionaries, which tokens count, which metrics."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from actcli import completion
from actcli.commands.sae_checks import Check
from actcli.terminal.config import CommandConfig
from actcli.terminal.fields import Cli, CommaSeparated, IntRanges, Repeated

DICTIONARIES_PANEL = "Dictionaries"
RULES_PANEL = "Tokens that count"
METRICS_PANEL = "Metrics"
FEATURES_PANEL = "Features"

RESERVED_NAMES = ("summary", "comparison", "metrics", "differences", "tokens", "warnings")
"""Keys of `comparison.json` beside the names of dictionaries."""

SEED_BATCH = 128
"""Tokens in a batch of the Matryoshka program, whatever its own --batch_size says."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DictionaryOptions(CommandConfig):
    """Which dictionaries are judged, and how their files are read."""

    checkpoint: Annotated[
        Repeated[str],
        Cli(
            aliases=("--ours-checkpoint", "--ours_checkpoint"),
            panel=DICTIONARIES_PANEL,
            metavar="<path>",
        ),
    ] = ()
    """SAE or transcoder: a folder, a file, hf://org/repo[/subfolder][@revision], or demo://NAME;
    give the option again for more. The built-in pair of layer 4 of demo://facts, if none is
    given."""

    google_dir: Annotated[
        str | None, Cli(aliases=("--google_dir",), panel=DICTIONARIES_PANEL, metavar="<path>")
    ] = None
    """A folder of Gemma Scope (layer_*/width_*/average_l0_*), or its hf:// name, to compare with:
    of --layer, and of the --l0 that is asked for or else nearest to the first dictionary's. It is
    called google, and a single --checkpoint beside it ours."""

    name: Annotated[Repeated[str], Cli(panel=DICTIONARIES_PANEL)] = ()
    """What tables, plots and files call a dictionary; as often as there are dictionaries."""

    layer: Annotated[NonNegativeInt | None, Cli(panel=DICTIONARIES_PANEL)] = None
    """Layer, where a folder holds several, or where a dictionary's own config names none."""

    l0: Annotated[PositiveInt | None, Cli(panel=DICTIONARIES_PANEL)] = None
    """Which of the average_l0_* of a folder to take: the nearest to this."""

    format: Annotated[
        str | None, Cli(panel=DICTIONARIES_PANEL, complete=completion.dictionary_formats)
    ] = None
    """Take the files for this format in place of finding it; raw reads any tensors with --map."""

    mapping: Annotated[
        Repeated[str],
        Cli(flag="--map", panel=DICTIONARIES_PANEL, metavar="<W_enc=key>"),
    ] = ()
    """raw: which tensor of the file is W_enc, W_dec, b_enc, b_dec, threshold, W_skip or centre,
    where it has another name; once for each."""

    activation: Annotated[
        Literal["relu", "jumprelu", "topk"] | None, Cli(panel=DICTIONARIES_PANEL)
    ] = None
    """raw: what turns pre-activations into features."""

    k: Annotated[PositiveInt | None, Cli(panel=DICTIONARIES_PANEL)] = None
    """raw: how many features of a token --activation topk keeps."""

    x: Annotated[
        Repeated[str], Cli(panel=DICTIONARIES_PANEL, complete=completion.dictionary_places)
    ] = ()
    """What a dictionary reads: a key of the dump, or site.layer such as mlp_input.8. Once for all
    or once for each; what its own config says, if not given."""

    y: Annotated[
        Repeated[str], Cli(panel=DICTIONARIES_PANEL, complete=completion.dictionary_places)
    ] = ()
    """Its target, likewise; of an SAE the same as --x."""

    @field_validator("mapping")
    @classmethod
    def _check_mapping(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            name, equals, key = each.partition("=")
            if not (name and equals and key):
                raise ValueError(f"found {each!r}; expected NAME=KEY such as W_enc=encoder.weight")
        return value


class TokenOptions(CommandConfig):
    """Which tokens count, for all dictionaries alike."""

    exclude_bos: Annotated[bool, Cli(panel=RULES_PANEL)] = False
    """Leave out the token that begins a text; where ids are not known, the first of each sample."""

    exclude_tokens: Annotated[CommaSeparated[NonNegativeInt], Cli(panel=RULES_PANEL)] = ()
    """Leave out tokens with these ids."""

    exclude_positions: Annotated[IntRanges | None, Cli(panel=RULES_PANEL)] = None
    """Leave out these positions; negative ones count from the end of each sample."""

    max_norm_multiple: Annotated[Positive | None, Cli(panel=RULES_PANEL)] = None
    """Leave out tokens whose input of a dictionary is longer than so many times the median of the
    first 4,096."""

    n_tokens: Annotated[PositiveInt | None, Cli(panel=RULES_PANEL)] = None
    """Stop after so many tokens that count; all of them, if not given."""

    batches: Annotated[PositiveInt | None, Cli(panel=RULES_PANEL)] = None
    """The same in batches of --batch-size, as the Matryoshka program counts."""

    batch_size: Annotated[PositiveInt | None, Cli(aliases=("--batch_size",), panel=RULES_PANEL)] = (
        None
    )
    """Tokens in such a batch, for --batches and for the averages of --compat upstream; 128, if not
    given: that is what the batches of that program hold, whatever it is told."""

    @property
    def seed_batch(self) -> int:
        """Tokens in a batch of the Matryoshka program."""
        return self.batch_size or SEED_BATCH

    @property
    def most_tokens(self) -> int | None:
        """After how many tokens to stop."""
        return self.n_tokens if self.batches is None else self.batches * self.seed_batch


class MetricOptions(CommandConfig):
    """What is computed."""

    threshold: Annotated[Share, Cli(panel=METRICS_PANEL)] = 0.9
    """Absorption: a pair of decoder rows counts where |cosine| is above this."""

    absorption: Annotated[Literal["pairs", "first-letter"], Cli(panel=METRICS_PANEL)] = "pairs"
    """pairs: the share of pairs of decoder rows with |cosine| above --threshold, which the
    Matryoshka program calls absorption. It measures redundancy; it is NOT the feature absorption of
    Chanin et al. (arXiv:2409.14507), which first-letter adds, from a --spelling file."""

    spelling: Annotated[Path | None, Cli(panel=METRICS_PANEL)] = None
    """Words for --absorption first-letter: a .txt file, one a line, which the model reads; or a
    .safetensors or .npz file of their activations x (words, width) and letters (words,)."""

    dense_threshold: Annotated[Share, Cli(panel=METRICS_PANEL)] = 0.01
    """A feature is dense if it fires on a larger share of the tokens than this."""

    fvu_definition: Annotated[
        Literal["standard", "centered", "legacy", "upstream", "about-zero"],
        Cli(panel=METRICS_PANEL),
    ] = "standard"
    """Which fraction of variance unexplained the table's first line, its label, summary.txt and the
    winner in comparison.json go by: standard is sum e^2 / sum (t - mean t)^2 over all tokens;
    docs/guides/sae-eval.md has all."""

    pair_statistics: Annotated[bool, Cli(panel=METRICS_PANEL)] = False
    """Add the mean |cosine| over all pairs of decoder rows."""

    loss: Annotated[bool, Cli(panel=METRICS_PANEL)] = False
    """Add cross-entropy and KL recovered when the reconstruction stands in the model: another
    2 + (number of dictionaries) forward passes; needs a model. On where no --checkpoint is given:
    the built-in model is small."""

    compat: Annotated[Literal["upstream"] | None, Cli(panel=METRICS_PANEL)] = None
    """upstream: files and figures as the Matryoshka program computes them: values of batches
    averaged, a scalar mean in the FVU, cosine of whole batches, no dead features, all in the dtype
    of the stored weights."""

    check: Annotated[Repeated[str], Cli(panel=METRICS_PANEL, metavar="<metric<value>")] = ()
    """End with exit status 3 unless this holds for every dictionary: 'fvu<0.3' or any other number
    of metrics.json, with <, <=, > or >=; give it again for more."""

    @field_validator("check")
    @classmethod
    def _check_checks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            Check.parse(each)
        return value


class FeatureOptions(CommandConfig):
    """Activation samples: collect them beside the metrics, or read those that exist."""

    samples: Annotated[Path | None, Cli(panel=FEATURES_PANEL)] = None
    """Collect the strongest activations of each feature into this folder, with their contexts and
    a page to read them; of several dictionaries into a folder each, by name."""

    top_features: Annotated[PositiveInt, Cli(panel=FEATURES_PANEL)] = 100
    """How many features --samples writes: those with the largest activations."""

    top_contexts: Annotated[PositiveInt, Cli(panel=FEATURES_PANEL)] = 10
    """How many contexts of each feature --samples writes, --view shows and --rich takes."""

    context: Annotated[PositiveInt, Cli(panel=FEATURES_PANEL)] = 20
    """Tokens of a context, half of them on either side."""

    view: Annotated[
        Path | None, Cli(aliases=("--sample-dir", "--sample_dir"), panel=FEATURES_PANEL)
    ] = None
    """Show the samples of this folder, and nothing else: a list of features, or those of --feature
    or --find; at a terminal it asks on."""

    feature: Annotated[CommaSeparated[NonNegativeInt], Cli(panel=FEATURES_PANEL)] = ()
    """Features to show with --view, to write with --samples, or to export with --rich."""

    find: Annotated[str | None, Cli(panel=FEATURES_PANEL)] = None
    """List the features of --view whose contexts hold this text."""

    report: Annotated[Path | None, Cli(panel=FEATURES_PANEL)] = None
    """Write interpretability_report.md and a page into this folder of samples, and nothing else."""

    browse: Annotated[Path | None, Cli(panel=FEATURES_PANEL)] = None
    """List the experiments below this folder (<model>/layer<L>/<name>; --layer chooses), and
    nothing else."""

    rich: Annotated[Path | None, Cli(panel=FEATURES_PANEL)] = None
    """Write the samples of --samples, --view or --report to this .jsonl file too, as raw text and
    as <<<token (act: x)>>>, ready for a prompt that asks what a feature means."""
