"""Samples of text hold the ids that the tokenizer gives, in the user's order, right-padded."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import ByT5Tokenizer

from actcli.errors import SamplesError, UsageError
from actcli.samples.text import encode_texts, pack_texts
from actcli.samples.text_files import GivenTexts, LineTexts
from actcli.samples.tokenizer import TextTokenizer, load_tokenizer
from tests.samples.made_tokenizers import bytes_bpe, words

TEXTS = ["c", "a b c d", "b  a", "d d d"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_tokenizer(words(tmp_path_factory.mktemp("plain"), "abcdefg"))


@pytest.fixture(scope="module")
def framed(tmp_path_factory):
    folder = words(tmp_path_factory.mktemp("framed"), "abcdefg", bos=True, eos="</s>", sep=True)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def with_eos(tmp_path_factory):
    return load_tokenizer(words(tmp_path_factory.mktemp("eos"), "abcdefg", eos="</s>"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return load_tokenizer(bytes_bpe(tmp_path_factory.mktemp("bpe"), eos="<|end|>"))


def slow_hash(rows):
    text = b"".join(n.to_bytes(4, "little", signed=True) for row in rows for n in [*row, -1])
    return hashlib.sha256(text).hexdigest()


def test_each_text_is_a_sample(plain):
    samples = encode_texts(GivenTexts(TEXTS), plain)
    assert (len(samples), samples.n_tokens, samples.largest_token) == (4, 4, 4)
    assert samples.lengths.tolist() == [1, 4, 2, 3]
    assert {key: (info.dtype, info.shape) for key, info in samples.stored.items()} == {
        "token_ids": ("I32", (4, 4)),
        "mask": ("U8", (4, 4)),
        "offsets": ("I32", (4, 4, 2)),
    }
    batch = samples.batch(np.array([3, 2, 0]))
    assert batch.rows.tolist() == [3, 2, 0]
    assert batch.inputs["tokens"].tolist() == [[4, 4, 4], [2, 1, 0], [3, 0, 0]]
    assert batch.inputs["mask"].tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert (batch.inputs["tokens"].dtype, batch.inputs["mask"].dtype) == (np.int64, np.bool_)
    assert batch.stored["token_ids"].tolist() == [[4, 4, 4, -1], [2, 1, -1, -1], [3, -1, -1, -1]]
    assert batch.stored["mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch.stored["offsets"].tolist()[1] == [[0, 1], [3, 4], [-1, -1], [-1, -1]]
    assert [batch.stored[key].dtype for key in ("token_ids", "mask", "offsets")] == [
        np.int32,
        np.uint8,
        np.int32,
    ]


def test_no_mask_where_nothing_is_padded(plain):
    samples = encode_texts(GivenTexts(["a b", "c d", "a"]), plain)
    batch = samples.batch(range(2))
    assert batch.inputs.keys() == {"tokens"}
    assert batch.stored["mask"].tolist() == [[1, 1], [1, 1]]
    shorter = samples.batch(range(2, 3))
    assert shorter.inputs.keys() == {"tokens"}
    assert shorter.inputs["tokens"].tolist() == [[1]]
    assert shorter.stored["mask"].tolist() == [[1, 0]]
    assert encode_texts(GivenTexts(["a b", "c d"]), plain).lengths is None


@given(st.data())
def test_every_row_of_any_batch_is_its_text(bpe, data):
    texts = data.draw(st.lists(st.text("ab é日.", min_size=1).filter(str.strip), min_size=1))
    samples = encode_texts(GivenTexts(texts), bpe)
    expected = [bpe.encode(text) for text in texts]
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1))
    batch = samples.batch(np.array(rows))
    assert samples.n_tokens == max(len(each.ids) for each in expected)
    assert batch.inputs["tokens"].shape == (len(rows), max(len(expected[n].ids) for n in rows))
    for place, row in enumerate(rows):
        ids, n = expected[row].ids.tolist(), len(expected[row].ids)
        tokens = batch.inputs["tokens"][place]
        assert [*tokens[:n]] == ids
        assert not tokens[n:].any()
        if "mask" in batch.inputs:
            assert batch.inputs["mask"][place].tolist() == [i < n for i in range(len(tokens))]
        else:
            assert n == len(tokens)
        assert [*batch.stored["token_ids"][place]] == [*ids, *[-1] * (samples.n_tokens - n)]
        assert batch.stored["offsets"][place, :n].tolist() == expected[row].offsets.tolist()
        assert (batch.stored["offsets"][place, n:] == -1).all()
    assert samples.manifest()["tokens_sha256"] == slow_hash(each.ids.tolist() for each in expected)
    assert samples.largest_token == max(max(each.ids.tolist()) for each in expected)


def test_blank_texts_are_left_out_and_counted(plain):
    samples = encode_texts(GivenTexts(["", "a", " \t", "b"]), plain)
    assert samples.batch(range(2)).inputs["tokens"].tolist() == [[1], [2]]
    assert samples.manifest()["blank_left_out"] == 2


def test_the_first_texts_alone_are_read(plain, tmp_path):
    (tmp_path / "t").write_bytes(b"a\n\nb\n\xff not UTF-8\n")
    samples = encode_texts(LineTexts(tmp_path / "t"), plain, limit=2)
    assert samples.batch(range(2)).inputs["tokens"].tolist() == [[1], [2]]
    assert len(encode_texts(GivenTexts(TEXTS), plain, limit=9)) == 4


def test_long_texts_are_cut_before_what_ends_them(framed):
    samples = encode_texts(GivenTexts(["a b c d", "a b", "e"]), framed, max_tokens=4)
    batch = samples.batch(range(3))
    names = [[framed.piece_of(n) for n in row if n >= 0] for row in batch.stored["token_ids"]]
    assert names == [
        ["<s>", "a", "b", "[SEP]"],
        ["<s>", "a", "b", "[SEP]"],
        ["<s>", "e", "[SEP]"],
    ]
    assert samples.n_truncated == samples.manifest()["n_truncated"] == 1
    assert samples.manifest()["max_tokens"] == 4
    assert batch.stored["offsets"][0].tolist() == [[0, 0], [0, 1], [2, 3], [0, 0]]
    whole = encode_texts(GivenTexts(["a b c d"]), framed)
    assert (whole.n_tokens, whole.n_truncated) == (6, 0)


def test_cutting_all_of_a_text_is_refused(framed):
    with pytest.raises(UsageError, match=r"--max-tokens 2 leaves no room .* adds 2 .* give 3"):
        encode_texts(GivenTexts(["a b"]), framed, max_tokens=2)


@pytest.mark.parametrize(
    ("texts", "says"),
    [((), "--prompt holds no text$"), ((" ", ""), "holds no text: all 2 entries are blank")],
)
def test_nothing_to_read_is_refused(plain, texts, says):
    with pytest.raises(SamplesError, match=says):
        encode_texts(GivenTexts(texts), plain)
    with pytest.raises(SamplesError, match=says):
        pack_texts(GivenTexts(texts), plain, chunk=2)


def test_a_text_without_tokens_is_refused(tmp_path):
    tokenizer = load_tokenizer(words(tmp_path, "ab"))
    tokenizer._backend.backend_tokenizer.normalizer = normalizers.Replace("zzz", "")
    with pytest.raises(SamplesError, match="text 2 of --prompt has no token"):
        encode_texts(GivenTexts(["a", "zzz"]), tokenizer)


def test_without_offsets_none_are_stored():
    tokenizer = TextTokenizer(ByT5Tokenizer())
    for samples in (
        encode_texts(GivenTexts(["ab", "c"]), tokenizer),
        pack_texts(GivenTexts(["ab", "c"]), tokenizer, chunk=2),
    ):
        assert "offsets" not in samples.stored
        assert samples.batch(range(2)).stored.keys() == samples.stored.keys()


def test_packed_rows_are_full_and_know_their_texts(with_eos):
    samples = pack_texts(GivenTexts(["a b c", " ", "d", "e f g a"]), with_eos, chunk=4)
    batch = samples.batch(range(2))
    eos = with_eos.eos_id
    a, b, c, d, e, f, _g = (with_eos.vocabulary[each] for each in "abcdefg")
    assert batch.inputs.keys() == {"tokens"}
    assert batch.inputs["tokens"].tolist() == [[a, b, c, eos], [d, eos, e, f]]
    assert batch.stored["document"].tolist() == [[0, 0, 0, 0], [1, 1, 2, 2]]
    assert batch.stored["document"].dtype == np.int32
    assert batch.stored["offsets"].tolist() == [
        [[0, 1], [2, 3], [4, 5], [0, 0]],
        [[0, 1], [0, 0], [0, 1], [2, 3]],
    ]
    assert batch.stored["mask"].tolist() == [[1] * 4] * 2
    assert samples.stored["document"].shape == (2, 4)
    assert (samples.lengths, samples.n_tokens) == (None, 4)
    manifest = samples.manifest()
    assert (manifest["chunk"], manifest["tokens_dropped"]) == (4, 2)
    assert manifest["tokens_sha256"] == slow_hash([[a, b, c, eos], [d, eos, e, f]])


def test_packing_a_few_rows_reads_a_few_texts(plain, tmp_path):
    (tmp_path / "t").write_bytes(b"a b\n" * 2000 + b"\xff not UTF-8\n")
    assert len(pack_texts(LineTexts(tmp_path / "t"), plain, chunk=3, limit=4)) == 4


def test_texts_that_have_their_own_borders_get_no_eos(framed):
    samples = pack_texts(GivenTexts(["a", "b"]), framed, chunk=6)
    names = [framed.piece_of(n) for n in samples.batch(range(1)).inputs["tokens"][0]]
    assert names == ["<s>", "a", "[SEP]", "<s>", "b", "[SEP]"]


@given(
    st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1), min_size=1),
    st.integers(1, 9),
    st.none() | st.integers(1, 5),
)
def test_packing_keeps_every_token_in_order(with_eos, documents, chunk, limit):
    joined, numbers = [], []
    for number, document in enumerate(documents):
        last = [] if number == len(documents) - 1 else [with_eos.eos_id]
        tokens = [with_eos.vocabulary[each] for each in document] + last
        joined += tokens
        numbers += [number] * len(tokens)
    n_rows = min(len(joined) // chunk, limit or len(joined))
    texts = GivenTexts([" ".join(each) for each in documents])
    if not n_rows:
        with pytest.raises(UsageError, match=f"has {len(joined)} tokens, fewer than one row"):
            pack_texts(texts, with_eos, chunk=chunk)
        return
    samples = pack_texts(texts, with_eos, chunk=chunk, limit=limit)
    batch = samples.batch(range(n_rows))
    assert len(samples) == n_rows
    assert batch.inputs["tokens"].reshape(-1).tolist() == joined[: n_rows * chunk]
    assert batch.stored["document"].reshape(-1).tolist() == numbers[: n_rows * chunk]
    assert samples.largest_token == max(joined[: n_rows * chunk])
    if limit is None:
        assert samples.manifest()["tokens_dropped"] == len(joined) % chunk


def test_the_manifest_names_source_and_tokenizer(plain, tmp_path):
    (tmp_path / "t").write_text("a b\n")
    manifest = encode_texts(LineTexts(tmp_path / "t"), plain).manifest()
    assert manifest["files"] == [{"file": "t", "bytes": 4}]
    assert manifest["tokenizer"] == plain.fingerprint
