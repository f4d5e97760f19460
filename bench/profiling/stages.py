"""Adds up a profile by stage and by operator, over the calls that count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch.autograd.profiler_util import FunctionEvent, Kernel

from bench.profiling.spans import OTHER, Place, Span, is_inside, is_operator, tree
from bench.profiling.step import BACKWARD, CALL, DROP, FORWARD, WAIT

MICROSECOND = 1e-6
Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Sums:
    """Time of a stage, summed over calls; all in seconds."""

    host_s: float = 0.0
    idle_s: float = 0.0
    device_s: float = 0.0
    launches: int = 0

    def add(self, event: FunctionEvent, *, is_range: bool, on_device: bool) -> None:
        """A range gives its duration, what is idle in it, and its own launches; an operator what it launches."""
        if is_range:
            self.host_s += event.cpu_time_total * MICROSECOND
            self.add_own(event)
            return
        self.device_s += event.device_time_total * MICROSECOND
        self.launches += sum(len(one.kernels) for one in tree(event)) if on_device else 1

    def add_own(self, event: FunctionEvent) -> None:
        """What is in a range and in no operator: idle time, and kernels that Python code launches by itself."""
        if event.name != WAIT:
            self.idle_s += sum(one.self_cpu_time_total for one in _itself(event)) * MICROSECOND
        self.add_kernels(own_kernels(event))

    def add_kernels(self, kernels: Sequence[Kernel]) -> None:
        """Kernels that no operator launched."""
        self.device_s += sum(kernel.duration for kernel in kernels) * MICROSECOND
        self.launches += len(kernels)


@dataclass(slots=True)
class OperatorSums:
    """Calls and time of one operator, and the profiler's events inside it, summed over calls."""

    calls: int = 0
    host_s: float = 0.0
    device_s: float = 0.0
    events: int = 0


@dataclass(frozen=True)
class Breakdown:
    """Sums over the calls that count.

    Attributes:
        num_calls: how many these are.
        whole_s: their time together.
        stages: by place without an expert; ``other`` is what no stage claims, so that they add up to ``whole_s``.
        experts: by place with an expert.
        operators: by place without an expert, name and shapes; a kernel of no operator is there by its own name.
        events: what the profiler wrote down in all: each costs it time.
    """

    num_calls: int
    whole_s: float
    stages: Mapping[Place, Sums]
    experts: Mapping[Place, Sums]
    operators: Mapping[tuple[Place, str, Shapes], OperatorSums] = field(default_factory=dict)
    events: int = 0


def quicker_half(calls: Sequence[list[Span]]) -> list[list[Span]]:
    """The calls that took the least time, shortest first: whatever comes between only ever makes a call longer."""
    ordered = sorted(calls, key=lambda spans: spans[0].event.cpu_time_total)
    return ordered[: (len(ordered) + 1) // 2]


def break_down(calls: Sequence[list[Span]], names: Mapping[str, frozenset[str]], *, on_device: bool) -> Breakdown:
    """Add up the spans of ``calls``.

    Args:
        calls: what :func:`bench.profiling.spans.calls_of` gave.
        names: by phase, the operators that are looked at as one piece: those below Python.
        on_device: whether kernels run on a device of their own.
    """
    stages: defaultdict[Place, Sums] = defaultdict(Sums)
    experts: defaultdict[Place, Sums] = defaultdict(Sums)
    operators: defaultdict[tuple[Place, str, Shapes], OperatorSums] = defaultdict(OperatorSums)
    whole_s = 0.0
    for spans in calls:
        whole_s += spans[0].event.cpu_time_total * MICROSECOND
        for span in spans:
            whole = Place(span.place.phase, span.place.stage)
            if span.is_range:
                _add_kernels(own_kernels(span.event), whole, operators)
            if span.event.name in (CALL, FORWARD, BACKWARD):
                stages[whole].add_kernels(own_kernels(span.event))
                continue
            if not (span.is_range and span.place.expert is not None and span.place.phase == "forward"):
                stages[whole].add(span.event, is_range=span.is_range, on_device=on_device)
            elif span.is_range:
                # its duration is inside the range of all experts; only what is its own is not counted there
                stages[whole].add_own(span.event)
            if span.place.expert is not None:
                experts[span.place].add(span.event, is_range=span.is_range, on_device=on_device)
            if not span.is_range:
                for event in pieces(span.event, names[span.place.phase]):
                    sums = operators[whole, event.name, shapes_of(event)]
                    sums.calls += 1
                    sums.host_s += event.cpu_time_total * MICROSECOND
                    sums.device_s += event.device_time_total * MICROSECOND
                    sums.events += sum(1 for _ in tree(event)) - 1
        _add_other(spans, stages)
    events = sum(1 for spans in calls for _ in tree(spans[0].event))
    return Breakdown(len(calls), whole_s, stages, experts, operators, events)


def _add_kernels(
    kernels: Iterable[Kernel], place: Place, operators: dict[tuple[Place, str, Shapes], OperatorSums]
) -> None:
    """Rows of kernels that no operator launched, by their own names."""
    for kernel in kernels:
        sums = operators[place, kernel.name, ()]
        sums.calls += 1
        sums.device_s += kernel.duration * MICROSECOND


def _add_other(spans: Sequence[Span], stages: dict[Place, Sums]) -> None:
    """What is in a phase and in no stage of it; idle there is what is left beside the operators."""
    left_us = {"forward": spans[0].event.cpu_time_total, "backward": 0.0}
    busy_us = 0.0
    for span in spans:
        duration_us = span.event.cpu_time_total
        if span.event.name == BACKWARD:
            left_us["backward"] += duration_us
            left_us["forward"] -= duration_us
        elif span.is_range and span.event.name not in (CALL, FORWARD):
            nested = span.place.phase == "forward" and span.place.expert is not None
            # gradients are dropped beside the backward part, not in it
            left_us["forward" if span.event.name == DROP else span.place.phase] -= 0.0 if nested else duration_us
        elif not span.is_range and span.place == UNCLAIMED:
            busy_us += duration_us
    forward, backward = stages[UNCLAIMED], left_us["backward"] * MICROSECOND
    forward.host_s += left_us["forward"] * MICROSECOND
    forward.idle_s += max(0.0, left_us["forward"] - busy_us) * MICROSECOND
    if backward:
        other = stages[Place("backward", OTHER)]
        other.host_s += backward
        other.idle_s += backward


UNCLAIMED = Place("forward", OTHER)


def own_kernels(event: FunctionEvent) -> list[Kernel]:
    """Kernels of a range or node that no operator launched: Python code did, by itself."""
    return [kernel for one in _itself(event) for kernel in one.kernels if kernel.name != one.name]


def _itself(event: FunctionEvent) -> list[FunctionEvent]:
    """A range; of a node also the function that it consists of."""
    return [event, *(child for child in event.cpu_children if is_inside(child, event))]


def pieces(event: FunctionEvent, names: frozenset[str]) -> Iterator[FunctionEvent]:
    """The operators that the event consists of, as Python's side of torch sees them."""
    children = [child for child in event.cpu_children if is_operator(child)]
    if event.name in names or not children:
        yield event
        return
    for child in children:
        yield from pieces(child, names)


def shapes_of(event: FunctionEvent) -> Shapes:
    """Shapes of an operator's tensors, those in lists left out."""
    # torch's annotation says list[int]; what it gives is a list of shapes, empty for what is no tensor
    shapes = cast("list[list[int]]", event.input_shapes or [])
    return tuple(tuple(shape) for shape in shapes if shape)
