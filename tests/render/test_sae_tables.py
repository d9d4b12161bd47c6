"""The tables and texts of `sae-eval`: verdicts at their bounds, winners, files as valid JSON."""

import csv
import io
import json
import re

import pytest
from rich.console import Console

from actcli.commands.sae_options import RESERVED_NAMES
from actcli.render.sae_records import as_json, comparison, sae_csv
from actcli.render.sae_tables import sae_tables
from actcli.render.sae_text import (
    absorption_verdict,
    dead_verdict,
    fvu_verdict,
    judged_fvu,
    number,
    suggestions,
    summary_text,
)
from actcli.reports.sae_eval import EvaluationReport
from actcli.reports.sae_glossary import FVU_DEFINITIONS
from tests.render.sae_made import (
    made_absorption,
    made_dictionary,
    made_evaluation,
    made_pair,
    made_reconstruction,
    made_utilization,
)


def shown(report, *, width=220, **options):
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    for each in sae_tables(report, **options):
        console.print(each)
    return console.file.getvalue()


def row(text, label):
    (line,) = [each for each in text.splitlines() if each.startswith(f"│ {label} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.parametrize(
    ("verdict", "value", "words", "headline"),
    [
        (fvu_verdict, 0.0999, "excellent", "EXCELLENT"),
        (fvu_verdict, 0.1, "moderate", "MODERATE"),
        (fvu_verdict, 0.2999, "moderate", "MODERATE"),
        (fvu_verdict, 0.3, "poor", "NEEDS IMPROVEMENT"),
        (absorption_verdict, 0.0099, "good (diverse features)", "EXCELLENT"),
        (absorption_verdict, 0.01, "high redundancy", "MODERATE"),
        (absorption_verdict, 0.05, "very high redundancy", "HIGH REDUNDANCY"),
        (dead_verdict, 9.9, "good utilization", "EXCELLENT"),
        (dead_verdict, 10, "some waste", "MODERATE"),
        (dead_verdict, 30, "poor utilization", "POOR"),
    ],
)
def test_verdicts_change_at_the_bounds_of_the_matryoshka_program(verdict, value, words, headline):
    assert verdict(value) == (words, headline)
    assert verdict(None) is None


def test_suggestions_come_where_a_figure_is_in_its_worst_range():
    good = made_dictionary(fvu=0.2)
    assert [*suggestions(good)] == []
    bad = good.model_copy(
        update={
            "reconstruction": made_reconstruction(0.31),
            "absorption": good.absorption.model_copy(update={"score": 0.06}),
            "feature_utilization": good.feature_utilization.model_copy(
                update={"dead_percentage": 31.0}
            ),
        }
    )
    assert {each.partition(":")[0] for each in suggestions(bad)} == {
        "FVU above 0.3",
        "Absorption above 0.05",
        "Dead features above 30",
    }


@pytest.mark.parametrize("definition", FVU_DEFINITIONS)
def test_the_chosen_definition_is_the_figure_that_is_judged(definition):
    found = made_reconstruction(0.2, fvu_definition=definition)
    expected = {
        "standard": 0.2,
        "centered": 0.98 * 0.2,
        "legacy": 1.1 * 0.2,
        "upstream": 0.1,
        "about-zero": 0.2 / 2.1,
    }
    assert judged_fvu(found) == pytest.approx(expected[definition])


def test_the_table_has_dictionaries_as_columns_and_marks_the_winner():
    text = shown(made_pair(), files=["metrics.json"])
    cells = row(text, "FVU (standard)")
    assert cells[1:4] == ["0.2100 moderate *", "0.2800 moderate", "-0.07 ± 0.01"]
    assert cells[4] == "sum e^2 / sum (t - mean t)^2, the mean of each dimension"
    assert row(text, "L0, mean")[3] == "-19.36 ± 0.5"
    assert "not that of Chanin et al." in row(text, "Absorption (pairs)")[4]
    assert "4,096 tokens in 64 samples of acts.safetensors; 64 left out" in text
    assert "never fired on 4,096 tokens: density below" in row(text, "Dead features, %")[4]
    assert "Wrote metrics.json" in text


@pytest.mark.parametrize("width", [60, 100, 130])
def test_definitions_stand_below_a_table_that_is_too_wide_for_them(width):
    text = shown(made_pair(), width=width)
    assert "Definition" not in text
    assert "FVU (standard): sum e^2 / sum (t - mean t)^2" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= width
    assert "FVU (standard): sum" not in shown(made_pair())


def test_who_is_ahead_is_said_once_by_the_lines_of_the_table():
    report = made_pair()
    text = " ".join(shown(report).split())
    stars = sum(line.count(" *") for line in shown(report).splitlines() if line.startswith("│"))
    said = re.search(r"\* ahead of all others, .*?: (.*) of (\d+) metrics", text)
    assert said is not None
    assert sum(int(each) for each in re.findall(r" in (\d+)", said[1])) == stars > 0
    assert text.count("ahead of all others") == 1
    nobody = report.model_copy(
        update={"metrics": [m.model_copy(update={"winner": None}) for m in report.metrics]}
    )
    assert "where there are any: none of" in " ".join(shown(nobody).split())


def test_markup_in_names_is_shown_as_it_is():
    report = made_evaluation(made_dictionary("[red]mine[/red]"))
    assert "[red]mine[/red]" in shown(report)


def test_figures_that_are_not_defined_are_no_rows_and_no_errors():
    report = made_dictionary(fvu=0.2)
    nothing = dict.fromkeys(("fvu", "explained_variance", "cosine_similarity", "l2_ratio"))
    report = report.model_copy(
        update={
            "reconstruction": report.reconstruction.model_copy(update=nothing),
            "absorption": report.absorption.model_copy(update={"score": None, "pairs": ()}),
        }
    )
    evaluation = made_evaluation(report)
    text = shown(evaluation)
    assert "FVU (standard)" not in text
    assert "not defined" in summary_text(evaluation)
    assert "nan" not in text.lower()


def test_comparison_has_the_keys_of_the_matryoshka_program():
    report = made_pair()
    found = json.loads(as_json(comparison(report)))
    assert set(found) == {"ours", "google", *RESERVED_NAMES}
    compared = found["comparison"]
    assert {
        "fvu_difference",
        "fvu_winner",
        "absorption_difference",
        "absorption_winner",
        "cosine_sim_difference",
        "cosine_sim_winner",
    } <= set(compared)
    assert compared["fvu_difference"] == pytest.approx(-0.07)
    assert compared["fvu_standard_error"] == 0.01
    assert compared["fvu_winner"] == "ours"
    assert compared["cosine_sim_difference"] == pytest.approx(0.07 / 3)
    assert found["ours"]["absorption"]["pairs_above_threshold"] == 10
    assert found["google"]["reconstruction"]["fvu"] == pytest.approx(0.28)


def test_a_difference_of_explained_variance_turns_round_as_an_fvu():
    report = made_pair()
    pair = tuple(
        each.model_copy(
            update={
                "reconstruction": each.reconstruction.model_copy(
                    update={"fvu_definition": "centered"}
                )
            }
        )
        for each in report.dictionaries
    )
    (first,) = [each for each in report.differences if each.metric == "reconstruction.fvu"]
    path = "reconstruction.explained_variance_centered"
    difference = first.model_copy(update={"metric": path, "difference": 0.05, "better": "higher"})
    report = report.model_copy(update={"dictionaries": pair, "differences": (difference,)})
    assert comparison(report)["comparison"]["fvu_difference"] == pytest.approx(-0.05)
    assert row(shown(report), "FVU (centered)")[3].startswith("-0.05")


def test_no_comparison_is_said_with_its_reason():
    pair = made_pair()
    report = EvaluationReport(
        tokens=pair.tokens, dictionaries=pair.dictionaries, not_compared="other targets"
    )
    assert comparison(report)["comparison"]["fvu_winner"] is None
    assert comparison(report)["summary"]["not_compared"] == "other targets"
    assert "Not compared: other targets" in shown(report)
    assert "Not compared: other targets" in summary_text(report)


def test_csv_has_a_line_for_each_dictionary():
    report = made_pair()
    ours, google = csv.DictReader(io.StringIO(sae_csv(report)))
    assert (ours["name"], google["name"]) == ("ours", "google")
    assert float(google["reconstruction.fvu"]) == pytest.approx(0.28)
    assert float(ours["sparsity.mean_l0"]) == report.dictionaries[0].sparsity.mean_l0


def test_three_dictionaries_have_no_column_of_differences_but_lines():
    three = made_evaluation(*(made_dictionary(name, fvu=0.2) for name in "abc"))
    text = shown(three)
    assert len(row(text, "FVU (standard)")) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0000"),
        (0.58598, "0.5860"),
        (3.8e-5, "3.800e-05"),
        (None, "n/a"),
        (12345.6, "1.235e+04"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


def test_the_summary_names_definition_and_tokens():
    report = made_evaluation(
        made_dictionary(
            fvu=0.4, absorption=made_absorption(3, ()), feature_utilization=made_utilization(3)
        )
    )
    text = summary_text(report)
    assert text.startswith("SAE EVALUATION\n")
    assert "Tokens: 4,096 tokens" in text
    assert "NEEDS IMPROVEMENT  (bounds 0.1 and 0.3; FVU by the definition standard)" in text
    assert "SUGGESTIONS" in text
    assert all(ord(each) < 0x2190 for each in text)
