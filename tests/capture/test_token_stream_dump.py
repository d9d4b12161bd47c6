"""The tokens of a dump that count: against loops over plain arrays."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actcli.capture import token_stream_dump
from actcli.capture.token_rules import TokenRules
from actcli.capture.token_stream import open_dumped_tokens
from actcli.errors import DumpError, UsageError
from actcli.terminal.fields import IntRanges

N, L, T, H, OUT = 7, 3, 9, 6, 4
LENGTHS = [9, 4, 1, 9, 6, 2, 7]
BOS = 1


def tensors(*, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 20, (N, T), generator=generator, dtype=torch.int32)
    ids[:, 0], ids[3, 5] = BOS, BOS
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = -1
    x = torch.randn(N, L, T, H, generator=generator)
    x[4, :, 2] *= 30
    y = torch.randn(N, L, T, OUT, generator=generator)
    single = torch.randn(N, T, H, generator=generator)
    found = {"x": x.to(dtype), "y": y.to(dtype), "single": single.to(dtype)}
    return found | {"token_ids": ids, "mask": (ids >= 0).to(torch.uint8)}


def write(path, content, *, layers=None, positions=None, **more):
    manifest = {"layers": layers, "positions": positions} | more
    metadata = {"manifest": json.dumps({k: v for k, v in manifest.items() if v is not None})}
    save_file({k: v.contiguous() for k, v in content.items()}, path, metadata=metadata)
    return path


@pytest.fixture
def dump(tmp_path):
    return write(tmp_path / "d.safetensors", tensors(), layers=[2, 5, 11])


def read(path, keys, rules=None, *, piece_bytes=None, monkeypatch=None, **options):
    if piece_bytes:
        monkeypatch.setattr(token_stream_dump, "PIECE_BYTES", piece_bytes)
    stream = open_dumped_tokens(path, keys=keys, rules=rules or TokenRules(), **options)
    batches = [
        batch._replace(acts={key: acts.clone() for key, acts in batch.acts.items()})
        for batch in stream.batches()
    ]
    acts = {key: torch.cat([batch.acts[key] for batch in batches]).numpy() for key in keys}
    places = np.concatenate([np.stack([b.samples_N, b.positions_N], 1) for b in batches])
    ids = [b.ids_N for b in batches]
    return stream, acts, places, None if ids[0] is None else np.concatenate(ids), len(batches)


def slow(rules_hold=lambda n, t, length, token: True):
    """The places that count, one by one, from the ids alone."""
    ids = tensors()["token_ids"].numpy()
    return np.array(
        [
            (n, t)
            for n in range(N)
            for t in range(LENGTHS[n])
            if rules_hold(n, t, LENGTHS[n], int(ids[n, t]))
        ]
    )


def test_layers_of_two_tensors_without_padding(dump):
    stream, acts, places, ids, _count = read(dump, ["x.5", "y.-1"])
    content = tensors()
    np.testing.assert_array_equal(places, slow())
    n, t = places.T
    np.testing.assert_array_equal(acts["x.5"], content["x"][n, 1, t].numpy())
    np.testing.assert_array_equal(acts["y.-1"], content["y"][n, 2, t].numpy())
    np.testing.assert_array_equal(ids, content["token_ids"][n, t].numpy())
    assert stream.places == {"x.5": ("x", 5), "y.-1": ("y", 11)}
    assert dict(stream.widths) == {"x.5": H, "y.-1": OUT}
    assert (stream.n_samples, stream.n_tokens) == (N, sum(LENGTHS))
    found = stream.token_set()
    assert (found.n_samples, found.n_tokens, found.n_excluded) == (N, sum(LENGTHS), 0)
    assert found.sha256 == hashlib.sha256(slow().astype("<i8").tobytes()).hexdigest()


def test_a_layer_by_option_and_a_key_without_layers(dump):
    _stream, acts, places, _ids, _count = read(dump, ["x", "single"], layer=2)
    n, t = places.T
    np.testing.assert_array_equal(acts["x"], tensors()["x"][n, 0, t].numpy())
    np.testing.assert_array_equal(acts["single"], tensors()["single"][n, t].numpy())


RULES = {
    "first": (TokenRules(exclude_first=True), lambda n, t, length, token: t > 0),
    "bos": (TokenRules(exclude_first=True, bos_ids=(BOS,)), lambda n, t, length, token: token != 1),
    "ids": (TokenRules(exclude_tokens=(3, 5)), lambda n, t, length, token: token not in (3, 5)),
    "positions": (
        TokenRules(exclude_positions=IntRanges.parse("1-2,-1")),
        lambda n, t, length, token: t not in (1, 2, length - 1),
    ),
    "tuple": (
        TokenRules(exclude_positions=(0, -2)),
        lambda n, t, length, token: t not in (0, length - 2),
    ),
    "mixed": (
        TokenRules(exclude_positions=IntRanges.parse("2--2")),
        lambda n, t, length, token: not 2 <= t <= length - 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules(dump, name):
    rules, hold = RULES[name]
    stream, acts, places, _ids, _count = read(dump, ["x.2"], rules)
    expected = slow(hold)
    np.testing.assert_array_equal(places, expected)
    n, t = expected.T
    np.testing.assert_array_equal(acts["x.2"], tensors()["x"][n, 0, t].numpy())
    found = stream.token_set()
    assert found.n_excluded == sum(LENGTHS) - len(expected)
    assert found.n_samples == len(set(n.tolist()))
    assert len(found.rules) == 1


def test_bos_is_named_in_the_rules(dump):
    by_id, *_rest = read(dump, ["x.2"], TokenRules(exclude_first=True, bos_ids=(BOS,)))
    by_place, *_rest = read(dump, ["x.2"], TokenRules(exclude_first=True))
    assert by_id.token_set().rules == ("without tokens that begin a text (id 1)",)
    assert by_place.token_set().rules == ("without the first token of each sample",)


@pytest.mark.parametrize("piece_bytes", [1, 40, 200, 1080])
@pytest.mark.parametrize(
    "rules",
    [
        TokenRules(exclude_first=True, max_norm_multiple=3.0),
        TokenRules(exclude_first=True, max_norm_multiple=3.0, most_tokens=12),
        TokenRules(most_tokens=11),
    ],
)
def test_the_size_of_pieces_does_not_matter(dump, rules, piece_bytes, monkeypatch):
    monkeypatch.setattr("actcli.capture.token_stream_count.MEDIAN_TOKENS", 10)
    whole = read(dump, ["x.2", "y.5"], rules, normed=["x.2"])
    pieces = read(
        dump,
        ["x.2", "y.5"],
        rules,
        normed=["x.2"],
        piece_bytes=piece_bytes,
        monkeypatch=monkeypatch,
    )
    assert pieces[4] >= whole[4]
    assert pieces[0].token_set() == whole[0].token_set()
    for key in ("x.2", "y.5"):
        np.testing.assert_array_equal(pieces[1][key], whole[1][key])
    np.testing.assert_array_equal(pieces[2], whole[2])


def test_lengths_against_the_median_of_the_first_tokens(dump, monkeypatch):
    monkeypatch.setattr("actcli.capture.token_stream_count.MEDIAN_TOKENS", 10)
    rules = TokenRules(exclude_first=True, max_norm_multiple=1.1)
    stream, _acts, places, _ids, _count = read(dump, ["x.2", "single"], rules)
    candidates = slow(lambda n, t, length, token: t > 0)
    n, t = candidates.T
    keep = np.ones(len(n), bool)
    for values in (tensors()["x"][n, 0, t], tensors()["single"][n, t]):
        lengths = np.sqrt((values.double().numpy() ** 2).sum(1))
        keep &= lengths <= 1.1 * np.median(lengths[:10])
    np.testing.assert_array_equal(places, candidates[keep])
    found = stream.token_set()
    assert found.n_excluded == sum(LENGTHS) - keep.sum()
    assert any("'x.2'" not in rule and "x.2" in rule and "median" in rule for rule in found.rules)


def test_stopping_counts_what_was_left_out_before_the_last_token(dump):
    rules = TokenRules(exclude_first=True, most_tokens=10)
    stream, _acts, places, _ids, _count = read(dump, ["x.2"], rules)
    np.testing.assert_array_equal(places, slow(lambda n, t, length, token: t > 0)[:10])
    last = places[-1]
    n_before = sum(LENGTHS[: last[0]]) + last[1] + 1
    found = stream.token_set()
    assert (found.n_tokens, found.n_excluded) == (10, n_before - 10)
    assert stream.n_tokens == 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_read_as_float32(tmp_path, dtype):
    path = write(tmp_path / "d.safetensors", tensors(dtype=dtype))
    _stream, acts, places, _ids, _count = read(path, ["x.1"])
    n, t = places.T
    expected = tensors(dtype=dtype)["x"][n, 1, t].float().numpy()
    assert acts["x.1"].dtype == np.float32
    np.testing.assert_array_equal(acts["x.1"], expected)


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_other_formats(tmp_path, suffix):
    content = tensors()
    path = tmp_path / f"d.{suffix}"
    if suffix == "npz":
        np.savez(path, **{key: each.numpy() for key, each in content.items()})
    else:
        torch.save(content, path)
    _stream, acts, places, _ids, _count = read(path, ["single"])
    n, t = places.T
    np.testing.assert_array_equal(acts["single"], content["single"][n, t].numpy())


def test_flat_rows_are_blocks_in_place_of_samples(tmp_path):
    x = torch.randn(1000, H)
    path = write(tmp_path / "d.safetensors", {"x": x, "token_ids": torch.arange(1000)})
    stream, acts, places, ids, _count = read(path, ["x"], TokenRules(exclude_tokens=(3,)))
    kept = np.delete(np.arange(1000), 3)
    np.testing.assert_array_equal(acts["x"], x.numpy()[kept])
    np.testing.assert_array_equal(places, np.stack(np.divmod(kept, 15), 1))
    np.testing.assert_array_equal(ids, kept)
    np.testing.assert_array_equal(stream.ids_of(66), np.arange(990, 1000))
    assert "no samples are known" in stream.token_set().rules[0]


def test_flat_rows_with_the_ids_of_samples_are_of_these(tmp_path):
    content = tensors()
    flat = {"x": content["single"].reshape(N * T, H), "token_ids": content["token_ids"]}
    path = write(tmp_path / "d.safetensors", flat)
    stream, acts, places, _ids, _count = read(path, ["x"])
    np.testing.assert_array_equal(places, slow())
    n, t = places.T
    np.testing.assert_array_equal(acts["x"], content["single"][n, t].numpy())
    assert stream.token_set().rules == ()


@pytest.mark.parametrize(
    ("rules", "option"),
    [
        (TokenRules(exclude_first=True), "--exclude-bos"),
        (TokenRules(exclude_first=True, bos_ids=(BOS,)), "--exclude-bos"),
        (TokenRules(exclude_positions=(0,)), "--exclude-positions"),
        (TokenRules(exclude_positions=IntRanges.parse("0-3")), "--exclude-positions"),
    ],
)
def test_rows_without_samples_have_no_positions_to_leave_out(tmp_path, rules, option):
    path = write(tmp_path / "d.safetensors", {"x": torch.ones(64, 4)})
    with pytest.raises(UsageError, match=f"{option} needs to know where samples begin"):
        read(path, ["x"], rules)


def test_rows_without_samples_lose_the_bos_by_its_id(tmp_path):
    ids = torch.tensor([1, 5, 6, 1, 7, 8], dtype=torch.int32)
    path = write(tmp_path / "d.safetensors", {"x": torch.ones(6, 4), "token_ids": ids})
    _stream, _acts, _places, kept, _count = read(
        path, ["x"], TokenRules(exclude_first=True, bos_ids=(BOS,))
    )
    assert list(kept) == [5, 6, 7, 8]


def test_padding_on_the_left_does_not_count_as_positions(tmp_path):
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.uint8)
    x = torch.arange(16.0).view(2, 4, 2)
    path = write(tmp_path / "d.safetensors", {"x": x, "mask": mask})
    _stream, acts, places, _ids, _count = read(path, ["x"], TokenRules(exclude_first=True))
    np.testing.assert_array_equal(places, [[0, 1], [1, 1], [1, 2], [1, 3]])
    np.testing.assert_array_equal(acts["x"], x[[0, 1, 1, 1], [3, 1, 2, 3]].numpy())


def test_a_dump_of_chosen_positions_keeps_their_numbers(tmp_path):
    content, positions = tensors(), [0, 2, -1]
    index = np.array([[p if p >= 0 else length + p for p in positions] for length in LENGTHS])
    there = index < np.array(LENGTHS)[:, None]
    x = np.take_along_axis(content["single"].numpy(), np.minimum(index, T - 1)[..., None], 1)
    held = {"x": torch.from_numpy(x), "token_ids": content["token_ids"]}
    held["mask"] = torch.from_numpy(there.astype(np.uint8))
    path = write(tmp_path / "d.safetensors", held, positions=positions)
    stream, _acts, places, ids, _count = read(path, ["x"], TokenRules(exclude_first=True))
    expected = [
        (n, int(index[n, p])) for n in range(N) for p in range(3) if there[n, p] and index[n, p]
    ]
    np.testing.assert_array_equal(places, expected)
    n, t = places.T
    np.testing.assert_array_equal(ids, content["token_ids"].numpy()[n, t])
    np.testing.assert_array_equal(stream.ids_of(1), content["token_ids"].numpy()[1, :4])


def test_values_that_are_not_finite_are_named(tmp_path):
    content = tensors()
    content["x"][4, 1, 3, 2] = torch.nan
    content["x"][2, 1, 5] = torch.inf  # padding
    path = write(tmp_path / "d.safetensors", content)
    with pytest.raises(DumpError, match=r"'x.1' is nan at sample 4, position 3, dimension 2"):
        read(path, ["x.1"])
    read(path, ["x.1"], TokenRules(exclude_positions=(3,)))
    read(path, ["x.0"])


def test_large_finite_values_are_no_infinity(tmp_path):
    x = torch.full((4, 3, 2), 3e38)
    _stream, acts, *_rest = read(write(tmp_path / "d.safetensors", {"x": x}), ["x"])
    assert np.isfinite(acts["x"]).all()


def refused(tmp_path, content, keys, rules=None, **options):
    path = write(tmp_path / "r.safetensors", content, **options.pop("manifest", {}))
    with pytest.raises((DumpError, UsageError)) as info:
        read(path, keys, rules, **options)
    return str(info.value)


def test_refusals(tmp_path):
    content = tensors()
    assert "say which with --layer" in refused(tmp_path, content, ["x"])
    assert "does not hold layer 3; it holds 0, 1, 2" in refused(tmp_path, content, ["x.3"])
    manifest = {"manifest": {"layers": [2, 5, 11]}}
    assert "does not hold layer 0; it holds 2, 5, 11" in refused(
        tmp_path, content, ["x.0"], **manifest
    )
    assert "did you mean 'single'" in refused(tmp_path, content, ["xsingle"])
    assert "has no layers" in refused(tmp_path, content, ["single.1"])
    assert "expected activations" in refused(tmp_path, content, ["mask"])
    shorter = content | {"single": content["single"][:, :4]}
    assert "x and y must be of the same tokens" in refused(tmp_path, shorter, ["x.1", "single"])
    wrong = content | {"mask": content["mask"][:, :4]}
    assert "does not fit 'x'" in refused(tmp_path, wrong, ["x.1"])
    none = {"x": torch.zeros(0, 4)}
    assert "is empty" in refused(tmp_path, none, ["x"])
    padding = {"x": torch.zeros(1, 4, 2), "token_ids": torch.full((1, 4), -1)}
    assert "holds no token" in refused(tmp_path, padding, ["x"])


def test_rules_that_leave_nothing_or_cannot_be_meant(tmp_path):
    content = tensors()
    every = TokenRules(exclude_positions=IntRanges.parse("0--1"))
    message = refused(tmp_path, content, ["x.1"], every)
    assert "none of the 38 tokens" in message
    assert "without positions 0--1" in message
    assert "runs backwards" in refused(
        tmp_path, content, ["x.1"], TokenRules(exclude_positions=IntRanges.parse("3-1"))
    )
    assert "above 0" in refused(tmp_path, content, ["x.1"], TokenRules(max_norm_multiple=0.0))
    assert "1 or more" in refused(tmp_path, content, ["x.1"], TokenRules(most_tokens=0))
    no_ids = {"x": content["single"]}
    assert "needs the ids" in refused(tmp_path, no_ids, ["x"], TokenRules(exclude_tokens=(3,)))


def test_known_widths(dump):
    stream = open_dumped_tokens(dump, keys=["x.2"], rules=TokenRules())
    assert stream.known_widths() == {"x": H, "y": OUT, "single": H}
