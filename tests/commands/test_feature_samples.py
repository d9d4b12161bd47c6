"""Activation samples as files: collected, read again, reported, exported; every bad input."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from actcli.analysis.feature_samples import TopSamples
from actcli.capture.token_stream import TokenBatch
from actcli.commands.feature_reports import export_rich, page_samples, report_samples
from actcli.commands.feature_samples import (
    SamplesOptions,
    check_samples_target,
    write_samples,
)
from actcli.commands.feature_texts import texts_of_tokens
from actcli.errors import DumpError, SamplesError, UsageError
from actcli.render.feature_files import open_folder
from actcli.saes.dictionary import SparseActs
from actcli.samples.tokenizer import load_tokenizer
from actcli.terminal.console import Output
from tests.render.feature_made import GOLDEN, write_ours, write_seed
from tests.samples.made_tokenizers import bytes_bpe, words

OUTPUT = Output(quiet=True)
WORDS = ("the", "capital", "of", "Germany", "is", "called", "simply", "Berlin", ".")
N_SAMPLES, N_TOKENS = 6, 9


@dataclass
class MadeStream:
    """Tokens whose one number is the id of the token; the first of each sample does not count."""

    ids_ST: np.ndarray
    size: int = 4
    has_ids: bool = True
    name: str = "made tokens"
    passes: int = field(default=0)

    def batches(self):
        self.passes += 1
        n_samples, n_tokens = self.ids_ST.shape
        samples_N = np.repeat(np.arange(n_samples), n_tokens)
        positions_N = np.tile(np.arange(n_tokens), n_samples)
        rows = np.flatnonzero(positions_N > 0)
        for start in range(0, len(rows), self.size):
            some = rows[start : start + self.size]
            acts = torch.from_numpy(self.ids_ST.ravel()[some].astype(np.float32))[:, None]
            yield TokenBatch({"x": acts}, samples_N[some], positions_N[some], None)

    def ids_of(self, sample):
        return self.ids_ST[sample] if self.has_ids else None


@dataclass
class Encode:
    """Feature f is the id of the token, where it is a multiple of f + 1; it counts its tokens."""

    n_features: int = 5
    n_tokens: int = 0

    def __call__(self, x_N1):
        self.n_tokens += len(x_N1)
        divisors_D = torch.arange(1, self.n_features + 1)
        return SparseActs.of(torch.where(x_N1 % divisors_D == 0, x_N1, 0).float())


@pytest.fixture
def stream():
    rng = np.random.default_rng(0)
    return MadeStream(rng.integers(0, 9, (N_SAMPLES, N_TOKENS)))


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(words(tmp_path / "tokenizer", WORDS, unk=False))


def collected(stream, **options):
    encode = Encode()
    top = TopSamples(encode.n_features, **options)
    for batch in stream.batches():
        top.add(encode(batch.acts["x"]), batch.samples_N, batch.positions_N)
    return top


def write(stream, folder, *, tokenizer=None, encode=None, top=None, **told):
    return write_samples(
        top or collected(stream),
        folder=folder,
        stream=stream,
        x="x",
        encode=encode,
        tokenizer=tokenizer,
        **told,
    )


def test_a_pass_and_a_second_one_over_the_contexts(stream, tokenizer, tmp_path):
    encode, folder = Encode(), tmp_path / "samples"
    options = SamplesOptions(n_features=3, n_samples=2, context=4)
    written = write(stream, folder, tokenizer=tokenizer, encode=encode, options=options)
    assert stream.passes == 2
    samples = open_folder(folder)
    assert (written.n_features, written.page) == (3, folder / "features.html")
    assert samples.summary == written.summary
    assert samples.summary.source == "made tokens"
    assert samples.summary.n_tokens == N_SAMPLES * (N_TOKENS - 1)
    near = set()
    for record in samples.every():
        assert len(record.top_samples) == 2
        for each in record.top_samples:
            ids = stream.ids_ST[each.sample]
            first = each.context_start
            stop = first + len(each.context_tokens)
            assert (first, stop) == (max(0, each.position - 2), min(N_TOKENS, each.position + 3))
            assert list(each.context_tokens) == ids[first:stop].tolist()
            assert each.context_text.strip() == " ".join(WORDS[token] for token in ids[first:stop])
            for place, act in zip(range(first, stop), each.context_activations, strict=True):
                token = int(ids[place])
                expected = token if token % (record.feature + 1) == 0 else 0
                assert act == (None if place == 0 else expected)
                near |= {(each.sample, place)} if place else set()
    assert encode.n_tokens == len(near)
    page = (folder / "features.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")


def test_the_second_pass_takes_as_many_tokens_as_memory_allows(stream, tmp_path, monkeypatch):
    monkeypatch.setattr("actcli.commands.feature_samples._DENSE_NUMBERS", 10)
    stream.size, sizes = 40, []

    def encode(x_N1):
        sizes.append(len(x_N1))
        return Encode()(x_N1)

    write(stream, tmp_path / "small", encode=encode)
    assert max(sizes) == 10 // 5
    monkeypatch.undo()
    write(stream, tmp_path / "large", encode=Encode())
    small, large = (open_folder(tmp_path / each).every() for each in ("small", "large"))
    assert small == large


def test_without_a_second_pass(stream, tokenizer, tmp_path):
    write(stream, tmp_path / "samples", tokenizer=tokenizer)
    assert stream.passes == 1
    for record in open_folder(tmp_path / "samples").every():
        for each in record.top_samples:
            known = [act for act in each.context_activations if act is not None]
            assert known == [each.activation_value]


def test_similar_features_of_those_that_are_written(stream, tmp_path):
    def similar(features, n):
        assert (sorted(features), n) == ([1, 4], 2)
        return [[(each + 10, 0.5), (each + 20, 0.25)] for each in features]

    options = SamplesOptions(features=(4, 1), n_similar=2)
    write(stream, tmp_path / "samples", similar=similar, options=options)
    samples = open_folder(tmp_path / "samples")
    assert [each.feature_idx for each in samples.record(4).similar] == [14, 24]
    assert [each.feature_idx for each in samples.record(1).similar] == [11, 21]


def test_nothing_was_active(stream, tmp_path):
    top = TopSamples(5)
    told = {"similar": lambda features, n: pytest.fail("there is none"), "encode": Encode()}
    written = write(stream, tmp_path / "samples", top=top, **told)
    assert written.n_features == 0
    assert (tmp_path / "samples" / "collection_summary.json").is_file()


def test_without_token_ids(stream, tmp_path):
    stream.has_ids = False
    folder = tmp_path / "samples"
    write(stream, folder, encode=Encode())
    assert all(each.context_text == "" for each in open_folder(folder).record(0).top_samples)
    with pytest.raises(SamplesError, match="have no texts"):
        export_rich(folder, tmp_path / "rich.jsonl", output=OUTPUT)
    assert not (tmp_path / "rich.jsonl").exists()


def test_a_feature_that_is_not_there(stream, tmp_path):
    with pytest.raises(UsageError, match=r"no feature 5: .* features 0 to 4"):
        write(stream, tmp_path / "samples", options=SamplesOptions(features=(5,)))


def test_samples_are_replaced_only_when_told(stream, tmp_path):
    folder = write_ours(tmp_path / "samples")
    with pytest.raises(DumpError, match="--force"):
        check_samples_target(folder, force=False)
    with pytest.raises(DumpError, match="--force"):
        write(stream, folder)
    assert list(open_folder(folder).files) == [7, 42, 123456]
    write(stream, folder, force=True)
    assert list(open_folder(folder).files) == [0, 1, 2, 3, 4]


def test_words_keep_their_spaces(tokenizer):
    texts = texts_of_tokens(tokenizer)
    assert texts((0, 1, 3, 8)) == ("the", " capital", " Germany", " .")
    assert texts(()) == ()


def test_texts_of_bytes_are_those_of_the_whole(tmp_path):
    found = load_tokenizer(bytes_bpe(tmp_path / "bytes"))
    text = "the capital of Germany is Berlin ."
    ids = found.encode(text).ids.tolist()
    assert "".join(texts_of_tokens(found)(ids)) == text
    split = found.encode("日").ids.tolist()
    if len(split) > 1:  # bytes of one character: each as it stands alone
        assert texts_of_tokens(found)(split) == tuple(map(found.text_of, split))


def test_special_tokens_are_shown(tmp_path):
    found = load_tokenizer(words(tmp_path / "bos", WORDS, bos=True))
    ids = found.encode("the capital").ids.tolist()
    assert texts_of_tokens(found)(ids) == ("<s>", "the", " capital")


def test_without_a_tokenizer_numbers_stand():
    assert texts_of_tokens(None)((5, 17, 3)) == ("#5", " #17", " #3")


def test_a_report_is_written_beside_the_samples(tmp_path):
    write_seed(tmp_path / "run")
    path = report_samples(tmp_path / "run", output=OUTPUT)
    assert path == tmp_path / "run" / "activation_samples" / "interpretability_report.md"
    assert "# Features of run" in path.read_text(encoding="utf-8")
    with pytest.raises(DumpError, match="exists: --force replaces it"):
        report_samples(tmp_path / "run", output=OUTPUT)
    report_samples(tmp_path / "run", output=OUTPUT, force=True)


def test_a_page_for_samples_of_the_other_program(tmp_path):
    write_seed(tmp_path / "run")
    path = page_samples(tmp_path / "run", output=OUTPUT)
    assert path == tmp_path / "run" / "activation_samples" / "features.html"
    assert "<title>Features of run</title>" in path.read_text(encoding="utf-8")
    with pytest.raises(DumpError, match="exists"):
        page_samples(tmp_path / "run", output=OUTPUT)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rich_examples(tmp_path):
    path = tmp_path / "rich.jsonl"
    assert export_rich(GOLDEN, path, output=OUTPUT) == 4
    first, *_rest = read_lines(path)
    assert first["feature"] == 1
    assert first["examples"][0] == {
        "raw": "t29 t36 t43 t0 t7 t14 t21",
        "marked": "t29 t36 <<<t43 t0 (act: 86.02)>>> t7 t14 t21",
        "max_activation": 86.01872253417969,
    }


def test_rich_examples_of_some_features(tmp_path):
    folder, path = write_ours(tmp_path / "samples"), tmp_path / "rich.jsonl"
    export_rich(folder, path, output=OUTPUT, features=(7, 42), n_samples=1)
    assert [(each["feature"], len(each["examples"])) for each in read_lines(path)] == [
        (7, 1),
        (42, 1),
    ]
    with pytest.raises(DumpError, match="exists"):
        export_rich(folder, path, output=OUTPUT)
    with pytest.raises(UsageError, match="no samples of feature 8"):
        export_rich(folder, path, output=OUTPUT, features=(8,), force=True)
    assert len(read_lines(path)) == 2
    with pytest.raises(UsageError, match=r"ending in \.jsonl"):
        export_rich(folder, tmp_path / "rich.txt", output=OUTPUT)


@pytest.mark.parametrize("command", [report_samples, page_samples])
def test_no_samples(command, tmp_path):
    with pytest.raises(SamplesError, match="is not there"):
        command(Path(tmp_path / "none"), output=OUTPUT)
    with pytest.raises(SamplesError, match="no activation samples"):
        command(tmp_path, output=OUTPUT)
    assert list(tmp_path.iterdir()) == []
