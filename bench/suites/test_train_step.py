"""One forward and backward with gradients of input and weights, over implementation, experts, top-k and capacity."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case, Direction
from bench.suites.workbench import Workbench

DIRECTION: Direction = "train"


def test_train_step(case: Case, workbench: Workbench, benchmark: BenchmarkFixture) -> None:
    """Output and every gradient right by the float64 truth, then timed."""
    workbench.measure(case, benchmark)
