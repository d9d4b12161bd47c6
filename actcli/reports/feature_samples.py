"""What the files of activation samples hold: those of `sae-eval` and of the Matryoshka program.

Fields of that program keep names and meaning; what `sae-eval` adds is null or empty where a file
does not have it, and keys that are not known are passed over.
"""

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Histogram, Report
from actcli.reports.sae_subject import DictionaryDescription

_TOLERANT = ConfigDict(
    use_attribute_docstrings=True, frozen=True, extra="ignore", allow_inf_nan=False
)


class FeatureSample(BaseModel):
    """An activation of a feature, and the tokens around it."""

    model_config = _TOLERANT

    feature_idx: int
    activation_value: float
    tokens: tuple[int | str, ...] = ()
    """The token before, if there is one, and the token itself; empty where ids are not known."""

    text: str = ""
    """Of these two."""

    position: int
    """Of the token in its sample."""

    context_tokens: tuple[int | str, ...] = ()
    """At most half the context size on either side of the token, and itself."""

    context_text: str = ""
    """Of these."""

    sample: int | None = None
    """Number of the sample: the row of the dump, or the text."""

    context_start: int | None = None
    """Position of the first token of the context."""

    context_texts: tuple[str, ...] | None = None
    """What each token of the context adds to its text."""

    context_activations: tuple[float | None, ...] | None = None
    """The feature at each token of the context; null where a token was left out of the evaluation,
    or was not read again."""


class FeatureStatistics(BaseModel):
    """What is known of a feature."""

    model_config = _TOLERANT

    feature_idx: int
    num_samples: int
    """Activations kept: the largest above the threshold, at most 100 unless told otherwise."""

    max_activation: float
    """Of those that are kept, as mean, standard deviation and minimum; 0 if there are none."""

    mean_activation: float
    std_activation: float | None = None
    """With divisor n."""

    min_activation: float | None = None
    activation_count: int = 0
    """Tokens at which the feature was above the threshold."""

    all_time_max: float | None = None
    """The largest activation of all; null if it was never active."""

    active_count: int | None = None
    """Tokens at which the feature was not 0."""

    n_tokens: int | None = None
    """Tokens that were evaluated."""

    density: float | None = None
    """active_count / n_tokens."""

    mean_when_active: float | None = None
    """Mean of all activations that are not 0, not only of those that are kept."""

    std_when_active: float | None = None
    """Their standard deviation, divisor n."""

    histogram: Histogram | None = None
    """Of all activations; the bins are half octaves, the first may begin at 0 and also has negative
    ones, the last ends at the largest."""


class SimilarFeature(BaseModel):
    """Another feature that writes nearly the same."""

    model_config = _TOLERANT

    feature_idx: int
    cosine: float
    """Of the decoder rows."""


class FeatureRecord(BaseModel):
    """A feature: `feature_00042_samples.json`."""

    model_config = _TOLERANT

    statistics: FeatureStatistics
    top_samples: tuple[FeatureSample, ...]
    """The largest activations, falling."""

    similar: tuple[SimilarFeature, ...] = ()
    """Features with the most similar decoder rows."""

    @property
    def feature(self) -> int:
        """Its number."""
        return self.statistics.feature_idx


class RankedFeature(BaseModel):
    """A feature in the list of those with the largest activations."""

    model_config = _TOLERANT

    feature_idx: int
    max_activation: float
    num_samples: int


class SamplesSummary(BaseModel):
    """All features together: `collection_summary.json`."""

    model_config = _TOLERANT

    total_samples_seen: int
    """Activations above the threshold, of all features."""

    total_samples_stored: int
    """Activations kept; fewer are in the files, which have the first of each feature."""

    num_features_tracked: int
    """Features that were ever above the threshold."""

    avg_samples_per_feature: float
    """total_samples_stored / num_features_tracked, which counts as 1 if it is 0."""

    features_with_samples: tuple[int, ...]
    top_features_by_activation: tuple[RankedFeature, ...]
    """The first 50."""

    features_written: tuple[int, ...] | None = None
    """Features that have a file."""

    n_features: int | None = None
    """Of the dictionary."""

    n_tokens: int | None = None
    """Tokens that were evaluated."""

    threshold: float | None = None
    """Only activations above it are kept."""

    most: int | None = None
    """Activations kept of each feature."""

    context_size: int | None = None
    """Half of it stands on either side of a token."""

    source: str | None = None
    """Where the tokens are from."""

    dictionary: DictionaryDescription | None = None
    actcli_version: str | None = None


class FeatureView(Report):
    """What `--view` shows of features that were asked for."""

    folder: str
    features: tuple[FeatureRecord, ...]


class FeatureLine(BaseModel):
    """A feature in a list."""

    model_config = _TOLERANT

    feature_idx: int
    max_activation: float
    mean_activation: float
    activation_count: int
    density: float | None
    text: str
    """Of the token with the largest activation, and of the one before it."""

    n_found: int | None = None
    """Contexts that have the text that was looked for."""


class FeatureList(Report):
    """What `--view` lists: all features of a folder, or those with a text in a context."""

    folder: str
    find: str | None
    """The text, in whatever case."""

    n_features: int
    """Features that have a file."""

    features: tuple[FeatureLine, ...]
    """The largest activation first; with `find`, the most contexts first."""


class Experiment(BaseModel):
    """A folder that holds a checkpoint or activation samples."""

    model_config = _TOLERANT

    path: str
    model: str | None
    """The folder above `layer<L>`; null where no folder is named so."""

    layer: int | None
    name: str
    """What stands below `layer<L>`, or below the folder that was searched."""

    has_checkpoint: bool
    checkpoints: tuple[str, ...]
    """Names of the files with weights."""

    has_samples: bool
    n_features: int
    """Features with a file of samples."""


class ExperimentList(Report):
    """What `--browse` lists."""

    root: str
    experiments: tuple[Experiment, ...]
    """By model, layer and name."""
