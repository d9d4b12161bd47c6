"""Records as CSV: every number and every token comes back."""

import csv
import re

import numpy as np
import pytest

from actcli.errors import ActcliError
from actcli.render.lens_records import PureNextTokenCsv, RecordsCsv
from actcli.reports.lens_table import STREAMS, LensTable, place_name
from tests.render.test_lens_grid import golden_table, two_streams

HEADER = (
    "sample,stream,layer,place,pos,token_id,token,entropy,entropy_bits,target_id,target,p_target,"
    "nll_target_bits,rank_target,kl_to_final_bits,kl_from_final_bits,js_bits,top1_agree,"
    "cos_to_final,resid_norm,rest_mass,top1_id,top1,prob1,top2_id,top2,prob2"
)
HOSTILE = (
    "",
    ",",
    '"',
    '""',
    "a\nb",
    "\r\n",
    "\t",
    "\x00",
    "\ufffd",
    "🎉",
    " Berlin",
    "  ",
    "NA",
    "nan",
    "null",
    "None",
    "\\n",
    "\\",
    "'",
    ';"x",',
    "=1+1",
    "\u2028",
    "\u0085",
    "\x1a",
    "\ufeff",
    "\udc80",
    "-1",
    "1e5",
    "#",
    "</script>",
)
CELL = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n)')


def token_text(token):
    return f" tok{token},"


def write(path, *tables, text_of=token_text, contrast=False):
    with RecordsCsv(
        path, top_k=tables[0].top_ids.shape[1], text_of=text_of, contrast=contrast
    ) as f:
        for table in tables:
            f.write(table)
    return read(path)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def undone(shown):
    return shown.encode("latin-1", "backslashreplace").decode("unicode_escape")


def rfc4180(text):
    """A reader that takes nothing but what the grammar of RFC 4180 allows."""
    rows, row, place = [], [], 0
    while place < len(text):
        match = CELL.match(text, place)
        assert match, f"not RFC 4180 at {text[place : place + 40]!r}"
        row.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        if match[3] == "\r\n":
            rows.append(row)
            row = []
        place = match.end()
    assert not row
    return rows


def with_tokens(ids, *, top_k=2):
    """A table whose tokens are the given ones, at every place of a record."""
    table = LensTable.concat([golden_table()] * (len(ids) // 90 + 1)).select(slice(0, len(ids)))
    columns = table.columns | {
        "token_id": ids,
        "target_id": ids[::-1],
        "top_ids": np.stack([np.roll(ids, shift) for shift in range(top_k)], axis=1),
        "top_p": table.top_p[:, :top_k],
    }
    return LensTable(**columns)


def test_the_header_has_the_names_of_the_golden_files_and_the_seeds(tmp_path):
    write(tmp_path / "r.csv", with_tokens(np.arange(3)))
    assert (tmp_path / "r.csv").read_bytes().split(b"\r\n")[0].decode() == HEADER


def test_every_column_comes_back_exactly(tmp_path):
    table = two_streams()
    rows = write(tmp_path / "r.csv", table, contrast=True)
    assert len(rows) == len(table) == 180
    for name, column in table.columns.items():
        if name in {"stream", "top_ids", "top_p", "top1_agree"}:
            continue
        for row, value in zip(rows, column.tolist(), strict=True):
            no_target = row["target_id"] == "" and "target" in name
            is_none = no_target or (name == "rank_contrast" and value == 0)
            if is_none or np.isnan(value):
                assert row[name] == ""
            else:
                assert column.dtype.type(row[name]) == value
    for number, row in enumerate(rows):
        stream, layer = STREAMS[table.stream[number]], int(table.layer[number])
        assert (row["stream"], row["place"]) == (stream, place_name(stream, layer))
        assert row["entropy"] == row["entropy_bits"]
        assert row["top1_agree"] == str(bool(table.top1_agree[number]))
        for place in range(5):
            token = int(row[f"top{place + 1}_id"])
            assert token == table.top_ids[number, place]
            assert row[f"top{place + 1}"] == token_text(token)
            assert np.float32(row[f"prob{place + 1}"]) == table.top_p[number, place]
    assert {row["p_contrast"] == "" for row in rows if row["pos"] == "8"} == {False}
    assert {row["p_contrast"] for row in rows if row["pos"] != "8"} == {""}
    assert {row["target"] for row in rows if row["sample"] == "8" and row["pos"] == "8"} == {""}


def test_a_whole_hostile_vocabulary_comes_back(tmp_path):
    letters = [chr(code) for code in range(0x2100)]
    vocabulary = [*HOSTILE, *letters, *(f" {each}{each}" for each in letters)]
    ids = np.arange(len(vocabulary))
    rows = write(tmp_path / "r.csv", with_tokens(ids), text_of=vocabulary.__getitem__)
    for name in ("token", "target", "top1", "top2"):
        found = [undone(row[name]) for row in rows]
        assert found == [vocabulary[int(row[f"{name}_id"])] for row in rows]
    text = (tmp_path / "r.csv").read_bytes().decode("utf-8")
    strict = rfc4180(text)
    assert strict[1:] == [list(row.values()) for row in rows]
    assert len(text.splitlines()) == len(rows) + 1  # a record is a line


def test_batches_make_the_same_file_as_one(tmp_path):
    table = two_streams()
    write(tmp_path / "a.csv", table)
    write(tmp_path / "b.csv", *(table.select(slice(i, i + 7)) for i in range(0, len(table), 7)))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_no_number_is_minus_zero(tmp_path):
    table = golden_table()
    table.entropy_bits[:] = -0.0
    assert {row["entropy_bits"] for row in write(tmp_path / "r.csv", table)} == {"0"}


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("older")

    def interrupted():
        with RecordsCsv(path, top_k=5, text_of=str) as records:
            records.write(golden_table())
            assert path.read_text() == "older"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "older"
    write(path, golden_table())
    assert [*tmp_path.iterdir()] == [path]
    assert len(read(path)) == 90


def test_a_folder_that_is_not_there(tmp_path):
    with (
        pytest.raises(ActcliError, match=r"cannot write .*r\.csv: No such file"),
        RecordsCsv(tmp_path / "none" / "r.csv", top_k=1, text_of=str),
    ):
        pass


def test_without_records_there_is_a_header(tmp_path):
    assert write(tmp_path / "r.csv", with_tokens(np.arange(0))) == []
    assert (tmp_path / "r.csv").read_bytes().decode() == HEADER + "\r\n"


def write_pure(path, table, *, copied, collapsed):
    k = table.top_ids.shape[1]
    with PureNextTokenCsv(path, top_k=k, text_of=token_text, contrast=True) as f:
        f.write(table, copy_collapse=copied, entropy_collapse=collapsed)
    return read(path)


def test_pure_records_are_those_of_the_last_positions(tmp_path):
    table = two_streams()
    table = table.select((table.sample == 3) | (table.pos < 6))  # the second text is shorter
    copied = np.arange(len(table)) % 2 == 0
    rows = write_pure(tmp_path / "p.csv", table, copied=copied, collapsed=table.entropy_bits <= 3.0)
    last = [
        number
        for number, (sample, pos) in enumerate(zip(table.sample, table.pos, strict=True))
        if pos == {3: 8, 8: 5}[int(sample)]
    ]
    assert len(rows) == len(last) == 20
    for row, number in zip(rows, last, strict=True):
        assert row["token"] == "⟨NEXT⟩"
        assert int(row["token_id"]) == table.token_id[number]
        assert row["copy_collapse"] == str(bool(copied[number]))
        assert row["entropy_collapse"] == str(bool(table.entropy_bits[number] <= 3.0))
        assert row["is_answer"] == str(bool(table.rank_target[number] == 1))
        assert row["p_top1"] == row["prob1"]
        assert float(row["p_top5"]) == pytest.approx(
            sum(float(row[f"prob{place}"]) for place in range(1, 6)), rel=1e-6
        )
        assert (row["p_answer"], row["answer_rank"]) == (row["p_target"], row["rank_target"])
    assert {row["entropy_collapse"] for row in rows} == {"True", "False"}


def test_pure_records_without_an_answer_or_five_likeliest(tmp_path):
    table = golden_table()
    table = table.select(table.sample == 8)
    table = LensTable(
        **table.columns | {"top_ids": table.top_ids[:, :3], "top_p": table.top_p[:, :3]}
    )
    none = np.zeros(len(table), dtype=bool)
    for row in write_pure(tmp_path / "p.csv", table, copied=none, collapsed=none):
        assert [row[name] for name in ("is_answer", "p_answer", "answer_rank")] == ["", "", ""]
        assert row["p_top5"] == ""


def test_pandas_reads_it_as_it_says(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = with_tokens(np.arange(len(HOSTILE)))
    rows = write(tmp_path / "r.csv", table, text_of=HOSTILE.__getitem__)
    frame = pandas.read_csv(tmp_path / "r.csv", keep_default_na=False, na_values=[""])
    assert frame["token"].fillna("").astype(str).tolist() == [row["token"] for row in rows]
    np.testing.assert_array_equal(frame["entropy_bits"].to_numpy(np.float32), table.entropy_bits)


def test_the_text_of_a_token_is_asked_for_once(tmp_path):
    asked = []
    table = golden_table()
    write(tmp_path / "r.csv", table, table, text_of=lambda token: asked.append(token) or "x")
    assert len(asked) == len(set(asked)) > 50
