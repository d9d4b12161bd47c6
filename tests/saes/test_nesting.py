"""The sizes of nested parts, in all the ways of writing them."""

import pytest
import torch

from actcli.errors import ModelError
from actcli.saes.nesting import prefixes_of


@pytest.mark.parametrize(
    ("sizes", "prefixes"),
    [
        ([10, 20, 40, 80], (10, 20, 40, 80)),
        ([8, 12, 20, 40], (8, 20, 40, 80)),
        ([40, 20, 20], (40, 60, 80)),
        ("[8, 12, 20, 40]", (8, 20, 40, 80)),
        ("(8, 12, 20, 40)", (8, 20, 40, 80)),
        (" [10, 80] ", (10, 80)),
        (torch.tensor([40, 40]), (40, 80)),
        ([80], ()),
        ([], ()),
        (None, ()),
    ],
)
def test_running_sums_or_sizes(sizes, prefixes):
    assert prefixes_of(sizes, n_features=80, where="sizes") == prefixes


NEITHER = [
    [10, 20], [40, 20, 80], [40, 40, 80], [0, 80], [-8, 88], "80 of them", [4.0, 76.0], 80,
    [True, 80], [100, -20],
]  # fmt: skip


@pytest.mark.parametrize("sizes", NEITHER)
def test_neither(sizes):
    with pytest.raises(ModelError, match=r"^sizes are "):
        prefixes_of(sizes, n_features=80, where="sizes")
