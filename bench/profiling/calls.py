"""Makes the calls of a profile: some under torch's profiler, and in turns with them some that nobody watches."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch.autograd.profiler import profile

from bench.measure.pages import TimedCall, page_cost, timed, why_no_cost
from bench.profiling.spans import Kernel, Span, kernels_of
from bench.profiling.step import Step
from bench.store.profiles import FirstTouches

BLOCKS = 4
"""Profiles a case, with plain calls before, between and after."""
MIN_CALLS = BLOCKS
MAX_CALLS = 24


@dataclass(frozen=True)
class Watched:
    """Calls under torch's profiler, and calls in between that nobody watched.

    Attributes:
        profiles: of the watched calls.
        plain_s: mean time of the quicker half of the others.
        pages: what the usual one of them touched for the first time, and its cost; None where that is not told. Whether
            a call meets new memory depends on what was given back before it, not on whether somebody disturbs it.
        no_pages: why that is not told, on a CPU.
    """

    profiles: Sequence[profile]
    plain_s: float
    pages: FirstTouches | None = None
    no_pages: str = ""


def watch(
    step: Step, time_budget_s: float, marks: Callable[[], AbstractContextManager[None]], *, shapes: bool = False
) -> Watched:
    """Calls under torch's profiler with ``marks`` open, in turns with plain ones.

    As many of either as take half of the time, between :data:`MIN_CALLS` and :data:`MAX_CALLS`; in turns, so that a
    machine that changes its speed changes it for both. Without ``shapes``, unless nobody else knows them: to record
    them costs as much as all the rest, and memory, so that calls touch pages that they otherwise keep.
    """

    def plainly() -> TimedCall:
        step.settle()
        return timed(step)

    plain = [plainly(), plainly()]
    usual_s = min(call.seconds for call in plain)
    num_calls = min(MAX_CALLS, max(MIN_CALLS, int(time_budget_s / 2 / usual_s)))
    profiles = []
    for _ in range(BLOCKS):
        with marks(), profile(use_device=step.profiled_device, record_shapes=shapes) as profiled:
            for _ in range(num_calls // BLOCKS):
                step.settle()
                step()
        profiles.append(profiled)
        plain += [plainly() for _ in range(num_calls // BLOCKS)]
    on_cpu = step.device.torch_device.type == "cpu"
    quicker = sorted(plain, key=lambda call: call.seconds)[: (len(plain) + 1) // 2]
    faults = [call.faults for call in plain if call.faults is not None]
    cost = page_cost() if on_cpu and faults else None
    pages = None
    if cost is not None:
        pages = FirstTouches(
            num_pages=statistics.median(faults),
            touch_s=cost.touch_s,
            return_s=cost.return_s,
            page_bytes=mmap.PAGESIZE,
        )
    no_pages = why_no_cost() if on_cpu and pages is None else ""
    return Watched(profiles, statistics.mean(call.seconds for call in quicker), pages, no_pages)


def kernels_in(profiles: Iterable[profile], usual: list[Span]) -> list[Kernel]:
    """The work of the device in a call of one of these profiles; each counts its events anew."""
    for profiled in profiles:
        if any(event is usual[0].event for event in profiled.function_events or ()):
            return kernels_of(profiled, usual)
    return []
