"""The page of an evaluation as text: whole, self-contained, hostile names escaped, numbers kept."""

import json
import re

import pytest

from actcli.errors import ActcliError
from actcli.render.sae_page import dead_words, sae_page, write_page
from actcli.render.sae_page_words import UPSTREAM_GROUP, typeset
from actcli.reports.sae_glossary import FVU_DEFINITIONS, METRICS, value_at
from actcli.reports.sae_metrics import LossReport
from actcli.reports.sae_weights import FirstLetterReport
from tests.render.sae_made import (
    EVIL,
    made_description,
    made_dictionary,
    made_evaluation,
    made_pair,
    made_reconstruction,
    made_tokens,
    made_utilization,
)

LOSS = LossReport(
    ce_original=2.0,
    ce_spliced=2.1,
    ce_zero=4.0,
    ce_recovered=0.95,
    kl_spliced=0.1,
    kl_zero=2.0,
    kl_recovered=0.95,
    n_tokens=100,
    n_predictions=99,
)
LETTERS = FirstLetterReport(
    mean_absorption_fraction=0.1, full_absorption_rate=0.2, n_letters=26, n_words=99, letters={}
)
FVU_LABELS = {
    "centered": "1 − explained variance, centred",
    "legacy": "1 − explained variance, legacy",
    "upstream": "FVU, one mean",
    "about-zero": "FVU about zero",
}


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text[1])


def rows_of(page):
    return {row["path"]: row for group in data_of(page)["groups"] for row in group["rows"]}


def test_every_row_has_the_numbers_of_the_report():
    with_loss = made_dictionary("loss", seed=2, loss=LOSS, first_letter_absorption=LETTERS)
    report = made_evaluation(made_dictionary(), with_loss)
    rows = rows_of(sae_page(report))
    for path, row in rows.items():
        assert row["values"] == [value_at(each, path) for each in report.dictionaries], path
    undefined = {  # for both
        "cosines.encoder_decoder_cosine.mean",
        "cosines.mean_abs_decoder_cosine",
    }
    assert set(METRICS) - set(rows) == undefined
    for path, row in rows.items():
        assert (row["label"], row["words"]) == (METRICS[path].label, typeset(METRICS[path].words))
    assert rows["loss.ce_recovered"]["values"] == [None, 0.95]


def test_what_no_dictionary_has_takes_no_room():
    page = sae_page(made_evaluation(made_dictionary()))
    names = [group["name"] for group in data_of(page)["groups"]]
    assert names == ["Reconstruction", "Sparsity", "Features", "Weights"]


def test_the_programs_own_figures_are_a_group_of_their_own():
    figures = {"reconstruction": {"fvu": 0.25}, "feature_utilization": {"dead_count": 0}}
    page = sae_page(made_pair(upstream={"google": figures}))
    rows = rows_of(page)
    assert rows["upstream.reconstruction.fvu"]["values"] == [None, 0.25]
    assert rows["upstream.feature_utilization.dead_count"]["values"] == [None, 0]
    assert rows["reconstruction.fvu"]["values"] == [0.21, 0.28]
    assert data_of(page)["groups"][-1]["name"] == UPSTREAM_GROUP


def test_errors_stand_at_their_rows_alone():
    rows = rows_of(sae_page(made_pair()))
    assert rows["reconstruction.fvu"]["errors"] == [0.01, 0.01]
    assert rows["sparsity.mean_l0"]["errors"] == [0.4, 0.4]
    assert rows["reconstruction.cosine_similarity"]["errors"] == [None, None]
    assert rows["absorption.score"]["errors"] == [None, None]


def test_winners_are_those_of_the_report():
    report = made_pair()
    page = sae_page(report)
    winners = {path: row["winner"] for path, row in rows_of(page).items()}
    names = [each.sae.name for each in report.dictionaries]
    for metric in report.metrics:
        expected = None if metric.winner is None else names.index(metric.winner)
        assert winners.pop(metric.metric) == expected
    assert set(winners.values()) == {None}
    assert data_of(page)["verdict"] == (
        "Ahead of all others by two standard errors, of 3 metrics: ours in 3."
    )


def test_the_verdict_counts_what_is_open():
    report = made_pair()
    metrics = [each.model_copy(update={"winner": None}) for each in report.metrics]
    none = report.model_copy(update={"metrics": tuple(metrics)})
    assert data_of(sae_page(none))["verdict"].startswith("In none of 3 metrics")
    some = report.model_copy(update={"metrics": (report.metrics[0], *metrics[1:])})
    assert data_of(sae_page(some))["verdict"].endswith("of 3 metrics: ours in 1; none in 2.")
    assert data_of(sae_page(made_evaluation(made_dictionary())))["verdict"] == ""


def test_hostile_names_and_words_stay_text():
    hostile = made_dictionary(
        EVIL,
        sae=made_description(EVIL, path=EVIL, notes=(EVIL,), format=EVIL, x=EVIL),
        warnings=(EVIL,),
        tokens=made_tokens(source=EVIL, rules=(EVIL,)),
    )
    report = made_evaluation(hostile, made_dictionary("b"), warnings=(EVIL,), not_compared=EVIL)
    page = sae_page(report)
    assert "<b>" not in page
    assert page.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert not set(data) & set("<>&")
    shown = "</script><b>\\u202e$x_1$&\\n"
    assert data_of(page)["dictionaries"][0]["name"] == shown
    assert data_of(page)["warnings"] == [shown, shown]
    alone = sae_page(made_evaluation(hostile))
    assert "<title>&lt;/script&gt;&lt;b&gt;" in alone
    assert alone.count("</script>") == 2


def test_nothing_is_fetched():
    page = sae_page(made_pair())
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "{{" not in page


def test_dead_features_are_bounded_in_words():
    one = made_utilization(1)
    assert dead_words(one) == (
        "511 of 512 features fired; 1 never did on 4,096 tokens: its density is below 0.073 %, "
        "with 95 % confidence."
    )
    assert "6 never did on 4,096 tokens: their density" in dead_words(made_utilization(6))
    assert dead_words(made_utilization(0)).endswith("none is dead.")


@pytest.mark.parametrize("definition", FVU_DEFINITIONS)
def test_a_definition_other_than_the_rows_is_named(definition):
    found = made_reconstruction(0.3, fvu_definition=definition)
    page = sae_page(made_evaluation(made_dictionary(reconstruction=found)))
    expected = None if definition == "standard" else FVU_LABELS[definition]
    assert data_of(page)["goesBy"] == expected


def test_what_is_not_defined_is_null():
    missing = made_reconstruction(0.3, fvu=None, explained_variance=None, standard_errors={})
    page = sae_page(made_evaluation(made_dictionary(reconstruction=missing), made_dictionary("b")))
    assert rows_of(page)["reconstruction.fvu"]["values"] == [None, 0.3]
    assert data_of(page)["dictionaries"][0]["point"] is None


def test_it_is_written_whole_or_refused(tmp_path):
    write_page(made_pair(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == sae_page(made_pair())
    with pytest.raises(ActcliError, match="cannot write"):
        write_page(made_pair(), tmp_path / "missing" / "page.html")
