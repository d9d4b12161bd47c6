"""Options of texts name one source, and open it with the model's own tokenizer."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from pydantic import ValidationError

from actcli.commands.text_options import TextOptions, open_text_samples
from actcli.errors import ModelError, SamplesError, UsageError
from actcli.terminal.config_command import Command
from tests.samples.made_tokenizers import words


class StepsOptions(TextOptions):
    dataset: str = "demo://2048-steps"
    """As `dump` has it."""


@pytest.fixture
def model(tmp_path):
    return words(tmp_path / "model", ["a", "b", "c"], eos="</s>")


def tokens_of(samples):
    return samples.batch(range(len(samples))).stored["token_ids"].tolist()


def test_every_source_gives_the_same_samples(tmp_path, model):
    texts = ["a b", "c"]
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"words": texts})
    made.save_to_disk(tmp_path / "ds")
    made.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_text("a b\n\nc\n")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"words": each}) for each in texts[:1]))
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('\n{"words": "c"}\n')
    np.save(tmp_path / "t.npy", [[2, 3], [4, -1]])
    for given in (
        {"text": str(tmp_path / "t.txt")},
        {"prompt": texts},
        {"jsonl": tmp_path / "t.jsonl", "field": "words"},
        {"dataset": str(tmp_path / "ds"), "field": "words"},
        {"dataset": str(tmp_path / "t.parquet"), "field": "words"},
        {"tokens": tmp_path / "t.npy"},
    ):
        options = TextOptions(**given)
        samples, tokenizer = open_text_samples(options, model)
        assert options.given_source == f"--{next(iter(given))}"
        assert tokens_of(samples) == [[2, 3], [4, -1]]
        assert tokenizer.text_of(4) == "c"
        assert len(open_text_samples(options, model, n_samples=1).samples) == 1


def test_cut_or_packed(model):
    prompts = ("a b c", "b")
    cut, _ = open_text_samples(TextOptions(prompt=prompts, max_tokens=2), model)
    assert (tokens_of(cut), cut.n_truncated) == ([[2, 3], [3, -1]], 1)
    packed, _ = open_text_samples(TextOptions(prompt=prompts, chunk=5), model)
    assert tokens_of(packed) == [[2, 3, 4, 1, 3]]


def test_token_ids_need_no_tokenizer(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(6))
    samples, tokenizer = open_text_samples(
        TextOptions(tokens=tmp_path / "t.npy", chunk=3), tmp_path
    )
    assert tokenizer is None
    assert tokens_of(samples) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ModelError, match="has no tokenizer: give token ids with --tokens"):
        open_text_samples(TextOptions(prompt=["a"]), tmp_path)


def test_a_default_stands_in_for_no_source(tmp_path, model):
    (tmp_path / "t.txt").write_text("b\n")
    samples, _ = open_text_samples(TextOptions(), model, default=str(tmp_path / "t.txt"))
    assert tokens_of(samples) == [[3]]
    assert TextOptions().given_source is None
    with pytest.raises(UsageError, match="there is no text to read: give --prompt, --text"):
        open_text_samples(TextOptions(), model)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text": "t", "prompt": ["a"]}, "--text and --prompt name samples each: give one"),
        ({"tokens": "t.npy", "jsonl": "j"}, "--jsonl and --tokens name samples each"),
        ({"dataset": "d", "text": "t"}, "--text and --dataset name samples each"),
        ({"field": "x"}, "--field has no effect without --jsonl or --dataset"),
        ({"field": "x", "text": "t"}, "--field has no effect"),
        ({"prompt": ["a", " "]}, "a prompt is blank"),
        ({"chunk": 3, "max_tokens": 2}, "--chunk makes samples of one length"),
        ({"chunk": 0}, "greater than 0"),
        ({"max_tokens": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_go_together(given, says):
    for model in (TextOptions, StepsOptions):
        with pytest.raises(ValidationError, match=says):
            model(**given)


def test_a_default_data_set_is_no_given_source():
    assert StepsOptions(text="t").given_source == "--text"
    assert StepsOptions(dataset="demo://2048-steps").given_source is None
    assert StepsOptions(dataset="other").given_source == "--dataset"


def test_what_is_no_data_set_is_refused(tmp_path, model):
    for path, says in [(tmp_path, "is no saved Hugging Face data set"), ("no", "does not exist")]:
        with pytest.raises(SamplesError, match=rf"--dataset \S+ {says}: expected a folder with"):
            open_text_samples(TextOptions(dataset=str(path)), model)


def test_the_command_line_has_them():
    def run(config: TextOptions) -> None:
        """Run."""

    fields = {field.flag: field for field in Command("run", run).fields}
    assert fields["--prompt"].is_repeated
    assert fields["--text"].metavar == fields["--dataset"].metavar == "<path>"
    assert isinstance(TextOptions(jsonl="j").jsonl, Path)
