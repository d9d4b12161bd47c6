"""One text in one stream, cut out of a table: from the exact numbers of a golden model.

Tensor legend: G layers, B texts, T positions, k largest.
"""

from pathlib import Path

import numpy as np
import pytest

from actcli.render.lens_grid import METRICS, followed, grid_of
from actcli.reports.lens_table import STREAMS, LensTable

GOLDEN = Path(__file__).parents[1] / "data" / "logit-lens"
CONTRAST = 7


def golden(name="llama"):
    return dict(np.load(GOLDEN / name / "expected.npz"))


def golden_table(name="llama", *, stream="resid", first_layer=0):
    """The records of both texts; the second has no target at its end, the first an answer there."""
    stored = golden(name)
    n_layers, n_texts, n_positions = stored["entropy_bits"].shape
    shape = (n_layers, n_texts, n_positions)
    last_T = np.arange(n_positions) == n_positions - 1
    target_GBT = np.broadcast_to(stored["target"], shape).copy()
    target_GBT[:, 1, -1] = -1
    none_GBT = target_GBT < 0
    logits_GBTV = stored["lens_logits"]
    p_GBTV = np.exp(logits_GBTV - np.logaddexp.reduce(logits_GBTV, axis=-1, keepdims=True))
    contrast_GBT = np.where(last_T, p_GBTV[..., CONTRAST], np.nan)
    above_GBT = (p_GBTV > p_GBTV[..., CONTRAST : CONTRAST + 1]).sum(-1)

    def records(values, dtype):
        values = np.moveaxis(np.broadcast_to(values, (*shape, *values.shape[3:])), 0, 1)
        return np.ascontiguousarray(values).reshape(-1, *values.shape[3:]).astype(dtype)

    return LensTable(
        sample=records(np.array([3, 8])[None, :, None], np.int64),
        stream=records(np.full((1, 1, 1), STREAMS.index(stream)), np.int8),
        layer=records(first_layer + np.arange(n_layers)[:, None, None], np.int16),
        pos=records(np.arange(n_positions)[None, None], np.int32),
        token_id=records(stored["input_ids"][None], np.int32),
        target_id=records(target_GBT, np.int32),
        p_target=records(np.where(none_GBT, np.nan, stored["p_target"]), np.float32),
        nll_target_bits=records(np.where(none_GBT, np.nan, stored["nll_target_bits"]), np.float32),
        rank_target=records(np.where(none_GBT, 0, stored["rank_target"]), np.int32),
        resid_norm=records(np.linalg.norm(stored["resid"], axis=-1), np.float32),
        p_contrast=records(contrast_GBT, np.float32),
        rank_contrast=records(np.where(last_T, 1 + above_GBT, 0), np.int32),
        top1_agree=records(stored["top1_agree"], np.bool_),
        top_ids=records(stored["topk_ids"], np.int32),
        top_p=records(stored["topk_p"], np.float32),
        **{
            name: records(stored[name], np.float32)
            for name in (
                "entropy_bits",
                "kl_to_final_bits",
                "kl_from_final_bits",
                "js_bits",
                "cos_to_final",
                "rest_mass",
            )
        },
    )


def two_streams():
    return LensTable.concat(
        [golden_table("gpt2", stream="attn", first_layer=1), golden_table()]
    ).ordered()


def test_a_grid_has_the_numbers_of_its_text_and_stream():
    stored, table = golden(), two_streams()
    for text, sample in enumerate((3, 8)):
        grid = grid_of(table, sample=sample)
        assert (grid.layers, grid.positions) == (tuple(range(5)), tuple(range(9)))
        assert grid.places == ("embed", "post:0", "post:1", "post:2", "post:3")
        np.testing.assert_allclose(
            grid.metric("entropy"), stored["entropy_bits"][:, text], rtol=1e-6
        )
        np.testing.assert_allclose(
            grid.metric("probability"), stored["topk_p"][:, text, :, 0], rtol=1e-6
        )
        assert grid.token_ids == stored["input_ids"][text].tolist()
    other = grid_of(table, sample=8, stream="attn")
    assert other.places == ("attn:0", "attn:1", "attn:2", "attn:3", "attn:4")
    np.testing.assert_allclose(
        other.metric("kl"), golden("gpt2")["kl_to_final_bits"][:, 1], rtol=1e-6, atol=1e-12
    )


def test_there_is_no_rank_where_there_is_no_target():
    rank_GT = grid_of(golden_table(), sample=8).metric("rank")
    assert np.isnan(rank_GT[:, -1]).all()
    np.testing.assert_array_equal(rank_GT[:, :-1], golden()["rank_target"][:, 1, :-1])


def test_the_last_positions_are_kept():
    grid = grid_of(golden_table(), sample=3, most_positions=4)
    assert grid.positions == (5, 6, 7, 8)
    np.testing.assert_array_equal(
        grid.metric("rank"), golden()["rank_target"][:, 0, 5:].astype(np.float32)
    )


def test_a_token_is_followed_where_it_is_listed():
    stored = golden()
    grid = grid_of(golden_table(), sample=3)
    seen = 0
    for token in range(0, 101, 4):
        found = followed(grid, token)
        for layer in range(5):
            for pos in range(9):
                ids = stored["topk_ids"][layer, 0, pos].tolist()
                if token in ids:
                    expected = stored["topk_p"][layer, 0, pos, ids.index(token)]
                    assert found[layer, pos] == np.float32(expected)
                    seen += 1
                else:
                    assert np.isnan(found[layer, pos])
    assert seen > 20


def test_layers_must_have_the_same_positions():
    table = golden_table()
    with pytest.raises(AssertionError, match="other positions"):
        grid_of(table.select(np.arange(len(table)) != 4), sample=3)


def test_every_metric_is_a_column_of_the_grid():
    grid = grid_of(golden_table(), sample=3)
    for name in METRICS:
        assert grid.metric(name).shape == (5, 9)
