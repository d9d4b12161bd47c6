"""What all tests share: one thread, no colours, and marks for what a machine may lack."""

import os
import shutil

import pytest
from hypothesis import settings

# Before torch comes in, here and in subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
for name in [*os.environ]:
    if name in {"COLUMNS", "FORCE_COLOR", "NO_COLOR"} or name.startswith("ACTCLI_"):
        del os.environ[name]

settings.register_profile("actcli", deadline=None, print_blob=True)
settings.load_profile("actcli")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _skip(items, "cuda", "no NVIDIA GPU here", _has_cuda)
    _skip(items, "browser", "no web browser here", lambda: any(map(shutil.which, _BROWSERS)))


def _skip(items, marker, reason, is_there):
    marked = [item for item in items if item.get_closest_marker(marker)]
    if marked and not is_there():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
