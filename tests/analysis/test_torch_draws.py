import numpy as np
import pytest
import torch

from actcli.analysis.torch_draws import draw_like_torch


@pytest.mark.parametrize("n", [1, 7, 18432, 2**28 - 1, 2**28, 2**28 + 3, 2**32 - 1, 2**33 + 11])
@pytest.mark.parametrize("seed", [0, 3, 2**31, 2**32 + 5])
def test_the_same_as_torch(n, seed):
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randint(0, n, (1000,), generator=generator).numpy()
    np.testing.assert_array_equal(draw_like_torch(n, count=1000, seed=seed), expected, strict=True)
