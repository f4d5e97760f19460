"""Analyses for the report's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from analysis_maker import make_analysis

from bench.analysis.model import Analysis


@pytest.fixture(scope="session")
def analysis_factory() -> Callable[..., Analysis]:
    """The builder itself, for tests that need a special analysis."""
    return make_analysis


@pytest.fixture
def analysis() -> Analysis:
    """A run like `quick`, finished, without a power meter."""
    return make_analysis()
