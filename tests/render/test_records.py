"""Reports as files."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from actcli.analysis.outliers import count_outliers
from actcli.errors import ActcliError, DumpError
from actcli.render.figures import outlier_picture
from actcli.render.records import check_report_target, outlier_csv, write_outliers
from actcli.reports.outliers import ComparedOutliersReport, DimComparison, OutlierReport
from actcli.store.reader import in_memory, open_dump
from tests.golden import DUMPS


def golden(key="attn_norm", **options):
    with open_dump(DUMPS / "a_ev_mha_fp32.safetensors") as dump:
        return count_outliers(dump.tensor(key), **options)


def compared():
    first, second = golden(), golden("mlp_input")
    return ComparedOutliersReport(
        first=first, second=second, comparison=DimComparison.of(first, second)
    )


def test_json(tmp_path):
    report = golden()
    write_outliers(report, tmp_path / "r.json")
    assert OutlierReport.model_validate_json((tmp_path / "r.json").read_text()) == report
    write_outliers(compared(), tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["comparison"]["jaccard"] == 1.0


def test_csv(tmp_path):
    report = golden(layers=[1, 4])
    rows = list(csv.DictReader(io.StringIO(outlier_csv([report]))))
    total = report.outlier_occurrences
    assert rows[0] == {
        "key": "attn_norm",
        "by": "all",
        "index": "",
        "count": str(total),
        "share": "1.0",
        "positive": str(sum(report.pos_counts)),
        "negative": str(sum(report.neg_counts)),
    }
    for by, indices, counts in (
        ("dim", range(32), report.dim_counts),
        ("layer", (1, 4), report.layer_counts),
        ("first_layer", (1, 4), report.first_layer_counts),
        ("token", range(16), report.token_counts),
    ):
        found = [each for each in rows if each["by"] == by]
        assert [int(each["index"]) for each in found] == list(indices)
        assert [int(each["count"]) for each in found] == list(counts)
        assert sum(float(each["share"]) for each in found) == pytest.approx(1)
    write_outliers(compared(), tmp_path / "c.csv")
    written = io.StringIO((tmp_path / "c.csv").read_text())
    keys = {each["key"] for each in csv.DictReader(written)}
    assert keys == {"attn_norm", "mlp_input"}
    nothing = csv.DictReader(io.StringIO(outlier_csv([golden(threshold=1e9)])))
    assert {each["share"] for each in nothing} == {"0.0"}


def test_a_picture_shows_the_counts(tmp_path):
    write_outliers(golden(), tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.width == 1920
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    darkest = (68, 1, 84)  # of the colour map: the largest count
    assert (np.abs(pixels - darkest).sum(axis=2) < 6).sum() > 500
    bars = np.abs(pixels - (0x3B, 0x6E, 0xA8)).sum(axis=2) < 6
    assert bars.sum() > 5000
    assert bars[:, : picture.width // 2].sum() == 0


@pytest.mark.parametrize(
    "acts",
    [
        np.zeros((2, 3, 4, 5)),
        np.full((2, 1, 1, 1), 7.0),
        np.full((1, 2, 3, 5000), 8.0),
        np.full((1, 100, 2, 7), np.inf),
        np.geomspace(1e-9, 1e9, 3000).reshape(1, 3, 10, 100),
        np.zeros((0, 2, 3, 4)),
    ],
    ids=["none", "one", "wide", "infinite", "magnitudes", "empty"],
)
@pytest.mark.parametrize("threshold", [6.0, 0.0])
def test_pictures_of_unusual_dumps(acts, threshold):
    report = count_outliers(in_memory("a$b$_{", acts), threshold=threshold, min_layer_fraction=None)
    assert outlier_picture([report, report]).startswith(b"\x89PNG")


def test_a_target_is_checked_first(tmp_path):
    path = tmp_path / "r.json"
    check_report_target(path, force=False)
    path.write_text("mine")
    with pytest.raises(DumpError, match=r"r\.json exists: choose another --output, or --force"):
        check_report_target(path, force=False)
    check_report_target(path, force=True)
    with pytest.raises(DumpError, match="is a folder"):
        check_report_target(tmp_path, force=True)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "r.json"
    path.mkdir()
    with pytest.raises(ActcliError, match=r"cannot write .*r\.json: Is a directory"):
        write_outliers(golden(), path)
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]
