"""Pairs as CSV and npz, and the tables on the terminal."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from actcli.errors import ActcliError
from actcli.render.qk_records import PAIR_COLUMNS, ArraysNpz, PairsCsv, pair_arrays, table_csv
from actcli.render.qk_tables import qk_tables
from actcli.reports.qk import QkPairReport, QkReadingReport, QkSideReport, QkTableRow
from tests.render.qk_made import EVIL, made_report, made_view


def made_reading(**changed):
    pair = QkPairReport(
        place=1,
        q="3",
        k="delta",
        score=2.5,
        peak=-2.5,
        peak_head=1,
        peak_key=4,
        peak_token=EVIL,
        centered_peak=-1.25,
        mean=0.125,
        q_act=0.5,
        d_attn=-0.312,
        d_attn_head=0,
        d_attn_key=2,
        visible_heads=(0, 2),
    )
    given = {
        "layer": 1,
        "sample": 0,
        "query": 6,
        "token": " t6",
        "n_keys": 7,
        "method": "bound",
        "ledger_gap": 1e-6,
        "tolerance": 1e-4,
        "largest_residual": 0.5,
        "split_mean_abs": {"component:component": 3.0, "component:delta": 1.0, "bias:bias": 0.0},
        "pairs": (pair,),
    }
    return QkReadingReport(**given | changed)


def made_row(**changed):
    given = {
        "layer": 1,
        "q": "3",
        "k": "7",
        "count": 3,
        "share": 0.75,
        "mean_peak": 1.5,
        "mean_contribution": 0.25,
        "largest_peak": -4.0,
        "sign_consistency": 1 / 3,
        "head_means": (0.5, -1.0),
        "top_head": 1,
        "peak_token_id": 12,
        "peak_token": EVIL,
        "peak_token_share": 2 / 3,
    }
    return QkTableRow(**given | changed)


def printed(report, **options):
    console = Console(file=io.StringIO(), width=4000)
    for each in qk_tables(report, **options):
        console.print(each)
    return console.file.getvalue()


def test_a_line_of_csv_for_each_pair(tmp_path):
    path = tmp_path / "new" / "pairs.csv"
    with PairsCsv(path, run="svd:8") as file:
        file.write(made_reading())
        assert not path.exists()  # whole or not at all
    with path.open(encoding="utf-8", newline="") as text:
        (row,) = csv.DictReader(text)
    assert tuple(row) == PAIR_COLUMNS
    assert (row["run"], row["query_pos"], row["token"]) == ("svd:8", "6", " t6")
    assert (row["q_c"], row["k_c"], row["peak"]) == ("3", "delta", "-2.5")
    assert row["key_token"] == r"</script><b>\u202e$x_1$&\n"
    assert (row["q_act"], row["k_act"], row["q_ci"]) == ("0.5", "", "")
    assert row["visible_heads"] == "0 2"


def begin_and_fail(target, write):
    with target as file:
        write(file)
        raise RuntimeError


def test_a_failure_leaves_no_file(tmp_path):
    pairs, arrays = PairsCsv(tmp_path / "p.csv", run="x"), ArraysNpz(tmp_path / "a.npz")
    with pytest.raises(RuntimeError):
        begin_and_fail(pairs, lambda file: file.write(made_reading()))
    with pytest.raises(RuntimeError):
        begin_and_fail(arrays, lambda file: file.write({"a": np.arange(3)}))
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ActcliError, match="cannot write"), PairsCsv(tmp_path / "file/x", run=""):
        pass


def test_arrays_have_the_names_of_the_first_script(tmp_path):
    view = made_view(layer=3, sample=2)
    path = tmp_path / "a.npz"
    with ArraysNpz(path) as arrays:
        arrays.write(pair_arrays(view.pairs))
    with np.load(path) as file:
        place = "s2_q6_l3"
        for name in ("top_pairs", "top_contrib", "sum", "visible", "d_attn", "q_marginals"):
            assert np.array_equal(file[f"{place}/weighted/{name}"], getattr(view.pairs, name)), name
        assert np.array_equal(file[f"{place}/ground_truth"], view.pairs.ground_truth)
        assert np.array_equal(file[f"{place}/keys"], view.pairs.keys_P)
        residual = view.pairs.residual["component:delta"]
        assert np.array_equal(file[f"{place}/weighted/residual/component_delta"], residual)
        assert file[f"{place}/weighted/k_names"][-2:].tolist() == ["delta", "bias"]
        assert f"{place}/weighted/q_ci" not in file


def test_the_table_over_queries_as_csv():
    row, bare = csv.DictReader(
        io.StringIO(table_csv([made_row(), made_row(peak_token=None, peak_token_id=None)]))
    )
    assert (row["q"], row["k"], row["count"], row["head_means"]) == ("3", "7", "3", "0.5 -1")
    assert row["peak_token"] == r"</script><b>\u202e$x_1$&\n"
    assert (bare["peak_token"], bare["peak_token_id"]) == ("", "")


def test_the_terminal_shows_pairs_shares_and_the_ledger():
    text = printed(made_report(readings=(made_reading(),)), n_readings=1)
    row = next(line for line in text.splitlines() if "q.3 → k.delta" in line)
    for part in ("-2.500", "-1.250", "-31.2% in H0 at 2", "4 </script><b>", "0 2"):
        assert part in row
    assert "pairs of components 3 (75.0%), q components → k delta 1 (25.0%)" in text
    assert "bias" not in text
    assert "adds up to the model's own logits (largest gap 1.0e-06, at most 1.0e-04)" in text
    assert "over" not in text


def test_the_terminal_shows_pairs_over_queries():
    side = QkSideReport(layer=1, side="k", module="m.k_proj", n_components=1, exact=True)
    report = made_report(readings=(made_reading(),) * 6, table=(made_row(),), sides=(side,))
    text = printed(report, n_readings=250)
    assert text.count("q.3 → k.delta") == 4
    assert "...and 246 more queries" in text
    assert "Pairs over 250 queries" in text
    row = next(line for line in text.splitlines() if "q.3 → k.7" in line)
    for part in ("3 (75%)", "+1.500", "-4.000", "33%", "+0.50 -1.00", "(67%)"):
        assert part in row
    assert "m.k_proj is not decomposed; it stands as one exact component" in text


def test_weights_alone_have_no_ledger():
    reading = made_reading(ledger_gap=None, tolerance=None, split_mean_abs={})
    report = made_report(mode="binary", ledger_gap=None, tolerance=None, readings=(reading,))
    assert "Ledger: none" in printed(report, n_readings=1)
