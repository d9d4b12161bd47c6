"""Nested dictionaries: the sizes of their parts, however a file writes them."""

import ast
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from actcli.errors import ModelError


def prefixes_of(sizes: Any, *, n_features: int, where: str) -> tuple[int, ...]:
    """Return how many features each nested part has, rising, the last one all of them.

    Files give the sizes of the groups or their running sums, as a list, a tensor, or a string in
    JSON or Python: if the last is the number of features they are running sums, else the sizes
    must add up to it.

    Args:
        sizes: what the file says; None where it says nothing.
        n_features: of the dictionary.
        where: the file and field, for messages.

    Returns:
        () for a dictionary that is not nested.

    Raises:
        ModelError: they are neither.
    """
    found = _numbers(sizes, where)
    rising = found if found and found[-1] == n_features else list(accumulate(found))
    if not found or rising == [n_features]:
        return ()
    is_rising = rising[0] > 0 and all(first < second for first, second in pairwise(rising))
    if rising[-1] != n_features or not is_rising:
        raise ModelError(
            f"{where} are {found}, which neither rise to the {n_features} features of the "
            f"dictionary nor add up to them"
        )
    return tuple(rising)


def _numbers(sizes: Any, where: str) -> list[int]:
    if isinstance(sizes, str):
        sizes = _parsed(sizes, where)
    if isinstance(sizes, Tensor):
        sizes = sizes.flatten().tolist()
    if sizes is None:
        return []
    if isinstance(sizes, Sequence) and all(type(each) is int for each in sizes):
        return list(sizes)
    raise ModelError(f"{where} are {sizes!r}; expected whole numbers")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError) as error:
        raise ModelError(f"{where} are {text!r}; expected a list of whole numbers") from error
