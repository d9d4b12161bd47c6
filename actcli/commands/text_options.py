"""Options of every command that reads texts, and the samples that they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

from pydantic import PositiveInt, field_validator, model_validator

from actcli.errors import SamplesError, UsageError
from actcli.terminal.config import CommandConfig
from actcli.terminal.fields import Cli, Repeated

if TYPE_CHECKING:
    from actcli.samples.text_files import Texts
    from actcli.samples.token_rows import TokenRows
    from actcli.samples.tokenizer import TextTokenizer

SAMPLES_PANEL = "Samples"
_SOURCES = ("text", "jsonl", "prompt", "tokens", "dataset")


class TextOptions(CommandConfig):
    """Where texts come from, and how they become samples; at most one source is given."""

    text: Annotated[str | None, Cli(panel=SAMPLES_PANEL, metavar="<path>")] = None
    """UTF-8 file with a text on each line; blank lines are skipped. Or demo://NAME, built in."""

    jsonl: Annotated[Path | None, Cli(panel=SAMPLES_PANEL)] = None
    """File with a JSON object on each line; --field names the one that holds the text."""

    prompt: Annotated[Repeated[str], Cli(panel=SAMPLES_PANEL)] = ()
    """A text by itself; give the option again for more."""

    tokens: Annotated[Path | None, Cli(panel=SAMPLES_PANEL)] = None
    """An .npy file of token ids (samples, tokens), -1 behind short ones; needs no tokenizer."""

    dataset: Annotated[str | None, Cli(panel=SAMPLES_PANEL, metavar="<path>")] = None
    """Folder of a saved Hugging Face data set, or a .parquet file; --field names its column."""

    field: Annotated[str, Cli(panel=SAMPLES_PANEL)] = "text"
    """The field of --jsonl, or the column of --dataset, that holds the text."""

    max_tokens: Annotated[PositiveInt | None, Cli(panel=SAMPLES_PANEL)] = None
    """Cut samples that have more tokens; else those too long for the model are refused."""

    chunk: Annotated[PositiveInt | None, Cli(panel=SAMPLES_PANEL)] = None
    """Join all texts and cut them into samples of this many tokens; the rest is left out."""

    @property
    def given_source(self) -> str | None:
        """The option that was given to say where texts come from: `--text`; None if none was."""
        given = [f"--{name}" for name in _SOURCES if self.is_given(name)]
        return given[0] if given else None

    @field_validator("prompt")
    @classmethod
    def _check_prompts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not each.strip() for each in value):
            raise ValueError("a prompt is blank; give a text")
        return value

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        given = [f"--{name}" for name in _SOURCES if self.is_given(name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} name samples each: give one of them")
        if self.is_given("field") and not ({"--jsonl", "--dataset"} & set(given)):
            raise ValueError("--field has no effect without --jsonl or --dataset")
        if self.chunk is not None and self.max_tokens is not None:
            raise ValueError(
                "--chunk makes samples of one length, and --max-tokens cuts long ones: give one"
            )
        return self

    def is_given(self, name: str) -> bool:
        """Whether an option was given, and as something else than what it is without."""
        default = type(self).model_fields[name].default
        return name in self.model_fields_set and getattr(self, name) != default


class TextInput(NamedTuple):
    """Samples that were made of texts."""

    samples: "TokenRows"
    """Their tokens."""

    tokenizer: "TextTokenizer | None"
    """What encoded them, and names their tokens; None where the model's folder has none."""


def open_text_samples(
    options: TextOptions,
    folder: Path,
    *,
    n_samples: int | None = None,
    default: str | None = None,
    trust_remote_code: bool = False,
) -> TextInput:
    """Open the samples that the options name, with the tokenizer of a model.

    Args:
        options: the options of the command.
        folder: that of the model, or its weights file.
        n_samples: take the first ones alone.
        default: what stands for `--text` where no source is given.
        trust_remote_code: whether the tokenizer may be code from the folder.

    Raises:
        UsageError: no source is given and there is no default.
        SamplesError: the source cannot be read, or holds no texts.
        ModelError: the folder has no tokenizer, and the source is text.
    """
    from actcli.samples.text import encode_texts, pack_texts
    from actcli.samples.token_file import open_token_file
    from actcli.samples.tokenizer import has_tokenizer, load_tokenizer

    if options.tokens is not None:
        samples = open_token_file(
            options.tokens, limit=n_samples, max_tokens=options.max_tokens, chunk=options.chunk
        )
        there = has_tokenizer(folder)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code) if there else None
        return TextInput(samples, tokenizer)
    texts = open_texts(options, default=default)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if options.chunk is not None:
        packed = pack_texts(texts, tokenizer, chunk=options.chunk, limit=n_samples)
        return TextInput(packed, tokenizer)
    encoded = encode_texts(texts, tokenizer, limit=n_samples, max_tokens=options.max_tokens)
    return TextInput(encoded, tokenizer)


def open_texts(options: TextOptions, *, default: str | None = None) -> "Texts":
    """Return the texts that the options name.

    Raises:
        UsageError: no source is given and there is no default.
        SamplesError: nothing is there.
    """
    from actcli.samples.text_files import GivenTexts, JsonLinesTexts, open_lines

    source = options.given_source
    if source == "--prompt":
        return GivenTexts(options.prompt)
    if source == "--jsonl":
        assert options.jsonl is not None
        return JsonLinesTexts(options.jsonl.expanduser(), options.field)
    if source == "--dataset":
        return _open_dataset(options)
    text = options.text or default
    if text is None:
        raise UsageError(
            "there is no text to read: give --prompt, --text, --jsonl, --dataset or --tokens"
        )
    return open_lines(text)


def _open_dataset(options: TextOptions) -> "Texts":
    from actcli.samples.text_files import DatasetTexts, is_text_dataset

    assert options.dataset is not None
    path = Path(options.dataset).expanduser()
    if not is_text_dataset(path):
        what = "is no saved Hugging Face data set" if path.exists() else "does not exist"
        raise SamplesError(
            f"--dataset {path} {what}: expected a folder with dataset_info.json and state.json, "
            f"as Dataset.save_to_disk writes, or a .parquet file"
        )
    return DatasetTexts(path, options.field)
