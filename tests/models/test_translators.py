"""Translators of both formats, written here, against the arithmetic written out.

Tensor legend: as in `actcli.models.translators`.
"""

import json

import pytest
import torch

from actcli.errors import ModelError
from actcli.models.translators import load_translators

WIDTH, BLOCKS = 6, 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_tuned(folder, *, layers=BLOCKS, width=WIDTH, bias=True, config=None, **more):
    tensors = {f"{layer}.weight": random(width, width, seed=layer) for layer in range(layers)}
    if bias:
        tensors |= {f"{layer}.bias": random(width, seed=50 + layer) for layer in range(layers)}
    folder.mkdir(exist_ok=True)
    stated = {"d_model": width, "num_hidden_layers": layers, "bias": bias}
    (folder / "config.json").write_text(json.dumps(stated if config is None else config))
    torch.save(tensors | more, folder / "params.pt")
    return tensors


def write_jacobian(file, *, nested, dtype=torch.float16, blocks=(0, 2)):
    matrices = {block: random(WIDTH, WIDTH, seed=block).to(dtype) for block in blocks}
    named = {"J": matrices} if nested else {f"J.{block}": each for block, each in matrices.items()}
    stated = {"n_prompts": 10, "source_layers": list(blocks), "d_model": WIDTH}
    torch.save(named | stated, file)
    return matrices


def load(path):
    return load_translators(path, d_model=WIDTH, n_layers=BLOCKS)


@pytest.mark.parametrize("bias", [True, False])
def test_a_tuned_lens_acts_on_what_enters_a_block(tmp_path, bias):
    tensors = write_tuned(tmp_path / "lens", bias=bias)
    translators = load(tmp_path / "lens")
    assert translators.kind == "tuned lens"
    assert translators.missing == (BLOCKS,)
    resid_RH = random(4, WIDTH, seed=9)
    for layer in range(BLOCKS):
        matrix = tensors[f"{layer}.weight"]
        for row, found in zip(resid_RH, translators.apply(layer, resid_RH), strict=True):
            wanted = row + (matrix * row).sum(dim=1) + (tensors[f"{layer}.bias"] if bias else 0)
            assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
def test_a_jacobian_lens_acts_on_what_a_block_gives(tmp_path, nested):
    matrices = write_jacobian(tmp_path / "lens.pt", nested=nested)
    translators = load(tmp_path / "lens.pt")
    assert translators.kind == "J-lens"
    assert [layer for layer in range(BLOCKS + 1) if translators.has(layer)] == [1, 3]
    assert translators.missing == (0, 2)
    resid_RH = random(4, WIDTH, seed=9)
    for block, matrix in matrices.items():
        for row, found in zip(resid_RH, translators.apply(block + 1, resid_RH), strict=True):
            assert torch.allclose(found, (matrix.float() * row).sum(dim=1), atol=1e-5)


def test_a_layer_without_a_translator_is_read_as_it_is(tmp_path):
    write_tuned(tmp_path / "lens")
    resid_RH = random(4, WIDTH).bfloat16()
    found = load(tmp_path / "lens").to(torch.device("cpu")).apply(BLOCKS, resid_RH)
    assert found.dtype == torch.float32
    assert torch.equal(found, resid_RH.float())


def test_what_is_translated_stays_as_it_was(tmp_path):
    write_tuned(tmp_path / "lens")
    resid_RH = random(4, WIDTH)
    load(tmp_path / "lens").apply(0, resid_RH)
    assert torch.equal(resid_RH, random(4, WIDTH))


def saved(content):
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: write_tuned(path, width=WIDTH + 1), r"shape \[7, 7\] at layer 0.*width 6"),
        (lambda path: write_tuned(path, layers=4), "model of 4 blocks, this one has 3"),
        (lambda path: write_tuned(path, layers=5, config={}), "translator for layer 4"),
        (lambda path: write_tuned(path, extra=torch.ones(1)), "has the key 'extra'"),
        (
            lambda path: write_tuned(path, layers=0, config={}, **{"1.bias": torch.ones(WIDTH)}),
            "a bias and no weight for layer 1",
        ),
        (lambda path: write_tuned(path, layers=0, config={}), "has no translators"),
        (
            lambda path: write_tuned(path, **{"0.bias": torch.full((WIDTH,), torch.nan)}),
            "NaN or infinite values at layer 0",
        ),
        (lambda path: path.mkdir(), "no tuned lens: config.json cannot be read"),
        (lambda path: write_tuned(path, config=[]), "no JSON object"),
        (lambda path: None, "cannot read the translators .*No such file"),
        (lambda path: path.write_bytes(b"not a file of torch"), "cannot read the translators"),
        (saved([1, 2]), "holds list"),
        (saved({"K": torch.ones(2, 2)}), "no J-lens.*found the keys K"),
        (saved({"J": {0: 3}}), "no J-lens"),
        (saved({"J": {3: torch.eye(WIDTH)}}), "translator for layer 4"),
        (saved({"J": {1: torch.eye(WIDTH + 1)}}), "shape .7, 7. at layer 2"),
    ],
)
def test_refuses(tmp_path, write, said):
    path = tmp_path / "lens"
    write(path)
    with pytest.raises(ModelError, match=said):
        load(path)


class Mischief:
    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_file_does_not_run(tmp_path, capsys):
    torch.save({"J": Mischief()}, tmp_path / "lens.pt")
    with pytest.raises(ModelError, match="cannot read the translators"):
        load(tmp_path / "lens.pt")
    assert "code ran" not in capsys.readouterr().out
