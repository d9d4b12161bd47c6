"""Harvest databases: means and signs against what SPD's own code made of them."""

import json
import shutil
import sqlite3

import numpy as np
import pytest
import torch

from actcli.decompositions import open_decomposition
from actcli.decompositions.harvest import find_harvest, read_notes
from actcli.errors import ModelError
from tests.decompositions.cases import DATA, RUNS, opened, parts

DATABASE = DATA / "harvest" / "mha_noisy" / "h-20260101_000000" / "harvest.db"


@pytest.mark.parametrize("layer", [0, 1])
def test_the_alive_and_their_signs_as_in_the_golden_values(layer):
    _adapter, decomposition, layers = opened("mha_noisy")
    assert decomposition.harvest == DATABASE
    written = {}
    for side in "qk":
        factors = decomposition.factors(layers[layer], side)
        order = torch.argsort(factors.mean_ci_C, descending=True).tolist()
        alive = [each for each in order if factors.mean_ci_C[each] > 0.3]
        assert alive == parts()[f"mha_noisy/l{layer}/{side}_alive"].tolist()
        length_C = factors.V_HC.norm(dim=0) * factors.sign_C
        written[side] = (length_C[:, None] * factors.U_CO)[alive].view(len(alive), 6, 8)
    product = torch.einsum("ihd,jhd->hij", written["q"], written["k"])
    expected = parts()[f"mha_noisy/l{layer}/static_offset0"]
    np.testing.assert_allclose(product, expected, rtol=0, atol=2e-5)
    assert -1 in decomposition.factors(layers[layer], "q").sign_C


def test_those_that_never_fired():
    notes = read_notes(DATABASE, "h.0.attn.q_proj", n_components=60)
    fired = notes["firing_density"] > 0
    assert fired.sum() == 53
    assert not notes["mean_ci"][~fired].any()
    assert (notes["sign"][~fired] == 1).all()
    assert read_notes(DATABASE, "h.3.attn.q_proj", n_components=60) == {}


def test_no_note_without_a_row():
    _adapter, decomposition, layers = opened("mha_noisy")
    assert decomposition.factors(layers[3], "q").mean_ci_C is None


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    columns = "component_key, layer, component_idx, firing_density, mean_activations"
    connection.execute(f"CREATE TABLE components ({columns}, activation_examples)")
    connection.executemany("INSERT INTO components VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()


def row(index, mean, examples):
    means = json.dumps({"causal_importance": 0.5, "component_activation": mean})
    stored = [
        {"firings": firings, "activations": {"component_activation": values}}
        for firings, values in examples
    ]
    return (f"m:{index}", "m", index, 0.25, means, json.dumps(stored))


def test_the_sign_of_the_first_firing_token_or_of_the_mean(tmp_path):
    write(
        tmp_path / "harvest.db",
        [
            row(0, 9.0, [([False, True, True], [5.0, -2.0, 7.0]), ([True], [1.0])]),
            row(1, -9.0, [([False], [3.0])]),
            row(2, 9.0, []),
        ],
    )
    notes = read_notes(tmp_path / "harvest.db", "m", n_components=4)
    assert notes["sign"].tolist() == [-1, -1, 1, 1]
    assert notes["mean_ci"].tolist() == [0.5, 0.5, 0.5, 0]
    assert notes["firing_density"].tolist() == [0.25, 0.25, 0.25, 0]


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    run = tmp_path / "out" / "runs" / "proj-s-0123abcd"
    run.mkdir(parents=True)
    assert find_harvest(run) is None
    place = tmp_path / "out" / "harvest" / "s-0123abcd"
    for date in ("20250101_000000", "20260203_000000", "20251231_235959"):
        write(place / f"h-{date}" / "harvest.db", [])
    assert find_harvest(run) == place / "h-20260203_000000" / "harvest.db"
    elsewhere = tmp_path / "elsewhere" / "harvest" / run.name / "h-20270101_000000" / "harvest.db"
    write(elsewhere, [])
    monkeypatch.setenv("SPD_OUT_DIR", str(tmp_path / "elsewhere"))
    assert find_harvest(run) == elsewhere


def test_a_database_may_be_named(tmp_path):
    adapter, _run, layers = opened("mha_exact")
    place = tmp_path / "other.db"
    shutil.copy(DATABASE, place)
    decomposition = open_decomposition(f"spd:{RUNS / 'mha_exact'}", adapter, harvest=place)
    assert decomposition.factors(layers[0], "q").mean_ci_C is not None


def test_refuses_damage_and_databases_of_other_runs(tmp_path):
    with pytest.raises(ModelError, match="database of another run"):
        read_notes(DATABASE, "h.0.attn.q_proj", n_components=9)
    (tmp_path / "harvest.db").write_bytes(b"nothing of the kind" * 99)
    for path in (tmp_path / "harvest.db", tmp_path / "none.db"):
        with pytest.raises(ModelError, match="cannot read the harvest"):
            read_notes(path, "m", n_components=9)
