"""Weights over offsets: heat maps, records, table."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from actcli.errors import UsageError
from actcli.render import qk_static
from actcli.render.qk_static import STATIC_COLUMNS, static_arrays, static_csv, static_tables
from actcli.reports.qk import QkStatic
from tests.render.qk_made import made_report


def made_static(*, n_heads=3, n_pairs=4, n_offsets=5, layer=1):
    draw = np.random.default_rng(0)
    z_OAN = draw.normal(size=(n_offsets, n_heads, n_pairs)).astype(np.float32)
    return QkStatic(
        layer=layer,
        offsets=np.arange(n_offsets),
        q_alive=np.arange(9),
        k_alive=np.arange(7),
        top_pairs=np.stack([np.arange(n_pairs) + 10, np.arange(n_pairs)], axis=1),
        raw=3 * z_OAN,
        z=z_OAN,
        mean_A=np.zeros(n_heads),
        std_A=np.ones(n_heads),
        score=np.abs(z_OAN).max(axis=(0, 1)),
    )


def test_records_name_the_extremes():
    static = made_static()
    rows = [*csv.DictReader(io.StringIO(static_csv([static, made_static(layer=4)], run="r")))]
    assert [row["layer"] for row in rows] == ["1"] * 4 + ["4"] * 4
    assert tuple(rows[0]) == STATIC_COLUMNS
    for n, row in enumerate(rows[:4]):
        assert (row["q_c"], row["k_c"], row["rank"]) == (str(n + 10), str(n), str(n + 1))
        offset, head = int(row["z_peak_offset"]), int(row["z_peak_head"])
        assert float(row["z_peak"]) == static.z[offset, head, n]
        assert abs(float(row["z_peak"])) == pytest.approx(static.score[n])
        assert float(row["raw_at_z_peak"]) == pytest.approx(3 * static.z[offset, head, n])
        mean_O = static.z[:, :, n].mean(axis=1)
        assert abs(float(row["mean_z_peak"])) == pytest.approx(np.abs(mean_O).max())


def test_arrays_are_those_of_the_layer():
    arrays = static_arrays(made_static(layer=2))
    assert {name.rpartition("/")[0] for name in arrays} == {"l2/static"}
    assert arrays["l2/static/z"].shape == (5, 3, 4)


def test_the_terminal_has_a_table_for_each_layer():
    console = Console(file=io.StringIO(), width=4000)
    for each in static_tables(made_report(files=("a.csv",)), static_readings=[made_static()]):
        console.print(each)
    text = console.file.getvalue()
    assert "layer 1 · static · by peak · 9 × 7 components" in text
    assert "q.13 → k.3" in text
    assert "Wrote a.csv" in text


@pytest.mark.parametrize("n_heads", [1, 6, 12])
def test_a_heat_map_for_the_mean_and_each_head(n_heads, tmp_path, monkeypatch):
    kept = []

    def keep(figure, path):
        kept.append(figure)
        return b""

    monkeypatch.setattr(qk_static, "encode", keep)
    static = made_static(n_heads=n_heads)
    qk_static.write_static_figure(tmp_path / "s.png", static, run="r")
    maps = [axes for axes in kept[0].axes if axes.get_title()]
    titles = ["All Heads (mean)", *(f"H{head}" for head in range(n_heads))]
    assert [axes.get_title() for axes in maps] == titles
    images = [axes.images[0] for axes in maps]
    assert len({image.get_clim() for image in images}) == 1
    np.testing.assert_array_equal(images[-1].get_array(), static.z[:, -1].T)
    np.testing.assert_allclose(images[0].get_array(), static.z.mean(axis=1).T, atol=1e-6)
    names = [label.get_text() for label in maps[0].get_yticklabels()]
    assert names == ["q.10 → k.0", "q.11 → k.1", "q.12 → k.2", "q.13 → k.3"]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError):
        qk_static.write_static_figure(tmp_path / "s.gif", made_static(), run="r")
