"""Analyses and reports for the tests; pictures take most of a report's time, so they are drawn where they matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from analysis_maker import Report, make_analysis, with_compiled
from profile_maker import with_profiles

from bench.analysis.model import Analysis
from bench.report import write_report
from bench.report.figures.axes import axis_title
from bench.report.page import AxisSection, Pictures
from bench.report.profiles.section import make_section
from bench.report.slices import shown_axes
from bench.report.view import View

NONE: dict[str, None] = {
    field.name: None for field in dataclasses.fields(Pictures) if field.name not in ("axes", "tradeoffs", "every")
}


@pytest.fixture(scope="session")
def analysis_factory() -> Callable[..., Analysis]:
    """The builder itself, for tests that need a special analysis."""
    return make_analysis


@pytest.fixture
def analysis() -> Analysis:
    """A run like `quick`, finished, without a power meter."""
    return make_analysis()


@pytest.fixture(scope="session")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One report with everything drawn: every outcome, compiled rows, profiles and traces. Nobody may change it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "traces").mkdir()
    (folder / "traces" / "loop.trace.json.gz").write_bytes(b"a trace")
    plain = make_analysis(experts=(8, 128), top_ks=(2, 8), capacities=("none", 1.0))
    shown = with_profiles(with_compiled(plain), folder, where="num_experts == 8 and capacity_factor == 'none'")
    return Report(shown, write_report([shown], tmp_path_factory.mktemp("report")))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, for tests of their words."""
    monkeypatch.setattr("bench.report.writing.draw", _undrawn)


@pytest.fixture
def only_profiles_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with the pictures of their profiles alone."""

    def draw(view: View, prefix: str) -> Pictures:
        return dataclasses.replace(_undrawn(view, prefix), profile=make_section(view, prefix))

    monkeypatch.setattr("bench.report.writing.draw", draw)


def _undrawn(view: View, _prefix: str) -> Pictures:
    axes = [
        AxisSection(axis, axis_title(axis), reason or "it was not drawn", [])
        for axis, reason in shown_axes(view.timed).items()
    ]
    return Pictures(axes=axes, tradeoffs=[], **NONE)
