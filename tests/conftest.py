"""Tests marked `gpu` skip by themselves where there is no CUDA device; no example of a law fails for being slow."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("moebench", deadline=None)
settings.load_profile("moebench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here, so that collecting the other tests stays quick

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))
