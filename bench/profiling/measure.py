"""Profiles one case: time by stage and operator, operations and bytes by operator, and memory over time.

Four passes, so that no observer sees another: plain calls by the clock and calls under torch's profiler for time, in
turns (:mod:`bench.profiling.calls`); one call under the ledger for everything that is counted, from which no time is
taken; and on a CPU one call whose matrix products are repeated with what they multiply in the cache.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch.autograd.profiler import profile
from torch.autograd.profiler_util import FunctionEvent

from bench.measure.cpu import CpuDevice
from bench.measure.pages import page_cost
from bench.profiling.calls import Watched, kernels_in, watch
from bench.profiling.ledger import OPERATOR, Entry, Ledger
from bench.profiling.replay import Product, Repeated, Replay
from bench.profiling.spans import FUSED, GRADIENTS, OTHER, WAITING, Kernel, Place, Span, calls_of, saw_device
from bench.profiling.stages import MICROSECOND, Breakdown, Shapes, Sums, break_down, pieces, quicker_half
from bench.profiling.step import DROP, Step
from bench.profiling.timeline import make_timeline
from bench.store.profiles import OperatorTime, Profile, StageTime, Timeline
from impls.stages import STAGES, recording

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
        call: the spans of one usual call: of those that count, the middle one by duration.
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
        time_budget_s: of the plain and the profiled calls together, of which some are made in any case.
    """
    step()  # what happens only once happens here
    counted = count(step)
    watched = watch(step, time_budget_s, lambda: recording(nvtx=step.nvtx))
    on_device = step.profiled_device is not None and any(map(saw_device, watched.profiles))
    calls = quicker_half([call for profiled in watched.profiles for call in calls_of(profiled)])
    give_shapes(calls, counted)
    sums = break_down(calls, counted.names(), on_device=on_device)
    stages_s = {place: one.host_s / sums.num_calls for place, one in sums.stages.items()}
    dropped_s = sum(s.event.cpu_time_total for call in calls for s in call if s.event.name == DROP) * MICROSECOND
    if dropped_s:  # it comes after all operators, and moves no moment of theirs
        stages_s[Place("backward", GRADIENTS)] -= dropped_s / sums.num_calls
    timeline = make_timeline(counted.ledger, counted.places, counted.durations_s, stages_s, existing_bytes)
    record = describe(sums, counted, watched, timeline, _near(step), on_device=on_device)
    usual = calls[len(calls) // 2]
    return Profiled(record, usual, kernels_in(watched.profiles, usual), counted)


def give_shapes(calls: Iterable[Sequence[Span]], counted: Counted) -> None:
    """Write into the events of calls what shapes their operators had in the ledger's call, in the same order."""
    names = counted.names()
    known: defaultdict[tuple[Place, str], list[Shapes]] = defaultdict(list)
    for entry, place in zip(counted.ledger.entries, counted.places, strict=True):
        known[place, entry.name].append(entry.shapes)
    of_stages = {(Place(place.phase, place.stage), name) for place, name in known}
    for call in calls:
        events: defaultdict[tuple[Place, str], list[FunctionEvent]] = defaultdict(list)
        for span in call:
            for event in () if span.is_range else pieces(span.event, names[span.place.phase]):
                stage = Place(span.place.phase, span.place.stage)
                events[span.place, _under_the_ledger(stage, event.name, of_stages)].append(event)
        for key, same in events.items():
            if len(same) == len(known[key]):  # else nobody knows which is which
                for event, shapes in zip(same, known[key], strict=True):
                    # torch's annotation says tuple[int, ...]; what it gives is a list of shapes
                    event.input_shapes = list(map(list, shapes))  # type: ignore[assignment]


def _under_the_ledger(stage: Place, name: str, known: Container[tuple[Place, str]]) -> str:
    """What an operator was called there: autograd adds gradients in place, but to a new tensor while one watches."""
    return name if (stage, name) in known else name.removesuffix("_")


def _near(step: Step) -> Mapping[Product, Repeated]:
    """The call's matrix products with what they multiply in the cache; nothing where they are a device's."""
    if not isinstance(step.device, CpuDevice):
        return {}
    replay = Replay(step.device.llc_total_bytes // 4, page_cost())
    with replay:
        step()
    return replay.found


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
    sums: Breakdown,
    counted: Counted | None,
    watched: Watched,
    timeline: Timeline | None,
    near: Mapping[Product, Repeated],
    *,
    on_device: bool,
) -> Profile:
    """The record; without the ledger's pass no operations and no bytes are known."""
    calls = sums.num_calls
    stages, experts = _work(counted)
    rows = _operators(sums, counted, near, on_device=on_device)
    folded = rows[MAX_OPERATORS:]
    return Profile(
        calls=calls,
        plain_s=watched.plain_s,
        whole_s=sums.whole_s / calls,
        events=round(sums.events / calls),
        pages=watched.pages,
        stages=[_stage(place, sums.stages[place], calls, stages[place], on_device) for place in _ordered(sums.stages)],
        experts=[_stage(p, sums.experts[p], calls, experts[p], on_device) for p in _ordered(sums.experts)],
        operators=sorted([*rows[:MAX_OPERATORS], *_folded(folded)], key=attrgetter("seconds"), reverse=True),
        left_out=(len(folded), sum(row.seconds for row in folded)),
        timeline=timeline,
        gaps={"pages": watched.no_pages} if watched.no_pages else {},
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


def _operators(
    sums: Breakdown, counted: Counted | None, near: Mapping[Product, Repeated], *, on_device: bool
) -> list[OperatorTime]:
    costs: defaultdict[tuple[Place, str, Shapes], list[Entry]] = defaultdict(list)
    for entry, place in zip(counted.ledger.entries, counted.places, strict=True) if counted else ():
        shapes = tuple(shape for shape in entry.shapes if shape)
        costs[Place(place.phase, place.stage), entry.name, shapes].append(entry)
    known = {(place, name) for place, name, _ in costs}
    keys = {(place, name, s): (place, _under_the_ledger(place, name, known), s) for place, name, s in sums.operators}
    all_calls = Counter[tuple[Place, str, Shapes]]()
    for key, found in sums.operators.items():
        all_calls[keys[key]] += found.calls
    rows = []
    for (place, name, shapes), found in sums.operators.items():
        same = keys[place, name, shapes]
        work = _work_of(costs[same], found.calls / all_calls[same], in_place=name != same[1])
        repeated, calls = near.get((name, shapes)), found.calls / sums.num_calls
        rows.append(
            OperatorTime(
                phase=place.phase,
                stage=place.stage,
                name=name,
                shapes=", ".join("x".join(map(str, shape)) for shape in shapes),
                calls=round(found.calls / sums.num_calls),
                host_s=found.host_s / sums.num_calls,
                device_s=found.device_s / sums.num_calls if on_device else None,
                near_s=None if repeated is None else calls * repeated.near_s,
                follows_s=None if repeated is None else calls * repeated.follows_s,
                events=round(found.events / sums.num_calls),
                **work,
            )
        )
    return sorted(rows, key=attrgetter("seconds"), reverse=True)


def _work_of(entries: Sequence[Entry], part: float, *, in_place: bool) -> dict[str, int | None]:
    """What is counted in ``part`` of these entries, which have the same shapes; in place, nothing is allocated."""
    if not entries:
        return {}
    flops, faults = _sum(entry.flops for entry in entries), _sum(entry.faults for entry in entries)
    made = 0.0 if in_place else part
    return {
        "flops": None if flops is None else round(part * flops),
        "moved_bytes": round(part * sum(entry.moved_bytes for entry in entries)),
        "existing_bytes": round(part * sum(entry.existing_bytes for entry in entries)),
        "allocated_bytes": round(made * sum(entry.allocated_bytes for entry in entries)),
        "first_touches": None if faults is None else round(made * faults),
    }


def _folded(rows: Sequence[OperatorTime]) -> list[OperatorTime]:
    """One row for all shapes of an operator in a stage: a loop over experts has a shape for each load."""
    groups: defaultdict[tuple[str, str, str], list[OperatorTime]] = defaultdict(list)
    for row in rows:
        groups[row.phase, row.stage, row.name].append(row)
    return [
        group[0].model_copy(
            update={
                "shapes": f"{len(group)} other shapes" if len(group) > 1 else group[0].shapes,
                "folded": len(group) > 1,
                "calls": sum(row.calls for row in group),
                "host_s": sum(row.host_s for row in group),
                "device_s": None if group[0].device_s is None else sum(row.device_s or 0.0 for row in group),
                "flops": _sum(row.flops for row in group),
                "moved_bytes": _sum(row.moved_bytes for row in group),
                "existing_bytes": _sum(row.existing_bytes for row in group),
                "allocated_bytes": _sum(row.allocated_bytes for row in group),
                "near_s": _all(row.near_s for row in group),
                "follows_s": _all(row.follows_s for row in group),
                "first_touches": _sum(row.first_touches for row in group),
                "events": sum(row.events for row in group),
            }
        )
        for group in groups.values()
    ]


def tally(step: Step) -> Sequence[Entry]:
    """What the operators of a call do, without their places."""
    ledger = Ledger()
    with ledger:
        step(ledger.end_forward, ledger.close)
    return ledger.entries


def _all(values: Iterable[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _sum(values: Iterable[int | None]) -> int | None:
    """Of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
