"""One forward call in inference mode, over implementation, experts, top-k and capacity."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case, Direction
from bench.suites.workbench import Workbench

DIRECTION: Direction = "forward"


def test_forward(case: Case, workbench: Workbench, benchmark: BenchmarkFixture) -> None:
    """Right by the float64 truth, then timed."""
    workbench.measure(case, benchmark)
