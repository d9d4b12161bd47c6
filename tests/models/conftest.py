"""The models of `architectures`, saved and loaded once per run of the tests."""

import functools

import pytest

from actcli.models import load_model
from actcli.models.source import LoadOptions
from tests.models import architectures


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Name of an architecture to the folder of its model."""
    root = tmp_path_factory.mktemp("architectures")
    return functools.cache(lambda name: architectures.save(name, root / name))


@pytest.fixture(scope="session")
def adapter_of(folder_of):
    """Name of an architecture, and dtype, to its adapter."""
    return functools.cache(
        lambda name, dtype=None: load_model(folder_of(name), options=LoadOptions(dtype=dtype))
    )
