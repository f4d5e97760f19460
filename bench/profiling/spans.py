"""Reads a profile: which stage every operator of a call belongs to, forward and backward.

Forward, a stage is the range that an operator runs in (:mod:`impls.stages`). Backward, nothing runs in a range, but
every node of the graph bears the sequence number of the operator that made it: its work belongs to that operator's
stage. What accumulates gradients into their parameters, and gives them back at the end, is a stage of its own,
``gradients``; so is, on a device that works on its own, the host's wait for it at the end of a call, ``waiting``.

On such a device the profiler also gives every range a second time, as the device saw it, under the same name; and the
calls of the device's library (``cudaLaunchKernel``) as children of operators. Neither is an operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch.autograd.profiler import profile
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType

from bench.profiling.step import BACKWARD, CALL, DROP, FORWARD, WAIT
from impls.stages import PREFIX

Phase = Literal["forward", "backward"]
# What the profiler calls events that are no work of torch's own: calls of the device's library, and its own delays.
LIBRARY = frozenset({"cuda_runtime", "cuda_driver", "overhead"})
LIBRARY_CALL = re.compile("cu(da)?[A-Z]")
NODE = "autograd::engine::evaluate_function: "
ACCUMULATE = "torch::autograd::AccumulateGrad"
OTHER = "other"
GRADIENTS = "gradients"
WAITING = "waiting"
FUSED = "fused"
"""Kernels of compiled code that do the work of several stages, or of none that is known."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a call something ran.

    Attributes:
        phase: ``forward`` or ``backward``.
        stage: one of :data:`impls.stages.STAGES`, ``gradients``, ``waiting``, or ``other`` for what no stage claims.
        expert: number of the expert where the implementation works expert by expert.
    """

    phase: Phase
    stage: str
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """One event of the profile that is directly inside a range or a node of the graph.

    Attributes:
        event: the profiler's event: an operator, or a range whose children have spans of their own.
        place: where it ran.
        is_range: whether it is a range or a node, not an operator.
    """

    event: FunctionEvent
    place: Place
    is_range: bool


def calls_of(profiled: profile) -> list[list[Span]]:
    """The spans of every marked call, in order; a range comes before what is inside it.

    The first span of each list is the call itself.
    """
    assert profiled.function_events is not None, "the profiler has ended"
    events = [event for event in profiled.function_events if event.device_type == DeviceType.CPU]
    calls = [event for event in events if event.name == CALL]
    nodes = [event for event in events if event.name.startswith(NODE)]
    return [list(_spans(call, nodes)) for call in calls]


def _spans(call: FunctionEvent, nodes: list[FunctionEvent]) -> Iterator[Span]:
    makers: dict[int, tuple[float, Place]] = {}
    yield Span(call, Place("forward", OTHER), is_range=True)
    for child in call.cpu_children:
        if child.name == FORWARD:
            yield from _forward(child, Place("forward", OTHER), makers)
        elif child.name == BACKWARD:
            yield Span(child, Place("backward", OTHER), is_range=True)
        elif child.name == WAIT:
            yield Span(child, Place("forward", WAITING), is_range=True)
        elif child.name == DROP:
            yield Span(child, Place("backward", GRADIENTS), is_range=True)
    # Nodes run on a thread of their own where the device is not the CPU: they are found by time, not by parent.
    for node in nodes:
        if call.time_range.start <= node.time_range.start < call.time_range.end:
            yield from _node(node, makers)


def _forward(event: FunctionEvent, place: Place, makers: dict[int, tuple[float, Place]]) -> Iterator[Span]:
    """A range and everything in it; notes who made which node of the graph."""
    yield Span(event, place, is_range=True)
    for child in event.cpu_children:
        if child.name.startswith(PREFIX):
            name, _, expert = child.name.removeprefix(PREFIX).partition("#")
            inside = Place("forward", name, int(expert) if expert else place.expert)
            yield from _forward(child, inside, makers)
        elif is_operator(child):
            _note_makers(child, place, makers)
            yield Span(child, place, is_range=False)


def _note_makers(event: FunctionEvent, place: Place, makers: dict[int, tuple[float, Place]]) -> None:
    """Remember which place made which node.

    An operator reads the number that the next node will get, whether or not it makes one: of all that read a number,
    the last made the node.
    """
    number, start = event.sequence_nr, event.time_range.start
    if number >= 0 and (number not in makers or makers[number][0] <= start):
        makers[number] = (start, place)
    for child in event.cpu_children:
        _note_makers(child, place, makers)


def _node(node: FunctionEvent, makers: dict[int, tuple[float, Place]]) -> Iterator[Span]:
    if node.name == NODE + ACCUMULATE:
        place = Place("backward", GRADIENTS)
    else:
        _, maker = makers.get(node.sequence_nr, (0.0, Place("forward", OTHER)))
        place = Place("backward", maker.stage, maker.expert)
    yield Span(node, place, is_range=True)
    for child in node.cpu_children:
        for inner in child.cpu_children if is_inside(child, node) else [child]:
            if is_operator(inner):
                yield Span(inner, place, is_range=False)


def is_operator(event: FunctionEvent) -> bool:
    """Whether a child of an operator, a range or a node is an operator itself."""
    kind: str | None = getattr(event, "activity_type", None)  # not told by every torch
    return kind not in LIBRARY if kind else not LIBRARY_CALL.match(event.name)


def tree(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """An event and everything below it."""
    yield event
    for child in event.cpu_children:
        yield from tree(child)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One piece of work of the device: when it ran, and where it was asked for.

    Attributes:
        event: the profiler's event; its ``device_resource_id`` is the stream.
        place: of the operator that launched it.
    """

    event: FunctionEvent
    place: Place


def kernels_of(profiled: profile, call: list[Span]) -> list[Kernel]:
    """The work of the device that was launched in a call, in the order in which it ran."""
    places: dict[int, Place] = {}
    for span in call:
        # the numbers of library calls are others', which may be the same
        below = [span.event] if span.is_range else filter(is_operator, tree(span.event))
        places |= {event.id: span.place for event in below}
        if span.is_range:
            places |= {child.id: span.place for child in span.event.cpu_children if is_inside(child, span.event)}
    assert profiled.function_events is not None, "the profiler has ended"
    found = [
        Kernel(event, places[event.linked_correlation_id])
        for event in profiled.function_events
        if event.device_type != DeviceType.CPU and not event.is_user_annotation
        if getattr(event, "linked_correlation_id", 0) in places  # not told by every torch
    ]
    return sorted(found, key=lambda kernel: kernel.event.time_range.start)


def saw_device(profiled: profile) -> bool:
    """Whether the profiler saw work of a device; without the library for it, it goes on and says no word."""
    assert profiled.function_events is not None, "the profiler has ended"
    return any(event.device_type != DeviceType.CPU for event in profiled.function_events)


def is_inside(child: FunctionEvent, node: FunctionEvent) -> bool:
    """Whether an event is what a node of the graph consists of: the function that bears its name."""
    return node.name.startswith(NODE) and child.name == node.name.removeprefix(NODE)
