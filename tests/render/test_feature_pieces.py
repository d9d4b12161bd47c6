"""A context as pieces: token by token, or around the text of the token."""

import pytest

from actcli.render.feature_files import open_folder
from actcli.reports.feature_pieces import pieces_of
from actcli.reports.feature_samples import FeatureSample
from tests.render.feature_made import GOLDEN, WORDS, sample, seed_sample


def test_token_by_token():
    pieces = pieces_of(sample(42, 9.5, 6, acts={4: 4.75, 5: 0.5, 3: None}))
    assert [each.text for each in pieces] == list(WORDS[3:10])
    assert [each.activation for each in pieces] == [None, 4.75, 0.5, 9.5, 0, 0, 0]
    assert [each.is_peak for each in pieces] == [False] * 3 + [True] + [False] * 3


@pytest.mark.parametrize("position", [0, 1, 4, 9])
def test_files_without_texts_of_tokens(position):
    made = FeatureSample(**seed_sample(8, 5.5, position))
    pieces = pieces_of(made)
    assert "".join(each.text for each in pieces) == made.context_text
    (peak,) = [each for each in pieces if each.is_peak]
    assert (peak.text, peak.activation) == (made.text, 5.5)
    assert all(each.activation is None for each in pieces if not each.is_peak)


def test_files_that_the_other_program_wrote():
    for record in open_folder(GOLDEN).every():
        for each in record.top_samples:
            pieces = pieces_of(each)
            assert "".join(piece.text for piece in pieces) == each.context_text
            before = pieces[0].text if not pieces[0].is_peak else ""
            place = each.context_tokens.index(each.tokens[-1])
            assert len(before.split()) == place - len(each.tokens) + 1


@pytest.mark.parametrize("position", range(1, 8))
def test_of_equal_texts_that_at_the_position_is_taken(position):
    made = FeatureSample(**seed_sample(8, 5.5, position, words=(" a",) * 9, side=4))
    before, *_rest = pieces_of(made)
    first = max(0, position - 4)
    n_before = 0 if before.is_peak else len(before.text) // len(" a")
    assert n_before == position - first - 1


def test_text_that_is_not_in_its_context_stands_behind_it():
    told = seed_sample(8, 5.5, 4) | {"text": "other"}
    assert [each[::2] for each in pieces_of(FeatureSample(**told))] == [
        ("".join(WORDS), False),
        ("other", True),
    ]


def test_no_text_at_all():
    assert pieces_of(FeatureSample(feature_idx=1, activation_value=2, position=3)) == []


def test_activations_that_do_not_fit_are_not_shown():
    made = sample(42, 9.5, 6).model_copy(update={"context_activations": (1.0,)})
    assert [each.activation for each in pieces_of(made)] == [None] * 7
