"""The answer's first token is the one behind the prompt's own tokens, or the pair is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from actcli.errors import UsageError
from actcli.samples.answers import gold_ids
from actcli.samples.tokenizer import load_tokenizer
from tests.samples.made_tokenizers import bytes_bpe, unsplit_bpe, words

PROMPT = "the capital of Germany is called simply"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return load_tokenizer(bytes_bpe(tmp_path_factory.mktemp("bpe"), vocab_size=400))


def test_a_word_behind_a_space(bpe):
    gold = gold_ids(bpe, prompt=PROMPT, answer="Berlin")
    assert (gold.prefix, gold.text, gold.n_tokens) == (" ", "Berlin", 1)
    assert bpe.text_of(gold.first_id) == " Berlin"
    assert gold.ids == (bpe.vocabulary["ĠBerlin"],)
    assert gold.position == len(bpe.encode(PROMPT).ids) - 1


def test_several_tokens_are_counted(bpe):
    gold = gold_ids(bpe, prompt=PROMPT, answer="Berlin France zq")
    assert [bpe.text_of(each) for each in gold.ids][:2] == [" Berlin", " France"]
    assert gold.n_tokens == len(gold.ids) > 2


@pytest.mark.parametrize(
    ("prompt", "answer"), [(PROMPT, " Berlin"), (PROMPT + "\n", "Berlin"), ("", "Berlin")]
)
def test_no_space_where_one_is_there(bpe, prompt, answer):
    gold = gold_ids(bpe, prompt=prompt, answer=answer)
    assert gold.prefix == ""
    assert "".join(map(bpe.text_of, gold.ids)) == answer


def test_a_blank_that_goes_to_the_answer_is_refused(bpe):
    with pytest.raises(
        UsageError, match=r"'Berlin': .*token (\d+) is 'Ġ' in the prompt alone and 'ĠBerlin' with"
    ):
        gold_ids(bpe, prompt=PROMPT + " ", answer="Berlin")


def test_falls_back_to_no_space_where_the_space_changes_the_prompt(tmp_path):
    tokenizer = load_tokenizer(unsplit_bpe(tmp_path, [("s", " "), ("b", "e")]))
    gold = gold_ids(tokenizer, prompt="is", answer="be")
    assert (gold.prefix, gold.ids, gold.position) == ("", (tokenizer.vocabulary["be"],), 1)


def test_refused_where_both_ways_change_the_prompt(tmp_path):
    tokenizer = load_tokenizer(unsplit_bpe(tmp_path, [("s", " "), ("s", "b")]))
    with pytest.raises(
        UsageError, match=r"--contrast 'be': .* token 1 is 's' in the prompt alone and 's ' with"
    ):
        gold_ids(tokenizer, prompt="is", answer="be", option="--contrast")


@pytest.mark.parametrize("kind", [{}, {"bos": True}, {"sep": True}, {"bos": True, "sep": True}])
def test_what_the_tokenizer_adds_at_the_end_is_no_part_of_it(tmp_path, kind):
    tokenizer = load_tokenizer(words(tmp_path, ["a", "b", "c"], **kind))
    gold = gold_ids(tokenizer, prompt="a b", answer="c")
    assert gold.ids == (tokenizer.vocabulary["c"],)
    assert gold.position == (2 if "bos" in kind else 1)
    assert tokenizer.encode("a b").ids[gold.position] == tokenizer.vocabulary["b"]


@pytest.mark.parametrize("answer", ["", " ", "\n\t"])
def test_an_empty_answer_is_refused(bpe, answer):
    with pytest.raises(UsageError, match=r"^--answer is empty"):
        gold_ids(bpe, prompt=PROMPT, answer=answer)


def test_an_unknown_word_is_refused(tmp_path):
    tokenizer = load_tokenizer(words(tmp_path, ["a", "b"]))
    with pytest.raises(
        UsageError, match=r"'zebra a': its first word is not in .* reads as '<unk>'"
    ):
        gold_ids(tokenizer, prompt="a", answer="zebra a")
    assert gold_ids(tokenizer, prompt="a", answer="b zebra").n_tokens == 2


def test_an_answer_that_the_tokenizer_drops_is_refused(tmp_path):
    tokenizer = load_tokenizer(words(tmp_path, ["a"], unk=False))
    tokenizer._backend.backend_tokenizer.normalizer = normalizers.Replace("b", "")
    with pytest.raises(UsageError, match="'b': the tokenizer drops it"):
        gold_ids(tokenizer, prompt="a", answer="b")


@given(st.text("abe rlin.", max_size=8), st.text("Berlin .", min_size=1, max_size=8))
def test_prompt_and_answer_are_what_the_model_would_read(bpe, prompt, answer):
    try:
        gold = gold_ids(bpe, prompt=prompt, answer=answer)
    except UsageError:
        return
    whole = bpe.encode(prompt + gold.prefix + answer).ids.tolist()
    assert whole == [*bpe.encode(prompt).ids.tolist(), *gold.ids]
    assert gold.position == len(whole) - gold.n_tokens - 1
