"""Isolation: every implementation in a process of its own, one process after the other in random order.

In rounds, implementations of one process share its caches, its allocator and its threads, and each runs right after
another. With ``isolate`` each runs only after itself. The processes of one turn are forked from one server, one after
the other, so the medians of two of them are paired and everything after that is as for rounds. What drifts from one
process to the next no longer cancels: the intervals are wider, and honest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from bench.runner.protocol import Answer
from bench.store.schema import Disturbance, Status


def one_each(names: Sequence[str], ask: Callable[[str], Answer], order_seed: int) -> Answer:
    """The answers of a process for each of ``names`` as one answer; the first that failed instead, where one did.

    Args:
        names: arms, in the order in which they are given back.
        ask: times one of them in a fresh process.
        order_seed: draws the order of the processes.
    """
    found: dict[str, Answer] = {}
    for name in random.Random(order_seed).sample(names, len(names)):
        found[name] = ask(name)
        if found[name].status is not Status.OK:
            return found[name]
    arms = {name: (found[name].arms or {})[name] for name in names}
    return Answer(arms=arms, disturbance=together([answer.disturbance for answer in found.values()]))


def together(parts: Sequence[Disturbance]) -> Disturbance:
    """What happened in all of several stretches of time, in their order."""
    gpu: dict[str, float] = {}
    for part in parts:
        for name, value in part.gpu.items():
            if name.endswith("_before"):
                gpu.setdefault(name, value)
            elif name.endswith("_after"):
                gpu[name] = value
            else:  # what a counter grew by
                gpu[name] = gpu.get(name, 0.0) + value
    switches = [part.involuntary_switches for part in parts]
    return Disturbance(
        steal_s=_sum([part.steal_s for part in parts]),
        involuntary_switches=None if None in switches else sum(filter(None, switches)),
        load_1min=parts[-1].load_1min,
        cpu_pressure_s=_sum([part.cpu_pressure_s for part in parts]),
        gpu=gpu,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(filter(None, values))
