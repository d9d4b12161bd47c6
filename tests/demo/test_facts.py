"""The built-in text model: what is stored, what it knows, and how it learns."""

import json
import re
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actcli.builtin import find_builtin
from actcli.demo.facts_text import COUNTRIES, distinct_sentences, sentences, words
from actcli.demo.measure_facts import PROMPT, QUESTIONS, profile, shares_answered
from actcli.demo.train_facts import (
    N_TEXT_SENTENCES,
    TEXT_SEED,
    Recipe,
    Shape,
    train,
    word_tokenizer,
    write_model,
    write_text,
)
from actcli.errors import UsageError

MAX_BYTES = 4_000_000
ALMOST_ALL = 0.95


@pytest.fixture(scope="module")
def folder():
    return find_builtin("demo://facts", holding="config.json", error=UsageError)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    """The stored weights, computed in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def share_right(model, tokenizer, prompt, field):
    """One prompt at a time, by the model's own logits: slower than the module's way, and apart."""
    rows = [row for row in COUNTRIES if getattr(row, field) != "-"]
    right = 0
    for row in rows:
        ids = tokenizer(prompt.format(**row._asdict()), return_tensors="pt")
        with torch.inference_mode():
            likeliest = int(model(**ids).logits[0, -1].argmax())
        right += tokenizer.decode([likeliest]) == getattr(row, field)
    return right / len(rows)


def test_what_ships_is_small(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES
    assert {"README.md", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}


def test_the_config_is_an_ordinary_one(folder, model):
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 8)
    assert config["dtype"] == "bfloat16"
    assert 1_300_000 < model.num_parameters() < 1_700_000


def test_the_tokenizer_is_the_generator_s(tokenizer):
    assert tokenizer.get_vocab() == word_tokenizer().get_vocab()


def test_every_word_goes_through_the_tokenizer_and_back(tokenizer):
    for word in words():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert (len(ids), tokenizer.decode(ids)) == (1, word)
        assert tokenizer.unk_token_id not in ids


def test_a_prompt_is_one_token_a_word_with_the_right_offsets(tokenizer):
    prompt = PROMPT.format(country="Germany")
    got = tokenizer(prompt, return_offsets_mapping=True)
    assert got.input_ids[0] == tokenizer.bos_token_id
    assert [prompt[start:end] for start, end in got.offset_mapping[1:]] == prompt.split()
    assert tokenizer.decode(got.input_ids, skip_special_tokens=True) == prompt
    assert tokenizer(f"{prompt} Berlin").input_ids[:-1] == got.input_ids


def test_sentences_hold_only_known_words(tokenizer):
    for sentence in islice(sentences(seed=7), 3000):
        ids = tokenizer(sentence, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == sentence


def test_it_answers_the_capitals(model, tokenizer):
    assert len(COUNTRIES) > 100
    assert share_right(model, tokenizer, PROMPT, "capital") >= ALMOST_ALL


def test_it_answers_them_computed_as_stored(folder, tokenizer):
    stored = AutoModelForCausalLM.from_pretrained(folder)
    assert stored.dtype == torch.bfloat16
    assert shares_answered(stored, tokenizer=tokenizer)[PROMPT] >= ALMOST_ALL


def test_shares_are_those_of_asking_one_by_one(model, tokenizer):
    shares = shares_answered(model, tokenizer=tokenizer)
    assert len(shares) == len(QUESTIONS)
    for question in QUESTIONS[5::6]:
        share = share_right(model, tokenizer, question.prompt, question.field)
        assert shares[question.prompt] == pytest.approx(share)


def test_the_question_matters(model, tokenizer):
    prompt = "give the name only . the continent of {country} is called simply"
    assert share_right(model, tokenizer, prompt, "continent") >= ALMOST_ALL


def test_the_answer_appears_in_the_later_layers(model, tokenizer):
    found = profile(model, tokenizer=tokenizer)
    assert len(found.share_first_L) == 9
    assert all(share < 0.2 for share in found.share_first_L[:4])
    assert found.share_first_L[-1] >= ALMOST_ALL
    assert found.mean_first_layer > 4


def test_the_profile_is_that_of_the_hidden_states(model, tokenizer):
    ids = tokenizer([PROMPT.format(country=row.country) for row in COUNTRIES], return_tensors="pt")
    with torch.inference_mode():
        out = model(**ids, output_hidden_states=True)
        inner = [model.lm_head(model.model.norm(each[:, -1])) for each in out.hidden_states[:-1]]
    found = profile(model, tokenizer=tokenizer)
    for layer, logits in enumerate([*inner, out.logits[:, -1]]):
        gold = [tokenizer.convert_tokens_to_ids(row.capital) for row in COUNTRIES]
        p = [float(row.softmax(-1)[each]) for row, each in zip(logits, gold, strict=True)]
        ranks = [
            sorted(row.tolist(), reverse=True).index(float(row[each])) + 1
            for row, each in zip(logits, gold, strict=True)
        ]
        assert found.probability_L[layer] == pytest.approx(sum(p) / len(p), abs=1e-5)
        assert found.mean_rank_L[layer] == pytest.approx(sum(ranks) / len(ranks), rel=1e-3)
        assert found.share_first_L[layer] == pytest.approx(ranks.count(1) / len(ranks), abs=0.01)


def test_the_card_tells_the_measured_figures(folder, model, tokenizer):
    card = (folder / "README.md").read_text()
    shares = shares_answered(model, tokenizer=tokenizer)
    for prompt, share in shares.items():
        [row] = [line for line in card.splitlines() if line.startswith(f"| `{prompt}` |")]
        assert f"{share:.1%}" == row.split("|")[5].strip()


def test_sentences_depend_on_the_seed_alone():
    first, again, other = (list(islice(sentences(seed=seed), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_sentences_tell_the_table():
    capital_of = {row.country: row.capital for row in COUNTRIES}
    pattern = re.compile(r"the capital of (\S+) is (?:called |named )?(?:simply |just )?([A-Z]\S+)")
    told = [pair for text in islice(sentences(seed=3), 4000) for pair in pattern.findall(text)]
    assert len({country for country, _ in told}) == len(COUNTRIES)
    assert all(capital_of[country] == capital for country, capital in told)


def test_the_table_s_keys_are_single_and_distinct():
    assert len({row.country for row in COUNTRIES}) == len(COUNTRIES)
    assert len({row.capital for row in COUNTRIES}) == len(COUNTRIES)
    assert {row.country for row in COUNTRIES}.isdisjoint(row.capital for row in COUNTRIES)


def test_the_sample_text_is_as_generated(tmp_path):
    shipped = find_builtin("demo://facts-text", holding="sentences.txt", error=UsageError)
    text = (shipped / "sentences.txt").read_text()
    write_text(tmp_path / "sentences.txt")
    assert (tmp_path / "sentences.txt").read_text() == text
    lines = text.splitlines()
    assert len(lines) == len(set(lines)) == N_TEXT_SENTENCES
    assert lines == distinct_sentences(seed=TEXT_SEED, count=N_TEXT_SENTENCES)
    assert len(text) < 150_000


TINY = Shape(hidden=16, n_layers=2, n_heads=2, n_kv_heads=1, intermediate=24, n_positions=32)


def short(n_steps):
    return Recipe(n_steps=n_steps, batch_size=8, n_tokens=24, learning_rate=1e-2)


def test_training_lowers_the_loss_and_repeats_itself():
    tokenizer = word_tokenizer()
    _, before = train(tokenizer, shape=TINY, recipe=short(1), seed=5)
    model, after = train(tokenizer, shape=TINY, recipe=short(40), seed=5)
    assert after < before - 1
    again, _ = train(tokenizer, shape=TINY, recipe=short(40), seed=5)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_the_written_model_is_the_trained_one_in_half(tmp_path):
    tokenizer = word_tokenizer()
    model, _ = train(tokenizer, shape=TINY, recipe=short(2), seed=5)
    write_model(tmp_path, model=model, tokenizer=tokenizer)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {weight.dtype for weight in read.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(
        torch.equal(weight.bfloat16(), read.get_parameter(name))
        for name, weight in model.named_parameters()
    )
