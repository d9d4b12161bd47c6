"""The shipped model and data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actcli import demo
from actcli.demo.game2048 import move_all, unpack
from actcli.demo.measure2048 import agreement, gamma_ranges
from actcli.demo.steps2048 import legal_of
from actcli.demo.teacher2048 import judge
from actcli.models.encoder2048 import Encoder2048, EncoderConfig

ASSETS = Path(demo.__file__).parent / "assets"

# As the format has them, written out once more: 48 bytes a row, fields aligned.
ROW_FIELDS = {
    "run_id": ("<u4", 0),
    "step_index": ("<u4", 4),
    "board": ("<u8", 8),
    "board_eval": ("<i4", 16),
    "tile_65536_mask": ("<u2", 20),
    "move_dir": ("|u1", 22),
    "valuation_type": ("|u1", 23),
    "ev_legal": ("|u1", 24),
    "max_rank": ("|u1", 25),
    "seed": ("<u4", 28),
    "branch_evs": ("|V16", 32),
}


@pytest.fixture(scope="module")
def rows():
    return np.load(ASSETS / "2048-steps" / "steps.npy", mmap_mode="r")


@pytest.fixture(scope="module")
def model():
    config = json.loads((ASSETS / "2048" / "config.json").read_text())
    encoder = Encoder2048(EncoderConfig.model_validate(config))
    encoder.load_state_dict(load_file(ASSETS / "2048" / "model.safetensors"), strict=True)
    return encoder.eval()


def test_rows_have_the_format(rows):
    fields = {name: (kind.str, offset) for name, (kind, offset) in rows.dtype.fields.items()}
    assert fields == ROW_FIELDS
    assert rows.dtype.itemsize == 48
    assert rows.dtype["branch_evs"].subdtype == (np.dtype("<f4"), (4,))
    assert len(rows) >= 8192


def test_rows_are_consistent(rows):
    assert (move_all(rows["board"]).legal == legal_of(rows)).all()
    assert legal_of(rows)[np.arange(len(rows)), rows["move_dir"]].all()
    assert (unpack(rows["board"]).max(axis=1) == rows["max_rank"]).all()
    assert not rows["tile_65536_mask"].any()


def test_rows_hold_what_the_teacher_thinks(rows):
    some = rows[::257]
    opinion = judge(some["board"])
    assert (opinion.best == some["move_dir"]).all()
    assert opinion.values == pytest.approx(some["branch_evs"], rel=1e-6)


def test_the_model_agrees_with_the_teacher(model, rows):
    found = agreement(model, rows=rows[:: len(rows) // 1024])
    assert found.share > 0.74  # 77.7 % on all rows
    assert found.share > found.fixed_order_share + 0.2


def test_the_gammas_have_moved(model):
    for gammas in gamma_ranges(model):
        assert gammas.n_exactly_one == 0
        assert gammas.highest - gammas.lowest > 0.1


def test_the_model_is_of_the_kind_that_it_is_to_show(model):
    config = model.config
    assert config.n_kv_heads < config.num_attention_heads
    assert all(weight.dtype == torch.float32 for weight in model.state_dict().values())


def test_the_files_are_small():
    files = [file for name in ("2048", "2048-steps") for file in (ASSETS / name).iterdir()]
    sizes = {file.name: file.stat().st_size for file in files}
    assert set(sizes) == {"config.json", "model.safetensors", "README.md", "steps.npy"}
    assert sum(sizes.values()) < 6_000_000


def test_the_card_gives_the_scores_and_the_seed():
    card = (ASSETS / "2048" / "README.md").read_text()
    for words in ("Seed", "Mean score", "random legal moves", "the teacher", "Wall time"):
        assert words in card
