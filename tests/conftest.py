"""Tests marked `gpu` skip by themselves where there is no CUDA device; no example of a law fails for being slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("moebench", deadline=None)
settings.load_profile("moebench")

TESTS = Path(__file__).parent
REAL = (
    "bench/comparing/test_interleaving",
    "bench/conformance/test_entry_points",
    "bench/measure/",
    "bench/profiling/",
    "bench/report/test_report_in_browser",
    "bench/runner/",
    "bench/suites/",
    "bench/test_cli",
    "bench/test_profile_command",
    "bench/test_selftest",
)
"""Where real programs are started, timed and killed, on machines that others use: what fails is tried once more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).as_posix().startswith(REAL):
            item.add_marker(pytest.mark.flaky(reruns=1))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here, so that collecting the other tests stays quick

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))
