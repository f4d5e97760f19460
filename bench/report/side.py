"""Several runs side by side: what each found, and the latency of the cases that they have in common. No verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.slices import evenly
from bench.report.style import TIME_UNITS, TO, scale_for
from bench.report.tables import Cell
from bench.report.view import View
from bench.units import three_digits

MAX_ROWS = 80


@dataclass(frozen=True)
class SideBySide:
    """The cases that at least two runs timed.

    Attributes:
        runs: a name for each column.
        unit: of the latencies.
        rows: workload, implementation, a cell a run.
        num_left_out: common cases that are not among the rows.
    """

    runs: list[str]
    unit: str
    rows: list[tuple[str, str, list[Cell]]]
    num_left_out: int


def side_by_side(views: Sequence[View]) -> SideBySide | None:
    """None for one run."""
    if len(views) < 2:
        return None
    columns = ["case_id", "impl", "workload_id", "latency_s", "latency_low_s", "latency_high_s"]
    timed = [view.timed[columns].set_index("case_id") for view in views]
    counts: dict[str, int] = {}
    for of_run in timed:
        for case_id in of_run.index:
            counts[case_id] = counts.get(case_id, 0) + 1
    common = [case_id for case_id, count in counts.items() if count > 1]
    shown = evenly(common, MAX_ROWS)
    values = [value for of_run in timed for value in of_run.loc[of_run.index.intersection(shown), "latency_s"]]
    size, unit = scale_for(values, TIME_UNITS)
    rows = []
    for case_id in shown:
        first = next(i for i, of_run in enumerate(timed) if case_id in of_run.index)
        impl, workload_id = timed[first].loc[case_id, ["impl", "workload_id"]]
        words = views[first].workloads[workload_id]
        cells = []
        for of_run in timed:
            if case_id not in of_run.index:
                cells.append(Cell(TO, kind="none"))
                continue
            value, low, high = (float(of_run.loc[case_id, name]) / size for name in columns[3:])
            cells.append(Cell(three_digits(value), f"{three_digits(low)}{TO}{three_digits(high)}"))
        rows.append((words, impl, cells))
    names = [f"{view.analysis.info.machine}, {view.analysis.info.run_id}" for view in views]
    return SideBySide(names, unit, rows, len(common) - len(shown))
