"""`qk-contrib` as users run it: golden values, the built-in model, files, every bad input."""

import csv
import json
import re

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from actcli.commands.qk_contrib import QkContribConfig, qk_contrib
from actcli.errors import ActcliError, DeviceError, DumpError, ModelError, UsageError
from tests.golden import GOLDEN, LENS_MODELS
from tests.processes import run_python

QK = GOLDEN.parent / "qk-contrib"
POINTS = np.load(QK / "datapoint.npz")
STATIC = np.load(QK / "static.npz")
CASES = sorted({"/".join(name.split("/")[:2]) for name in POINTS.files if "/" in name})
MODELS = sorted(path.name for path in LENS_MODELS.iterdir() if path.is_dir())
KINDS = ("component", "delta", "bias")
FACTS = {"init": "demo://facts", "decomp": "svd:8"}


def run(tmp_path, **options):
    """Run the command; return its summary, its lines of pairs, and its arrays."""
    folder = tmp_path / "qk"
    config = QkContribConfig(
        device="cpu", output_dir=folder, **{"draw": 0, "force": True, "quiet": True} | options
    )
    qk_contrib(config)
    (summary,) = folder.glob("output-*.json")
    (pairs,) = folder.glob("output-*-pairs.csv")
    (arrays,) = folder.glob("output-*.npz")
    with pairs.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return json.loads(summary.read_text()), rows, dict(np.load(arrays))


def spd(run_name):
    return {"decomp": f"spd:{QK / 'runs' / run_name}"}


def save_ids(tmp_path, ids):
    path = tmp_path / "ids.npy"
    np.save(path, ids)
    return path


@pytest.mark.parametrize("mode", ["weighted", "binary"])
@pytest.mark.parametrize("case", CASES)
def test_pairs_are_those_of_the_first_script(case, mode, tmp_path):
    run_name, place = case.split("/")
    sample, query, layer = map(int, re.findall(r"\d+", place))
    options = {"mode": mode, "gauge": "raw"} if mode == "binary" else {}
    tokens = save_ids(tmp_path, POINTS["input_ids"])
    summary, rows, arrays = run(
        tmp_path,
        **spd(run_name),
        tokens=tokens,
        samples=str(sample),
        queries=str(query),
        layers=str(layer),
        **options,
    )
    for name in ("top_pairs", "top_contrib", "sum", "visible"):
        wanted, found = POINTS[f"{case}/{mode}/{name}"], arrays[f"{place}/{mode}/{name}"]
        np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=name)
    assert [(int(row["q_c"]), int(row["k_c"])) for row in rows] == [
        tuple(pair) for pair in POINTS[f"{case}/{mode}/top_pairs"].tolist()
    ]
    contrib = POINTS[f"{case}/{mode}/top_contrib"]
    for n, row in enumerate(rows):
        at = contrib[int(row["peak_head"]), n, int(row["peak_key"])]
        assert float(row["peak"]) == pytest.approx(at, abs=2e-5)
        assert abs(at) == pytest.approx(np.abs(contrib[:, n]).max(), abs=2e-5)
    if mode == "binary":
        assert summary["ledger_gap"] is None
        assert 0.01 < float(rows[0]["q_ci"]) <= 1
    else:
        truth = arrays[f"{place}/ground_truth"]
        np.testing.assert_allclose(truth, POINTS[f"{case}/ground_truth"], atol=2e-5)
        assert summary["ledger_gap"] <= 1e-4


def test_static_mode_is_that_of_the_first_script(tmp_path):
    (database,) = (QK / "harvest" / "mha_noisy").rglob("harvest.db")
    summary, rows, arrays = run(
        tmp_path,
        **spd("mha_noisy"),
        mode="static",
        offsets="0-11",
        alive=0.3,
        layers="0,1",
        harvest=database,
        draw=1,
    )
    assert [name.rpartition("-")[2] for name in summary["files"] if "png" in name] == ["static.png"]
    for layer in (0, 1):
        q_alive, k_alive = (STATIC[f"mha_noisy/l{layer}/{side}_alive"] for side in "qk")
        z_OAQK = STATIC[f"mha_noisy/l{layer}/W_z"]
        peak_QK = np.abs(z_OAQK).max(axis=(0, 1))
        strongest = np.argsort(-peak_QK, axis=None, kind="stable")[:20]
        q, k = np.unravel_index(strongest, peak_QK.shape)
        np.testing.assert_allclose(arrays[f"l{layer}/static/z"], z_OAQK[:, :, q, k], atol=2e-4)
        same = [row for row in rows if row["layer"] == str(layer)]
        assert [int(row["q_c"]) for row in same] == q_alive[q].tolist()
        assert [int(row["k_c"]) for row in same] == k_alive[k].tolist()
        for row, peak in zip(same, peak_QK[q, k], strict=True):
            assert abs(float(row["z_peak"])) == pytest.approx(peak, abs=2e-4)
            at = z_OAQK[int(row["z_peak_offset"]), int(row["z_peak_head"])]
            assert np.abs(np.abs(at) - peak).min() < 2e-4


def test_the_built_in_model_looks_at_the_country(tmp_path):
    summary, rows, arrays = run(tmp_path, **FACTS, layers="5", draw=1)
    assert summary["ledger_gap"] <= 1e-4
    (reading,) = summary["readings"]
    assert (reading["query"], reading["token"]) == (13, "simply")
    assert (rows[0]["rank"], rows[0]["key_token"]) == ("1", "Germany")
    attention = arrays["s0_q13_l5/weighted/attention"]
    assert attention[3].argmax() == 10
    assert attention[3, 10] > 0.95
    change = arrays["s0_q13_l5/weighted/d_attn"][:, 0]
    head, key = np.unravel_index(np.abs(change).argmax(), change.shape)
    assert float(rows[0]["d_attn"]) == pytest.approx(change[head, key])
    assert (int(rows[0]["d_attn_head"]), int(rows[0]["d_attn_key"])) == (head, key)
    parts = sum(arrays[f"s0_q13_l5/weighted/residual/{q}_{k}"] for q in KINDS for k in KINDS)
    np.testing.assert_allclose(parts, arrays["s0_q13_l5/ground_truth"], atol=1e-4)
    for ending in ("-layer5-sample0-pos13-weighted.png", ".html", "-table.csv"):
        assert (tmp_path / "qk" / f"output-svd-8{ending}").stat().st_size > 300


@pytest.mark.parametrize("model", MODELS)
def test_singular_vectors_explain_every_family(model, tmp_path):
    ids = np.load(LENS_MODELS / model / "expected.npz")["input_ids"][:2]
    summary, rows, arrays = run(
        tmp_path,
        init=str(LENS_MODELS / model),
        decomp="svd:4",
        tokens=save_ids(tmp_path, ids),
        queries="2,-1",
        top_n=5,
    )
    n_layers, last = len(summary["layers"]), ids.shape[1] - 1
    assert summary["queries"] == [2, last]
    assert len(rows) == n_layers * 2 * 2 * 5
    assert summary["ledger_gap"] <= summary["tolerance"] <= 1e-2
    for sample in (0, 1):
        attention = arrays[f"s{sample}_q{last}_l0/weighted/attention"]
        assert (attention.sum(axis=1) < 1 + 1e-5).all()


def test_the_table_counts_pairs_over_samples_and_queries(tmp_path):
    prompts = ("the capital of France is", "the capital of Spain is called")
    summary, rows, _arrays = run(
        tmp_path, **FACTS, layers="4,5", prompt=prompts, queries="3-4,-1", top_n=4
    )
    n_queries = len({(row["sample"], row["query_pos"]) for row in rows})
    assert n_queries == 6
    assert len(rows) == 2 * n_queries * 4
    for row in summary["table"]:
        same = [
            each
            for each in rows
            if (int(each["layer"]), each["q_c"], each["k_c"]) == (row["layer"], row["q"], row["k"])
        ]
        peaks = [float(each["peak"]) for each in same]
        assert row["count"] == len(same)
        assert row["share"] == pytest.approx(len(same) / n_queries)
        assert row["mean_peak"] == pytest.approx(np.mean(peaks), abs=1e-5)
        assert row["sign_consistency"] == pytest.approx(abs(np.sign(peaks).mean()), abs=1e-6)
        tokens = [each["key_token"] for each in same]
        assert tokens.count(row["peak_token"]) == max(map(tokens.count, tokens))
    assert sum(row["count"] for row in summary["table"]) == len(rows)


def test_chosen_pairs_are_followed_even_those_with_delta(tmp_path):
    options = FACTS | {"layers": "5", "prompt": ("the capital of France is",)}
    _summary, every, _arrays = run(tmp_path, **options, top_n=64)
    pairs = ("0:1", "3:3", "delta:0", "delta:delta")
    summary, rows, arrays = run(tmp_path, **options, pairs=pairs)
    assert [f"{row['q_c']}:{row['k_c']}" for row in rows] == list(pairs)
    known = {(row["q_c"], row["k_c"]): row["peak"] for row in every}
    assert float(rows[0]["peak"]) == pytest.approx(float(known["0", "1"]), abs=1e-5)
    (place,) = {name.partition("/")[0] for name in arrays}
    residual = arrays[f"{place}/weighted/residual/delta_delta"]
    np.testing.assert_allclose(arrays[f"{place}/weighted/top_contrib"][:, 3], residual, atol=1e-5)
    assert summary["readings"][0]["method"] == "given"


@pytest.mark.parametrize("rank", ["centered", "attn", "mean-abs"])
def test_other_ranks_put_other_pairs_first(rank, tmp_path):
    _summary, rows, arrays = run(tmp_path, **FACTS, layers="5", rank=rank, top_n=64)
    contrib_ANP = arrays["s0_q13_l5/weighted/top_contrib"].astype(np.float64)
    p_A1P = arrays["s0_q13_l5/weighted/attention"].astype(np.float64)[:, None]
    centered = contrib_ANP - contrib_ANP.mean(axis=-1, keepdims=True)
    effect = p_A1P * (contrib_ANP - (p_A1P * contrib_ANP).sum(axis=-1, keepdims=True))
    score_N = {
        "centered": np.abs(centered).max(axis=(0, 2)),
        "attn": np.abs(effect).max(axis=(0, 2)),
        "mean-abs": np.abs(contrib_ANP).mean(axis=(0, 2)),
    }[rank]
    np.testing.assert_allclose([float(row["score"]) for row in rows], score_N, rtol=1e-4, atol=1e-6)
    assert (np.diff(score_N) <= 1e-6).all()


def test_exported_factors_give_the_same_pairs(tmp_path):
    factors = tmp_path / "factors.safetensors"
    options = {"prompt": ("the capital of France is",), "layers": "5"}
    summary, first, _arrays = run(tmp_path, **FACTS, **options, export=factors)
    assert summary["files"][-1] == str(factors)
    assert len(load_file(factors)) >= 4
    again = {"decomp": f"file:{factors}", "init": "demo://facts", "output_dir": tmp_path / "two"}
    qk_contrib(QkContribConfig(device="cpu", quiet=True, draw=0, **again, **options))
    with next((tmp_path / "two").glob("*-pairs.csv")).open(newline="") as file:
        second = list(csv.DictReader(file))
    assert [row["peak"] for row in second] == [row["peak"] for row in first]


def test_one_side_alone_leaves_the_other_as_one_exact_component(tmp_path, capsys):
    factors = tmp_path / "factors.safetensors"
    options = {"prompt": ("the capital of France is",), "layers": "5"}
    run(tmp_path, **FACTS, **options, export=factors)
    only_k = {name: each for name, each in load_file(factors).items() if "k_proj" in name}
    save_file(only_k, factors)
    capsys.readouterr()
    again = {"decomp": f"file:{factors}", "init": "demo://facts", "layout": "x@V@U"}
    summary, rows, _arrays = run(tmp_path / "two", **again, **options, quiet=False)
    assert {row["q_c"] for row in rows} == {"exact"}
    assert [side["exact"] for side in summary["sides"]] == [True, False]
    assert summary["ledger_gap"] <= 1e-4
    assert "q_proj is not decomposed; it stands as one exact component" in capsys.readouterr().out


def test_summaries_go_where_they_are_told(tmp_path, capsys):
    for name in ("s.json", "s.csv"):
        config = QkContribConfig(
            **FACTS,
            layers="5",
            device="cpu",
            json_output=True,
            files=False,
            output=tmp_path / name,
        )
        qk_contrib(config)
    printed = capsys.readouterr()
    assert json.JSONDecoder().raw_decode(printed.out)[0]["decomposition"] == "svd:8"
    assert printed.err == ""
    report = json.loads((tmp_path / "s.json").read_text())
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["q"] for row in rows] == [row["q"] for row in report["table"]]
    assert {path.name for path in tmp_path.iterdir()} == {"s.json", "s.csv"}


def test_in_an_empty_folder_every_file_is_written(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); from actcli.cli import main; main()"
    options = ["--init", "demo://facts", "--decomp", "svd:8", "--layers", "5"]
    done = run_python("-c", code, "qk-contrib", *options)
    assert done.returncode == 0, done.stderr
    assert "Germany" in done.stdout
    assert "adds up to the model's own logits" in done.stdout
    written = {path.name for path in tmp_path.glob("out/qk_contrib/svd-8_*/*")}
    stem = "output-svd-8"
    assert written == {
        f"{stem}{ending}" for ending in (".json", ".html", ".npz", "-pairs.csv", "-table.csv")
    } | {f"{stem}-layer5-sample0-pos13-weighted.png"}


def test_existing_files_are_kept_without_force(tmp_path):
    run(tmp_path, **FACTS, layers="5")
    with pytest.raises(DumpError, match="--force"):
        run(tmp_path, **FACTS, layers="5", force=False)


def test_the_example_needs_no_options(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r}); from actcli.cli import main; main()"
    done = run_python("-c", code, "qk-contrib", "--no-files", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "using spd:facts-spd" in done.stderr
    assert "adds up to the model's own logits" in done.stdout
    assert "Germany" in done.stdout
    assert [*tmp_path.iterdir()] == []


SHORT = FACTS | {"prompt": ("the capital of France is",), "layers": "5"}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"queries": "40"}, UsageError, r"sample 0 has \d tokens: query 40 was asked for"),
        ({"samples": "3"}, UsageError, "sample 3 was asked for, but there are 1"),
        ({"layers": "11"}, UsageError, "layer 11 was asked for, but there are 8"),
        ({"pairs": ("8:0",)}, UsageError, "the queries of layer 5 have no component 8"),
        ({"pairs": ("exact:0",)}, UsageError, "the queries of layer 5 have no component exact"),
        ({"mode": "binary"}, UsageError, "binary mode needs causal importances"),
        ({"decomp": "svd:0"}, UsageError, "svd:0"),
        ({"decomp": "svdd:3"}, UsageError, "svdd:3"),
        ({"decomp": "spd:nowhere"}, UsageError, "nowhere"),
        ({"init": "nowhere"}, ModelError, "there is no model at 'nowhere'"),
        ({"init": "demo://2048"}, UsageError, "reads no texts"),
        ({"init": None}, UsageError, "name the model with --init"),
        ({"device": "cuda:99"}, DeviceError, "cuda"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_is_refused(options, error, said, tmp_path):
    with pytest.raises(error, match=said):
        qk_contrib(QkContribConfig(**{"device": "cpu", "files": False} | SHORT | options))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pairs": ("3",)}, "expected query part : key part"),
        ({"pairs": ("a:3",)}, "expected query part : key part"),
        ({"queries": "some"}, "found 'some'"),
        ({"offsets": "2-8", "mode": "static"}, "expected one range from 0"),
        ({"offsets": "0-8"}, "no effect without --mode static"),
        ({"gauge": "raw"}, "no effect without --mode binary"),
        ({"ci_threshold": -1.0, "mode": "binary"}, "greater than or equal to 0"),
        ({"mode": "static", "prompt": ("a",)}, "reads none"),
        ({"mode": "static", "queries": "all"}, "reads none"),
        ({"mode": "binary", "rank": "attn"}, "leaves out"),
        ({"mode": "static", "rank": "attn"}, "leaves out"),
        ({"alive": 0.1}, "no effect without --mode static"),
        ({"pairs": ("1:1",), "top_n": 3}, "give one of them"),
        ({"output": "a.png"}, "ending in .json or .csv"),
        ({"export": "a.pt"}, "ending in .safetensors"),
        ({"decomp": "svd", "target": "x"}, "--target is for --decomp spd"),
        ({"decomp": "svd", "layout": "x@V@U"}, "--layout is for --decomp file"),
        ({"decomp": "spd:x", "target": "x", "init": "y"}, "give one"),
        ({"top_n": 0}, "greater than 0"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, dict) else "",
)
def test_options_that_contradict_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        QkContribConfig(**options)


def test_a_layer_that_is_not_decomposed_is_refused(tmp_path):
    factors = tmp_path / "factors.safetensors"
    run(tmp_path, **SHORT, export=factors)
    options = SHORT | {"decomp": f"file:{factors}", "layers": "4"}
    with pytest.raises(UsageError, match=r"neither the Q nor the K of layer 4; it has layers 5"):
        run(tmp_path, **options)


def test_factors_of_other_modules_or_models_are_refused(tmp_path):
    V, U = np.ones((48, 2), np.float32), np.ones((2, 48), np.float32)
    path = tmp_path / "factors.safetensors"
    broken = {"model.layers.5.self_attn.q_proj.V": np.full((48, 2), np.nan, np.float32)}
    for tensors in (
        {"h.5.q.V": V, "h.5.q.U": U},
        broken | {"model.layers.5.self_attn.q_proj.U": U},
    ):
        save_file(tensors, path)
        with pytest.raises(ActcliError, match=r"factors\.safetensors|h\.5\.q|q_proj"):
            run(tmp_path, **SHORT | {"decomp": f"file:{path}"})


def test_a_run_without_weights_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "final_config.yaml").write_text("{}\n")
    with pytest.raises(ModelError, match="run"):
        run(tmp_path, decomp=f"spd:{folder}", prompt=("a",))


def test_a_layer_of_which_only_values_are_decomposed_is_refused(tmp_path):
    path = tmp_path / "values.safetensors"
    name = "model.layers.0.self_attn.v_proj"
    save_file(
        {f"{name}.V": np.ones((128, 2), np.float32), f"{name}.U": np.ones((2, 64), np.float32)},
        path,
    )
    config = {"init": "demo://facts", "decomp": f"file:{path}", "files": False, "device": "cpu"}
    with pytest.raises(UsageError, match=r"neither (the )?Q nor (the )?K"):
        qk_contrib(QkContribConfig(prompt=("Rome is",), quiet=True, **config))
