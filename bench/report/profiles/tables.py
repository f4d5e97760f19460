"""Tables of profiles as plain cells: stages and kinds of work side by side, operators, and tensors at the peak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.profiles.cases import Profiled
from bench.report.profiles.operators import KINDS, Group, grouped, seconds_by_kind
from bench.report.style import TIMES, TO
from bench.report.tables import Cell
from bench.store.profiles import StageTime
from bench.units import bytes_, latency, rate

MAX_OPERATORS = 12
MAX_SHAPES = 2


@dataclass(frozen=True)
class PivotTable:
    """Implementations as columns; `num_totals` rows at the foot speak of the whole call."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    num_totals: int


@dataclass(frozen=True)
class OperatorTable:
    """The longest operators of one case: a row of texts each, and how many are left out."""

    impl: str
    rows: Sequence[Sequence[str]]
    num_left_out: int
    rest: str


@dataclass(frozen=True)
class LargeTensors:
    """The largest tensors at the peak of one case: size, shape, number format, what for, and what made it."""

    impl: str
    rows: Sequence[tuple[str, str, str, str, str]]


def stage_table(group: Sequence[Profiled]) -> PivotTable:
    """Time and share of every stage, with its idle time and launches, then the whole and the profiler's slowdown."""
    names = dict.fromkeys((part.phase, part.stage) for case in group for part in case.profile.stages)
    ordered = sorted(names, key=lambda name: name[0] != "forward")
    rows = []
    for phase, stage in ordered:
        cells = []
        for case in group:
            found = [part for part in case.profile.stages if (part.phase, part.stage) == (phase, stage)]
            cells.append(_stage_cell(case, found[0]) if found else Cell(TO, kind="none"))
        if any(cell.kind != "none" for cell in cells):
            rows.append((stage if phase == "forward" else f"{stage}, backward", cells))
    rows.append(("a call that nobody watches", [Cell(latency(case.profile.plain_s)) for case in group]))
    rows.append(
        (
            "profiled over plain",
            [Cell(f"{1 / case.scale:.2f}{TIMES}", "disturbed" if case.disturbed else "") for case in group],
        )
    )
    return PivotTable([case.impl for case in group], rows, num_totals=2)


def _stage_cell(case: Profiled, part: StageTime) -> Cell:
    if not (part.seconds or part.launches):
        return Cell(TO, kind="none")
    seconds = case.seconds(part)
    details = [f"{part.launches:,} launches", f"{latency(case.scale * part.idle_s)} idle"]
    if part.device_s is not None:
        details.insert(0, f"host {latency(case.scale * part.host_s)}")
    share = seconds / case.profile.plain_s if case.profile.plain_s else 0.0
    return Cell(f"{latency(seconds)} · {_percent(share)}", " · ".join(details))


def kind_table(group: Sequence[Profiled]) -> PivotTable:
    """Share of the call that each kind of work takes."""
    seconds = [seconds_by_kind(case) for case in group]
    rows = [
        (
            kind,
            [
                Cell(_percent(found[kind] / case.profile.plain_s), latency(found[kind]))
                if found[kind] and case.profile.plain_s
                else Cell(TO, kind="none")
                for found, case in zip(seconds, group, strict=True)
            ],
        )
        for kind in KINDS
        if any(found[kind] for found in seconds)
    ]
    return PivotTable([case.impl for case in group], rows, num_totals=0)


def operator_table(case: Profiled) -> OperatorTable:
    """The longest operators by name and stage: calls, time, share, speeds, fraction of the roof, and shapes."""
    groups = grouped(case)
    left = groups[MAX_OPERATORS:]
    rows = [
        [
            group.name,
            group.stage if group.phase == "forward" else f"{group.stage}, backward",
            f"{group.calls:,}",
            latency(group.seconds),
            _percent(group.share),
            rate(group.flops / group.seconds, "FLOP/s") if group.flops and group.seconds else TO,
            rate(group.moved_bytes / group.seconds, "B/s") if group.moved_bytes and group.seconds else TO,
            f"{100 * group.achieved:.0f} %" if group.achieved and group.achieved >= 0.005 else TO,
            _shapes(group),
        ]
        for group in groups[:MAX_OPERATORS]
    ]
    return OperatorTable(case.impl, rows, len(left), latency(sum(group.seconds for group in left)) if left else "")


def _shapes(group: Group) -> str:
    named = [row.shapes for row in group.rows if row.shapes]
    more = len(named) - MAX_SHAPES
    return "; ".join(named[:MAX_SHAPES]) + (f"; and {more} more" if more > 0 else "")


def peak_sentence(case: Profiled) -> str:
    """What is alive at the peak, and what made it; empty without a timeline."""
    timeline = case.profile.timeline
    if timeline is None or not timeline.peak_bytes:
        return ""
    alive: Counter[str] = Counter({name: row[timeline.peak_index] for name, row in timeline.bytes_alive.items()})
    parts = ", ".join(
        f"{_percent(count / timeline.peak_bytes)} {name}"
        for name, count in alive.most_common()
        if count >= 0.01 * timeline.peak_bytes
    )
    return f"{case.impl} peaks at {bytes_(timeline.peak_bytes)} in {timeline.peak_made_by}: {parts}."


def large_tensors(case: Profiled) -> LargeTensors | None:
    """None without a timeline."""
    timeline = case.profile.timeline
    if timeline is None or not timeline.largest:
        return None
    rows = [(bytes_(one.num_bytes), one.shape, one.dtype, one.category, one.made_by) for one in timeline.largest]
    return LargeTensors(case.impl, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"
