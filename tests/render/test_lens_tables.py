"""What the terminal says of a run."""

import io

import pytest
from rich.console import Console

from actcli.render.lens_tables import lens_tables
from actcli.render.lens_words import milestone_words
from actcli.reports.logit_lens import RawNormCheck, SelfTestReport
from tests.render.test_lens_grid import golden, golden_table
from tests.render.test_lens_page import lens_report, raw


def printed(report, table, **options):
    text = io.StringIO()
    console = Console(file=text, width=200, markup=False, highlight=False, emoji=False)
    for each in lens_tables(report, table, text_of=lambda token: f" [t{token}]\n", **options):
        console.print(each)
    return text.getvalue()


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_line_a_layer_with_the_numbers_of_the_last_position():
    stored = golden()
    text = printed(lens_report(), golden_table())
    found = rows(text)[:10]
    for layer, row in enumerate(found[:5]):
        assert row[:2] == [str(layer), "embed" if layer == 0 else f"post:{layer - 1}"]
        assert row[2] == rf"[t{stored['topk_ids'][layer, 0, -1, 0]}]\n"
        rank = stored["rank_target"][layer, 0, -1]
        numbers = [
            stored["topk_p"][layer, 0, -1, 0],
            stored["entropy_bits"][layer, 0, -1],
            rank,
            stored["p_target"][layer, 0, -1],
            stored["kl_to_final_bits"][layer, 0, -1],
        ]
        assert [float(cell) for cell in row[3:]] == pytest.approx(numbers, abs=6e-4)
    assert all(len(row) == 6 for row in found[5:])  # the second text has no answer


def test_it_says_milestones_checks_and_files():
    text = printed(lens_report(), golden_table())
    assert "First layer with a copy of the prompt: never; entropy ≤ 1 bit: 4;" in text
    assert text.count("answer on top: 3; rank ≤ 5: 2; rank ≤ 10: 0;") == 1  # of the first text
    assert text.count("KL ≤ 0.5: 4; KL ≤ 1: 4") == 2
    assert "Self-test: the last layer agrees with the model's logits" in text
    assert "Wrote out/records.csv" in text
    assert "give the city" in text
    assert "raw lens (no final norm)" not in text


def test_it_says_what_is_not_plain():
    report = lens_report(
        lens=raw(),
        self_test=SelfTestReport(largest_difference=0.5, tolerance=1e-3),
        raw_norm_check=RawNormCheck(risk="high", layers=()),
    )
    text = printed(report, golden_table())
    assert text.count("raw lens (no final norm)") == 2
    assert "DOES NOT AGREE" in text
    assert "Raw against norm lens: high risk" in text
    assert "Self-test: none" in printed(lens_report(self_test=None), golden_table())


def test_some_samples_are_shown_and_the_rest_counted():
    text = printed(lens_report(n_samples=12), golden_table(), most_samples=1)
    assert [len(row) for row in rows(text)] == [8] * 5 + [7] * 5  # then the means
    assert "...and 11 more samples" in text


def test_means_over_all_records():
    means = rows(printed(lens_report(), golden_table()))[10:]
    assert means[0] == ["0", "embed", "0.000", "0.100", "0.400", "", "0.0%"]
    assert means[3] == ["3", "post:2", "3.000", "3.100", "3.400", "60.0%", "75.0%"]
    assert len(means) == 5
    alone = lens_report(n_samples=1, samples=lens_report().samples[:1])
    assert len(rows(printed(alone, golden_table()))) == 5


def test_every_milestone_has_words():
    for name in lens_report().samples[0].milestones.layers:
        assert milestone_words(name) != name
