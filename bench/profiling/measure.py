"""Profiles one case: time by stage and operator, operations and bytes by operator, and memory over time.

Three passes, so that no observer sees another: plain calls by the clock, calls under torch's profiler for time, and one
call under the ledger for everything that is counted. Times are never taken from the last.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import attrgetter

from torch.autograd.profiler import profile
from torch.autograd.profiler_util import FunctionEvent

from bench.profiling.ledger import OPERATOR, Entry, Ledger
from bench.profiling.spans import FUSED, OTHER, WAITING, Kernel, Place, Span, calls_of, kernels_of, saw_device
from bench.profiling.stages import MICROSECOND, Breakdown, Shapes, Sums, break_down, middle_half
from bench.profiling.step import Step
from bench.profiling.timeline import make_timeline
from bench.store.profiles import OperatorTime, Profile, StageTime, Timeline
from impls.stages import STAGES, recording

MIN_CALLS = 4
MAX_CALLS = 24
MAX_OPERATORS = 60
STAGE_ORDER = (*STAGES, FUSED, "gradients", WAITING, OTHER)
_UNKNOWN = Place("forward", OTHER)


@dataclass(frozen=True)
class Counted:
    """What the ledger's pass knows.

    Attributes:
        ledger: entries and allocations.
        places: of every entry.
        durations_s: of every entry, under the ledger.
    """

    ledger: Ledger
    places: Sequence[Place]
    durations_s: Sequence[float]

    def names(self) -> dict[str, frozenset[str]]:
        """By phase, the operators that Python's side of torch sees as one piece."""
        found: dict[str, set[str]] = {"forward": set(), "backward": set()}
        for entry, place in zip(self.ledger.entries, self.places, strict=True):
            found[place.phase].add(entry.name)
        return {phase: frozenset(names) for phase, names in found.items()}


@dataclass(frozen=True)
class Profiled:
    """The profile, and what a trace is written from.

    Attributes:
        profile: for the record.
        call: the spans of one usual call: that of median duration.
        kernels: what the device did for it, where it works on its own.
        counted: the ledger's pass; None of a compiled case.
    """

    profile: Profile
    call: Sequence[Span]
    kernels: Sequence[Kernel]
    counted: Counted | None


def profile_step(step: Step, existing_bytes: Mapping[str, int], time_budget_s: float) -> Profiled:
    """Profile calls of ``step``.

    Args:
        step: what to call.
        existing_bytes: memory that is there before a call: ``weights`` and ``input``.
        time_budget_s: plain and profiled calls stop when half of this each is spent, after at least four.
    """
    counted = count(step)  # first: what happens only once happens here
    profiled, plain_s = watch(step, time_budget_s, recording(nvtx=step.nvtx))
    on_device = step.profiled_device is not None and saw_device(profiled)
    calls = middle_half(calls_of(profiled))
    sums = break_down(calls, counted.names(), on_device=on_device)
    stages_s = {place: one.host_s / sums.num_calls for place, one in sums.stages.items()}
    timeline = make_timeline(counted.ledger, counted.places, counted.durations_s, stages_s, existing_bytes)
    record = describe(sums, counted, plain_s, timeline, on_device=on_device)
    usual = calls[len(calls) // 2]
    return Profiled(record, usual, kernels_of(profiled, usual), counted)


def watch(step: Step, time_budget_s: float, marks: AbstractContextManager[None]) -> tuple[profile, float]:
    """Calls under torch's profiler with ``marks`` open, and the median time of a call that nobody watches."""
    before_s = _plain(step, time_budget_s / 4)
    num_calls = min(MAX_CALLS, max(MIN_CALLS, int(time_budget_s / 2 / statistics.median(before_s))))
    with marks, profile(use_device=step.profiled_device, record_shapes=True) as profiled:
        for _ in range(num_calls):
            step()
    # before and after, so that a machine that changes its speed changes it for both
    return profiled, statistics.median([*before_s, *_plain(step, time_budget_s / 4)])


def _plain(step: Step, time_budget_s: float) -> list[float]:
    """Times of calls that nobody watches."""
    times_s: list[float] = []
    while len(times_s) < MIN_CALLS or (sum(times_s) < time_budget_s and len(times_s) < MAX_CALLS):
        begin_s = time.perf_counter()
        step()
        times_s.append(time.perf_counter() - begin_s)
    return times_s


def count(step: Step) -> Counted:
    """One call under the ledger."""
    ledger = Ledger()
    with recording(), profile() as profiled, ledger:
        step(ledger.end_forward, ledger.close)
    (call,) = calls_of(profiled)
    found = {
        watched.name: (span.place, watched.cpu_time_total * MICROSECOND)
        for span in call
        if not span.is_range
        for watched in _watched(span.event)
    }
    known = [found.get(f"{OPERATOR}{number}", (_UNKNOWN, 0.0)) for number in range(len(ledger.entries))]
    return Counted(ledger, [place for place, _ in known], [duration_s for _, duration_s in known])


def _watched(event: FunctionEvent) -> Iterator[FunctionEvent]:
    if event.name.startswith(OPERATOR):
        yield event
        return
    for child in event.cpu_children:
        yield from _watched(child)


def describe(
    sums: Breakdown, counted: Counted | None, plain_s: float, timeline: Timeline | None, *, on_device: bool
) -> Profile:
    """The record; without the ledger's pass no operations and no bytes are known."""
    calls = sums.num_calls
    stages, experts = _work(counted)
    rows = _operators(sums, counted, on_device=on_device)
    folded = rows[MAX_OPERATORS:]
    return Profile(
        calls=calls,
        plain_s=plain_s,
        whole_s=sums.whole_s / calls,
        stages=[_stage(place, sums.stages[place], calls, stages[place], on_device) for place in _ordered(sums.stages)],
        experts=[_stage(p, sums.experts[p], calls, experts[p], on_device) for p in _ordered(sums.experts)],
        operators=sorted([*rows[:MAX_OPERATORS], *_folded(folded)], key=attrgetter("seconds"), reverse=True),
        left_out=(len(folded), sum(row.seconds for row in folded)),
        timeline=timeline,
    )


def _ordered(places: Mapping[Place, Sums]) -> list[Place]:
    order = {name: number for number, name in enumerate(STAGE_ORDER)}
    return sorted(places, key=lambda p: (p.phase != "forward", order.get(p.stage, len(order)), p.stage, p.expert or 0))


_Work = tuple[int, int] | tuple[None, None]


def _work(counted: Counted | None) -> tuple[Mapping[Place, _Work], Mapping[Place, _Work]]:
    """Operations and bytes by place, without and with the expert."""
    if counted is None:
        unknown: defaultdict[Place, _Work] = defaultdict(lambda: (None, None))
        return unknown, unknown
    stages: defaultdict[Place, tuple[int, int]] = defaultdict(lambda: (0, 0))
    experts: defaultdict[Place, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for entry, place in zip(counted.ledger.entries, counted.places, strict=True):
        for into, key in ((stages, Place(place.phase, place.stage)), (experts, place)):
            flops, moved = into[key]
            into[key] = flops + (entry.flops or 0), moved + entry.moved_bytes
    return stages, experts


def _stage(place: Place, sums: Sums, calls: int, work: _Work, on_device: bool) -> StageTime:
    return StageTime(
        phase=place.phase,
        stage=place.stage,
        expert=place.expert,
        host_s=sums.host_s / calls,
        idle_s=sums.idle_s / calls,
        device_s=sums.device_s / calls if on_device else None,
        launches=round(sums.launches / calls),
        flops=work[0],
        moved_bytes=work[1],
    )


def _operators(sums: Breakdown, counted: Counted | None, *, on_device: bool) -> list[OperatorTime]:
    costs: defaultdict[tuple[Place, str, Shapes], list[Entry]] = defaultdict(list)
    for entry, place in zip(counted.ledger.entries, counted.places, strict=True) if counted else ():
        shapes = tuple(shape for shape in entry.shapes if shape)
        costs[Place(place.phase, place.stage), entry.name, shapes].append(entry)
    rows = []
    for (place, name, shapes), found in sums.operators.items():
        entries = costs[place, name, shapes]
        products = [entry.flops for entry in entries if entry.flops is not None]
        rows.append(
            OperatorTime(
                phase=place.phase,
                stage=place.stage,
                name=name,
                shapes=", ".join("x".join(map(str, shape)) for shape in shapes),
                calls=round(found.calls / sums.num_calls),
                host_s=found.host_s / sums.num_calls,
                device_s=found.device_s / sums.num_calls if on_device else None,
                flops=sum(products) if products else None,
                moved_bytes=sum(entry.moved_bytes for entry in entries) if entries else None,
                existing_bytes=sum(entry.existing_bytes for entry in entries) if entries else None,
            )
        )
    return sorted(rows, key=attrgetter("seconds"), reverse=True)


def _folded(rows: Sequence[OperatorTime]) -> list[OperatorTime]:
    """One row for all shapes of an operator in a stage: a loop over experts has a shape for each load."""
    groups: defaultdict[tuple[str, str, str], list[OperatorTime]] = defaultdict(list)
    for row in rows:
        groups[row.phase, row.stage, row.name].append(row)
    return [
        group[0].model_copy(
            update={
                "shapes": f"{len(group)} other shapes" if len(group) > 1 else group[0].shapes,
                "calls": sum(row.calls for row in group),
                "host_s": sum(row.host_s for row in group),
                "device_s": None if group[0].device_s is None else sum(row.device_s or 0.0 for row in group),
                "flops": _sum(row.flops for row in group),
                "moved_bytes": _sum(row.moved_bytes for row in group),
                "existing_bytes": _sum(row.existing_bytes for row in group),
            }
        )
        for group in groups.values()
    ]


def _sum(values: Iterable[int | None]) -> int | None:
    """Of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
