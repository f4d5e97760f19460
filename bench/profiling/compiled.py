"""Profiles a compiled case: its kernels by time, and its stages as far as its kernels can be told apart.

Marks are not part of a compiled graph, so stages are found by :mod:`bench.profiling.origins`. What a fused kernel
reads, computes and keeps is not seen by anything that watches operators: operations, bytes and memory over time are not
known. The layer is compiled once more for this, with kernels that name themselves to the profiler.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from torch.autograd.profiler import profile
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType

from bench.profiling.calls import kernels_in, watch
from bench.profiling.measure import Profiled, describe
from bench.profiling.origins import Origins, kept_origins
from bench.profiling.spans import (
    ACCUMULATE,
    FUSED,
    GRADIENTS,
    NODE,
    OTHER,
    WAITING,
    Phase,
    Place,
    Span,
    is_operator,
    saw_device,
    tree,
)
from bench.profiling.stages import MICROSECOND, Breakdown, OperatorSums, Shapes, Sums, quicker_half, shapes_of
from bench.profiling.step import BACKWARD, CALL, DROP, FORWARD, WAIT, Step

_GRAPH = re.compile(r"graph_(\d+)_inductor_wrapper_call")
_KERNEL = re.compile(r"graph_\d+_")
_UNSEEN = "compiled kernels run no operators that could be watched"
GAPS = {
    "work": f"{_UNSEEN}: operations and bytes of a compiled call are not counted, so it has no place on a roof",
    "timeline": f"{_UNSEEN}, and take memory past torch's dispatcher; the peak of a call is in the table of cases",
    "stages": f"kernels of several stages, or of none that is known, are `{FUSED}`; time between kernels is `{OTHER}`",
}


def profile_compiled(step: Step, time_budget_s: float) -> Profiled:
    """Profile calls of a step whose layer is compiled by its first call.

    Args:
        step: what to call.
        time_budget_s: of the calls; compiling comes on top.
    """
    with kept_origins() as origins:
        step()
    # marks would have the layer compiled again
    watched = watch(step, time_budget_s, nullcontext, shapes=True)
    on_device = step.profiled_device is not None and any(map(saw_device, watched.profiles))
    calls = quicker_half([call for profiled in watched.profiles for call in _calls(profiled, origins)])
    sums = add_up(calls, on_device=on_device)
    record = describe(sums, None, watched, None, {}, on_device=on_device)
    record = record.model_copy(update={"gaps": record.gaps | GAPS})
    usual = calls[len(calls) // 2]
    return Profiled(record, usual, kernels_in(watched.profiles, usual), None)


def _calls(profiled: profile, origins: Origins) -> Iterator[list[Span]]:
    """The spans of every marked call, in order."""
    assert profiled.function_events is not None, "the profiler has ended"
    events = [event for event in profiled.function_events if event.device_type == DeviceType.CPU]
    nodes = [event for event in events if event.name.startswith(NODE)]
    for event in events:
        if event.name == CALL:
            yield list(_spans(event, nodes, origins))


def _spans(call: FunctionEvent, nodes: Sequence[FunctionEvent], origins: Origins) -> Iterator[Span]:
    """The call, what it contains, and its kernels with their stages."""
    yield Span(call, Place("forward", OTHER), is_range=True)
    for child in call.cpu_children:
        if child.name == FORWARD:
            yield from _inside(child, "forward", origins)
        elif child.name == BACKWARD:
            yield Span(child, Place("backward", OTHER), is_range=True)
        elif child.name == WAIT:
            yield Span(child, Place("forward", WAITING), is_range=True)
        elif child.name == DROP:
            yield Span(child, Place("backward", GRADIENTS), is_range=True)
    for node in nodes:  # by time: on a device they run in a thread of their own
        if call.time_range.start <= node.time_range.start < call.time_range.end:
            yield from _inside(node, "backward", origins)


def _inside(event: FunctionEvent, phase: Phase, origins: Origins) -> Iterator[Span]:
    if event.name == NODE + ACCUMULATE:
        yield Span(event, Place(phase, GRADIENTS), is_range=False)
        return
    if "::" in event.name and not event.name.startswith(NODE):  # Python's own, where the graph is broken
        yield Span(event, Place(phase, OTHER), is_range=False)
        return
    yield Span(event, Place(phase, OTHER), is_range=True)
    graph = _GRAPH.fullmatch(event.name)
    if graph is None:
        for child in filter(is_operator, event.cpu_children):
            yield from _inside(child, phase, origins)
        return
    children = [child for child in event.cpu_children if is_operator(child)]
    names = [kernel_name(child) for child in children]
    stages = origins.stages_of_call(int(graph[1]), names, backward=phase == "backward")
    for child, stage in zip(children, stages, strict=True):
        yield Span(child, Place(phase, stage), is_range=False)


def kernel_name(event: FunctionEvent) -> str:
    """The kernel's or operator's name without its graph's number."""
    return _KERNEL.sub("", event.name.removeprefix(NODE), count=1)


def add_up(calls: Sequence[Sequence[Span]], *, on_device: bool) -> Breakdown:
    """Sums over calls: a stage's time is that of its kernels, and time between kernels is idle time of ``other``."""
    stages: defaultdict[Place, Sums] = defaultdict(Sums)
    operators: defaultdict[tuple[Place, str, Shapes], OperatorSums] = defaultdict(OperatorSums)
    whole_s = 0.0
    for spans in calls:
        left_us: dict[Phase, float] = {"forward": spans[0].event.cpu_time_total}
        for backward in (span.event for span in spans if span.event.name == BACKWARD):
            left_us = {"forward": left_us["forward"] - backward.cpu_time_total, "backward": backward.cpu_time_total}
        whole_s += sum(left_us.values()) * MICROSECOND
        for event, place in ((span.event, span.place) for span in spans if not span.is_range):
            left_us[place.phase] -= event.cpu_time_total
            row = operators[place, kernel_name(event), shapes_of(event)]
            row.calls += 1
            for into in (row, stages[place]):
                into.host_s += event.cpu_time_total * MICROSECOND
                into.device_s += event.device_time_total * MICROSECOND
            stages[place].launches += sum(len(one.kernels) for one in tree(event)) if on_device else 1
        for event, place in ((span.event, span.place) for span in spans if span.event.name in (WAIT, DROP)):
            left_us["forward"] -= event.cpu_time_total
            stages[place].host_s += event.cpu_time_total * MICROSECOND
            stages[place].idle_s += event.cpu_time_total * MICROSECOND if event.name == DROP else 0.0
        for phase, microseconds in left_us.items():
            stages[Place(phase, OTHER)].host_s += microseconds * MICROSECOND
            stages[Place(phase, OTHER)].idle_s += max(0.0, microseconds) * MICROSECOND
    return Breakdown(len(calls), whole_s, stages, {}, operators)
