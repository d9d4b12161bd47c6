import io
import math

import numpy as np
import pytest
from rich.console import Console

from actcli.analysis.gammas import summarise_gammas
from actcli.render.gammas import bars, gamma_tables
from actcli.store.reader import in_memory


def printed(report):
    console = Console(file=io.StringIO(), width=300, markup=False)
    for each in gamma_tables(report):
        console.print(each)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((), ""), ((0, 0), "  "), ((5,), "█"), ((100, 25, 1, 0), "█▄▁ "), ((10**9, 1), "█▁")],
)
def test_bars(counts, expected):
    assert bars(counts) == expected


def test_the_table():
    gammas = {
        "a[b].norm": in_memory("a", np.array([0.5, 1.0, 2.0])),
        "z": in_memory("z", np.ones(3)),
    }
    text = printed(summarise_gammas(gammas, source="x[/y].pt"))
    assert "Norm gammas of x[/y].pt" in text
    cells = [
        cell.strip()
        for cell in next(line for line in text.splitlines() if "a[b]" in line).split("│")
    ]
    assert cells[1:10] == [
        *("a[b].norm", "(3,)", "F64", "1/3", "33.33%"),
        *("0.500000", "2.000000", "1.166667", "0.623610"),
    ]
    assert text.rstrip().endswith("All gammas exactly 1.0: no (4/6 overall)")
    assert "0.5 … 2" in text


def test_the_verdict():
    ones = {"x": in_memory("x", np.array([1.0, 1.01, math.nan][:2]))}
    assert "All gammas within 0.02 of 1.0: yes (2/2" in printed(
        summarise_gammas(ones, tolerance=0.02)
    )
    nan = {"x": in_memory("x", np.array([math.nan]))}
    text = printed(summarise_gammas(nan))
    assert "NaN elements: 1" in text
    assert " - " in text
    assert "no (0/0 overall)" in printed(summarise_gammas({}))
