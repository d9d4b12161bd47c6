"""The tokenizer of a folder gives the ids that its vocabulary says, and a name for every id."""

import hashlib
import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from actcli.errors import ModelError, SamplesError
from actcli.samples.tokenizer import TextTokenizer, has_tokenizer, load_tokenizer
from tests.samples.made_tokenizers import bytes_bpe, words


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = bytes_bpe(tmp_path_factory.mktemp("bpe"), eos="<|end|>", model_max_length=4)
    return load_tokenizer(folder)


def test_words_are_the_ids_of_the_vocabulary_and_special_tokens_are_told_apart(tmp_path):
    tokenizer = load_tokenizer(words(tmp_path, ["a", "bc", "d"], bos=True, sep=True))
    ids, offsets, special = encoding = tokenizer.encode("d  bc zz a")
    assert ids.tolist() == [1, 5, 4, 0, 3, 2]
    assert offsets.tolist() == [[0, 0], [0, 1], [3, 5], [6, 8], [9, 10], [0, 0]]
    assert special.tolist() == [True, False, False, False, False, True]
    assert (ids.dtype, offsets.dtype, encoding.n_trailing) == (np.int32, np.int32, 1)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unknown_id) == (1, None, 0)
    assert tokenizer.vocab_size == 6


@pytest.mark.parametrize(("kind", "trailing"), [({"bos": True}, 0), ({"sep": True}, 1), ({}, 0)])
def test_only_what_follows_the_text_is_trailing(tmp_path, kind, trailing):
    tokenizer = load_tokenizer(words(tmp_path, ["a"], **kind))
    assert tokenizer.encode("a a").n_trailing == trailing


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_offsets_are_characters_and_the_ids_spell_the_text(bpe, text):
    ids, offsets, _special = bpe.encode(text)
    assert bpe._backend.decode(ids, clean_up_tokenization_spaces=False) == text
    assert offsets.shape == (len(ids), 2)
    covered = {place for first, last in offsets.tolist() for place in range(first, last)}
    assert covered == set(range(len(text)))


def test_many_texts_are_encoded_as_each_alone(bpe):
    texts = [f"the capital {n} of é{n}" for n in range(600)]
    for text, encoding in zip(texts, bpe.encode_all(iter(texts)), strict=True):
        alone = bpe.encode(text)
        assert encoding.ids.tolist() == alone.ids.tolist()
        assert encoding.offsets.tolist() == alone.offsets.tolist()


def test_long_texts_are_whole_and_nothing_is_said(tmp_path):
    fast = load_tokenizer(bytes_bpe(tmp_path, model_max_length=4))
    said, handler = [], logging.Handler()
    handler.emit = said.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    for tokenizer in (fast, TextTokenizer(ByT5Tokenizer(model_max_length=4))):
        assert len(tokenizer.encode("the capital " * 50).ids) > 50
    logger.removeHandler(handler)
    assert said == []


def test_texts_are_read_a_few_at_a_time(bpe):
    taken = []
    encodings = bpe.encode_all(taken.append(n) or f"é {n}" for n in range(10_000))
    next(encodings)
    assert len(taken) < 1000


def test_every_id_has_a_text_and_a_piece(bpe):
    ids = bpe.encode(" Berlin<|end|>").ids.tolist()
    assert bpe.text_of(ids[0])[0] == " "
    assert bpe.piece_of(ids[0])[0] == "Ġ"
    assert "".join(map(bpe.text_of, ids)) == " Berlin<|end|>"
    for token in range(bpe.vocab_size):
        assert bpe.piece_of(token) in bpe.vocabulary
        assert bpe.text_of(token)
    for token in (bpe.vocab_size, 50300, -1):
        assert bpe.text_of(token) == bpe.piece_of(token) == f"<id {token}>"


def test_a_hole_in_the_ids_is_named_too(tmp_path):
    folder = words(tmp_path, ["a", "b"])
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["b"] = 7
    (folder / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 8
    assert [tokenizer.text_of(n) for n in (1, 2, 7)] == ["a", "<id 2>", "b"]


def test_a_tokenizer_without_offsets():
    tokenizer = TextTokenizer(ByT5Tokenizer())
    ids, offsets, special = encoding = tokenizer.encode("ab")
    assert offsets is None
    assert ids.tolist() == [ord("a") + 3, ord("b") + 3, 1]
    assert special.tolist() == [False, False, True]
    assert encoding.n_trailing == 1
    assert tokenizer.fingerprint["file"] is None


def test_a_slow_tokenizer_is_read_from_its_folder(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("a").ids.tolist() == [100, 1]


def test_the_fingerprint_tells_tokenizers_apart(tmp_path):
    one, other = words(tmp_path / "1", ["a", "b"]), words(tmp_path / "2", ["b", "a"])
    expected = hashlib.sha256((one / "tokenizer.json").read_bytes()).hexdigest()
    assert load_tokenizer(one).fingerprint == {"file": "tokenizer.json", "sha256": expected}
    assert load_tokenizer(other).fingerprint["sha256"] != expected
    without_file = [
        TextTokenizer(load_tokenizer(each)._backend).fingerprint["sha256"] for each in (one, other)
    ]
    assert len({*without_file, expected}) == 3


def test_a_tokenizer_beside_a_weights_file(tmp_path):
    folder = words(tmp_path, ["a"])
    (folder / "model.safetensors").write_bytes(b"")
    assert has_tokenizer(folder / "model.safetensors")
    assert load_tokenizer(folder / "model.safetensors").encode("a").ids.tolist() == [1]


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "bert"])
def test_a_folder_without_tokenizer_is_refused_not_filled_in(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert not has_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer: give token ids with --tokens ids.npy"):
        load_tokenizer(tmp_path)


def test_a_config_without_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ModelError, match="no vocabulary: give token ids"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[", '{"model": {"type": "Wrong"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path, content):
    (words(tmp_path, ["a"]) / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(tmp_path)


def test_half_a_character_is_refused(bpe):
    with pytest.raises(SamplesError, match="half of a surrogate pair at character 1"):
        bpe.encode("a\ud800")
