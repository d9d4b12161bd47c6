"""Files of words and of their activations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actcli.errors import SamplesError, UsageError
from actcli.samples.spelling import read_spelling, read_words

X = torch.arange(12.0).reshape(4, 3)
LETTERS = torch.tensor([0, 25, 3, 3])


def test_safetensors_and_npz_are_read(tmp_path: Path) -> None:
    weight, bias = torch.ones(26, 3), torch.zeros(26)
    save_file(
        {"x": X.bfloat16(), "letters": LETTERS.int(), "probe_weight": weight, "probe_bias": bias},
        tmp_path / "s.safetensors",
    )
    np.savez(tmp_path / "s.npz", x=X.numpy().astype(">f8"), letters=LETTERS.float().numpy())
    full = read_spelling(tmp_path / "s.safetensors")
    bare = read_spelling(str(tmp_path / "s.npz"))
    for each in (full, bare):
        assert torch.equal(each.x_WI, X)
        assert torch.equal(each.letters_W, LETTERS)
        assert (len(each), each.width) == (4, 3)
    assert full.probe_weight_AI is not None
    assert full.probe_bias_A is not None
    assert bare.probe_weight_AI is None


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"letters": LETTERS}, "no 'x'"),
        ({"x": X}, "no 'letters'"),
        ({"x": X[0], "letters": LETTERS}, r"x is \[3\], expected \(words, width\)"),
        ({"x": X[:0], "letters": LETTERS[:0]}, r"x is \[0, 3\]"),
        ({"x": X, "letters": LETTERS[:3]}, r"letters is \[3\], expected \[4\]"),
        ({"x": X, "letters": LETTERS, "probe_weight": X + 1}, r"expected \[26, 3\]"),
        ({"x": X, "letters": LETTERS, "probe_bias": torch.zeros(26)}, "no probe_weight"),
        ({"x": X, "letters": LETTERS + 1}, "letters holds 26, expected whole numbers"),
        ({"x": X, "letters": LETTERS - 0.5}, "letters holds -0.5"),
        ({"x": X / 0, "letters": LETTERS}, "x holds values that are not finite"),
    ],
)
def test_damaged_files(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    save_file(tensors, tmp_path / "s.safetensors")
    with pytest.raises(SamplesError, match=said):
        read_spelling(tmp_path / "s.safetensors")


@pytest.mark.parametrize("name", ["s.safetensors", "s.npz"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not this")
    with pytest.raises(SamplesError, match="cannot read"):
        read_spelling(tmp_path / name)
    with pytest.raises(SamplesError, match="cannot read"):
        read_spelling(tmp_path / "none" / name)


def test_words_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a model"):
        read_spelling(tmp_path / "words.txt")


def test_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffapple\n\n  Zebra \napple\n", encoding="utf-8")
    assert read_words(path) == ["apple", "Zebra"]
    path.write_text("apple\n2nd\n")
    with pytest.raises(SamplesError, match="'2nd' does not begin with a letter"):
        read_words(path)
    path.write_text("\n")
    with pytest.raises(SamplesError, match="no word"):
        read_words(path)
    with pytest.raises(SamplesError, match="cannot read"):
        read_words(tmp_path / "none.txt")
