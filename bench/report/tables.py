"""The tables of a report as plain cells: who is how far behind on each workload, every row, and what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report.slices import evenly
from bench.report.style import BYTE_UNITS, ENERGY_UNITS, RATE_UNITS, TIME_UNITS, TIMES, TO, scale_for
from bench.report.view import AXES, FIELD_WORDS, WORKLOAD_FIELDS, View, capacity_value, describe, field_value
from bench.units import three_digits

MAX_HEAT_ROWS = 60
MAX_ROWS = 2000
MAX_EXPONENTS = 60
_FLOP_UNITS = ((1e6, "M"), (1e9, "G"), (1e12, "T"))


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, the interval beside it, and for the heat table its shade (0 to 1) and kind.

    Attributes:
        kind: ``won``, ``open`` (a contender where nobody won), ``behind``, ``base`` (a baseline) or ``none``.
        title: what a status means, for a cell without a number.
    """

    text: str
    interval: str = ""
    shade: float = 0.0
    kind: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Column names, and rows of cells with a name of their own."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    num_left_out: int = 0


@dataclass(frozen=True)
class Column:
    """A column of the table of all rows: the frame's name, words with the unit, and whether it is a number."""

    name: str
    words: str
    numeric: bool


def heat_table(view: View) -> Table:
    """Workload by implementation: time over that of the fastest, with the paired interval and who won."""
    ids = evenly(list(view.workloads), MAX_HEAT_ROWS)
    rows_of = view.frame[view.frame["workload_id"].isin(ids)]
    status = {
        (row.workload_id, row.impl): (str(row.status), str(row.reason))
        for row in rows_of[["workload_id", "impl", "status", "reason"]].itertuples()
    }
    body = []
    for workload_id in ids:
        fastest = view.fastest(workload_id)
        winner = view.winners.get(workload_id)
        contenders = {view.names[name] for name in winner.contenders} if winner else set()
        cells = []
        for impl, look in view.looks.items():
            ratio = view.ratio(workload_id, impl, fastest) if fastest else None
            if impl == fastest and winner is not None:
                cells.append(Cell("1", kind="won" if winner.impl else "open"))
            elif ratio is None:
                word, reason = status.get((workload_id, impl), ("", ""))
                cells.append(Cell(word.replace("_", " ").removeprefix("ok") or TO, kind="none", title=reason))
            else:
                kind = "base" if look.baseline else "open" if impl in contenders else "behind"
                shade = 0.0 if look.baseline else min(1.0, max(0.0, math.log2(ratio.value) / 3))
                cells.append(Cell(_ratio(ratio.value), _span(ratio.low, ratio.high, _ratio), shade, kind))
        body.append((view.workloads[workload_id], cells))
    return Table(list(view.looks), body, len(view.workloads) - len(ids))


def row_table(views: Sequence[View], limit: int = MAX_ROWS) -> tuple[list[Column], list[list[Cell]]]:
    """The columns that say something, and every row or the first ``limit`` of them, timed ones first."""
    fields = pd.concat([view.frame.drop_duplicates("workload_id")[list(WORKLOAD_FIELDS)] for view in views])
    varying = [name for name in WORKLOAD_FIELDS if fields[name].nunique(dropna=False) > 1]
    frame = _first_rows(views, limit)
    text = ["run"] * (len(views) > 1) + ["impl", *(name for name in varying if name not in AXES), "status"]
    columns = [Column(name, name.replace("impl", "implementation"), numeric=False) for name in text]
    getters: list[Callable[[dict[Hashable, Any]], Cell]] = [_text(name) for name in text]
    for name in (axis for axis in AXES if axis in varying):
        columns.append(Column(name, FIELD_WORDS[name], numeric=True))
        getters.append(_axis(name))
    time = scale_for(frame["latency_s"].dropna(), TIME_UNITS)
    peak = scale_for(frame["peak_memory_bytes"].dropna(), BYTE_UNITS)
    weights = scale_for(frame["weight_bytes"].dropna(), BYTE_UNITS)
    rate = scale_for(frame["tokens_per_s"].dropna(), RATE_UNITS)
    flops = scale_for(frame["flops_per_s"].dropna(), _FLOP_UNITS)
    joules = scale_for(frame["energy_j_per_token"].dropna(), ENERGY_UNITS)
    for name, words, size, bounds in (
        ("latency_s", f"latency, {time[1]}", time[0], ("latency_low_s", "latency_high_s")),
        ("ratio", f"{TIMES} the fastest", 1.0, ("ratio_low", "ratio_high")),
        ("tokens_per_s", f"{rate[1]}tokens/s", rate[0], None),
        ("flops_per_s", f"{flops[1]}FLOP/s", flops[0], None),
        ("roofline_fraction", "% of ceiling", 0.01, None),
        ("peak_memory_bytes", f"peak, {peak[1]}", peak[0], None),
        ("predicted_peak_bytes", f"analytic peak, {peak[1]}", peak[0], None),
        ("os_peak_bytes", f"system's peak, {peak[1]}", peak[0], None),
        ("weight_bytes", f"weights, {weights[1]}", weights[0], None),
        ("energy_j_per_token", f"{joules[1]}/token", joules[0], None),
        ("energy_above_idle_j_per_token", f"{joules[1]}/token above idle", joules[0], None),
        ("power_w", "power, W", 1.0, None),
        ("dropped_fraction", "dropped, %", 0.01, None),
        ("load_imbalance", "imbalance", 1.0, None),
        ("first_call_s", f"first call, {time[1]}", time[0], None),
        ("prepare_s", f"prepare, {time[1]}", time[0], None),
        ("relative_error", "relative error", 0.0, None),
    ):
        if frame[name].notna().any():
            columns.append(Column(name, words, numeric=True))
            getters.append(_number(name, size, bounds))
    if (frame["reason"] != "").any():
        columns.append(Column("reason", "reason", numeric=False))
        getters.append(_text("reason"))
    return columns, [[get(row) for get in getters] for row in frame.to_dict("records")]


def _first_rows(views: Sequence[View], limit: int) -> pd.DataFrame:
    """The rows of all runs with the run's name, or the first ``limit`` of them, timed ones first."""
    frames = [view.frame.assign(run=view.analysis.info.run_id) for view in views]
    if sum(map(len, frames)) > limit:
        timed = [frame["latency_s"].notna() for frame in frames]
        frames = [frame[mask].head(limit) for frame, mask in zip(frames, timed, strict=True)] + [
            frame[~mask].head(limit) for frame, mask in zip(frames, timed, strict=True)
        ]
    return pd.concat(frames, ignore_index=True).head(limit)


def exponent_rows(view: View) -> list[list[Cell]]:
    """Fitted exponents: quantity and axis, implementation, slice, fitted, at the far end, theory and why."""
    found = sorted(view.analysis.exponents, key=lambda one: one.theory is None)  # those that can be held to something
    rows = []
    for one in found[:MAX_EXPONENTS]:
        spans = [
            _span(part.low, part.high, "{:.2f}".format) if part.low < part.high < math.inf else ""
            for part in (one.fitted, one.at_end)
        ]
        fixed = {
            name: capacity_value(value) if name == "capacity_factor" else value for name, value in one.fixed.items()
        }
        rows.append(
            [
                Cell(f"{one.quantity} in {FIELD_WORDS.get(one.axis, one.axis)}"),
                Cell(view.names[one.impl]),
                Cell(describe(fixed) or TO),
                Cell(f"{one.fitted.value:.2f}", spans[0]),
                Cell(f"{one.at_end.value:.2f}", spans[1]),
                Cell(TO if one.theory is None else f"{one.theory:g}"),
                Cell(one.why),
            ]
        )
    return rows


def failures(view: View) -> list[tuple[str, str, str, int]]:
    """What did not run: implementation, status, reason, number of cases; the most frequent first."""
    failed = view.frame[view.frame["status"] != "ok"]
    counted = Counter(zip(failed["impl"], failed["status"].astype(str), failed["reason"], strict=True))
    return [(*what, count) for what, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]


def _ratio(value: float) -> str:
    return f"{value:.3f}" if 0.9 < value < 1.1 else three_digits(value)


def _span(low: float, high: float, show: Callable[[float], str]) -> str:
    return f"{show(low)}{TO}{show(high)}"


def _text(name: str) -> Callable[[dict[Hashable, Any]], Cell]:
    return lambda row: Cell(str(row[name]))


def _axis(name: str) -> Callable[[dict[Hashable, Any]], Cell]:
    return lambda row: Cell(field_value(name, row[name]))


def _number(name: str, size: float, bounds: tuple[str, str] | None) -> Callable[[dict[Hashable, Any]], Cell]:
    """A number in its column's unit; a size of 0 stands for scientific notation."""

    def cell(row: dict[Hashable, Any]) -> Cell:
        value = float(row[name])
        if math.isnan(value):
            return Cell("")
        if size == 0:
            return Cell(f"{value:.1e}")
        interval = ""
        if bounds is not None:
            low, high = (float(row[bound]) / size for bound in bounds)
            interval = "" if math.isnan(low) else _span(low, high, three_digits)
        return Cell(three_digits(value / size), interval)

    return cell
