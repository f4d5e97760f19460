"""Compiled layers against their uncompiled selves: what compiling bought, what it cost, and what stood in its way."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from bench.analysis.model import Comparison
from bench.cases import uncompiled
from bench.report.slices import evenly
from bench.report.style import TIMES, TO
from bench.report.tables import Cell
from bench.report.view import View, without_paths
from bench.units import duration, three_digits

MAX_ROWS = 40
COLUMNS = (
    "implementation", "workload", "time over uncompiled", "verdict", "compile time", "pays after", "graph breaks",
    "compiled again: other tokens", "compiled again: other sizes",
)  # fmt: skip


@dataclass(frozen=True)
class CompiledTable:
    """The table, and for every implementation the lines of its code that break the graph."""

    columns: tuple[str, ...]
    rows: list[list[Cell]]
    reasons: list[tuple[str, list[str]]]
    num_left_out: int


def compiled_table(view: View) -> CompiledTable | None:
    """One row a compiled case that was timed; None where nothing was compiled."""
    found = view.timed[view.timed["compile"] != "none"]
    if found.empty:
        return None
    known = view.timed[["workload_id", "impl", "latency_s"]].to_dict("records")
    latency_s = {(row["workload_id"], row["impl"]): float(row["latency_s"]) for row in known}
    records = found.to_dict("records")
    reasons: dict[str, dict[str, None]] = {}
    for record in records:
        if record["graph_break_reasons"]:
            told = without_paths(str(record["graph_break_reasons"])).split(" | ")
            reasons.setdefault(str(record["impl"]), {}).update(dict.fromkeys(told))
    shown = evenly(records, MAX_ROWS)
    return CompiledTable(
        COLUMNS,
        [_row(view, record, latency_s) for record in shown],
        [(impl, list(told)) for impl, told in reasons.items()],
        len(records) - len(shown),
    )


def _row(view: View, record: dict[Hashable, Any], latency_s: dict[tuple[Any, Any], float]) -> list[Cell]:
    impl, workload_id = str(record["impl"]), str(record["workload_id"])
    base = uncompiled(impl)
    before_s, after_s = latency_s.get((workload_id, base)), float(record["latency_s"])
    ratio = view.ratio(workload_id, impl, base)
    bounds = f"{three_digits(ratio.low)}{TO}{three_digits(ratio.high)}" if ratio and ratio.high < math.inf else ""
    return [
        Cell(impl),
        Cell(view.workloads[workload_id]),
        Cell(f"{three_digits(ratio.value)}{TIMES}" if ratio else TO, bounds),
        Cell(_verdict(view, workload_id, impl, base)),
        Cell(duration(record["compile_s"])),
        Cell(_pays_after(float(record["compile_s"]), before_s, after_s)),
        *(Cell(_count(record[name])) for name in ("graph_breaks", "recompiles_same_shape", "recompiles")),
    ]


def _verdict(view: View, workload_id: str, impl: str, base: str) -> str:
    one: Comparison | None = view.comparison(workload_id, impl, base)
    turned = view.comparison(workload_id, base, impl)
    if one is not None:
        return one.verdict.value
    if turned is None:
        return "not compared"
    return {"faster": "slower", "slower": "faster"}.get(turned.verdict.value, turned.verdict.value)


def _pays_after(compile_s: float, before_s: float | None, after_s: float) -> str:
    """Calls after which the time that compiling took is won back."""
    if before_s is None:
        return TO
    return f"{math.ceil(compile_s / (before_s - after_s)):,} calls" if after_s < before_s else "never"


def _count(value: Any) -> str:
    return TO if math.isnan(value) else f"{value:.0f}"
