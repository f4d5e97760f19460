"""The self-test of a machine: does moebench see no difference where there is none, and a planted one where there is?

It is the control of a run, on its own and at greater length: the same fork servers, the same interleaved rounds, the
same statistics. From the spread between processes that it finds follows the smallest effect that this machine can show
in a given time.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.analysis.comparisons import MIN_PROCESSES
from bench.analysis.control import judge
from bench.analysis.model import Control
from bench.analysis.statistics import deviation_interval, paired_units, smallest_effect
from bench.environment import usable_cores
from bench.errors import RequestError, RunInterruptedError
from bench.measure.disturbance import PROC, steal_s
from bench.runner import schedule
from bench.runner.fleet import Fleet
from bench.runner.interrupt import Interrupt, Interrupted
from bench.runner.progress import Progress
from bench.runner.protocol import ControlJob
from bench.runner.servers import ForkServer
from bench.runner.worker import JOBS_MODULE
from bench.store.schema import ControlRecord, Status

PROCESSES = 12
MIN_BUDGET_S = 10.0
PLANTED_SLOWDOWN = 0.05
TIMEOUT_S = 60.0
BUDGETS_S = (60.0, 300.0, 1800.0)
CHANCE = 0.9
"""The power for which the smallest effect is given."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a given time for one comparison could show on this machine.

    Attributes:
        budget_s: the time.
        num_processes: how many processes like those of the self-test fit into it.
        effect: the smallest relative slowdown that is found nine times in ten; None where too few processes fit.
        effect_low, effect_high: the same at the ends of the 90 % interval of the spread, which few processes only
            estimate.
    """

    budget_s: float
    num_processes: int
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found.

    Attributes:
        device, threads: where it ran.
        num_processes: fresh processes that were measured.
        wall_s: how long it took.
        steal_share: share of the processors' time that the hypervisor gave to others meanwhile; None if not told.
        control: the judgement, the same as a run's.
        outlook: the smallest effect for each of :data:`BUDGETS_S`; empty where nothing could be measured.
        warnings: what went wrong in single processes.
    """

    device: str
    threads: int
    num_processes: int
    wall_s: float
    steal_share: float | None
    control: Control
    outlook: Sequence[Outlook] = ()
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def failure(self) -> str:
        """Why the self-test failed, in a sentence; empty where it passed."""
        if self.num_processes < MIN_PROCESSES:
            lost = f"; {self.warnings[0]}" if self.warnings else ""
            return f"{self.num_processes} processes were measured, and a verdict needs {MIN_PROCESSES}{lost}"
        return "" if self.control.passed else self.control.sentence


def run_self_test(
    device: str,
    threads: int,
    *,
    budget_s: float,
    progress: Progress,
    planted_slowdown: float = PLANTED_SLOWDOWN,
    processes: int = PROCESSES,
    seed: int = 0,
    jobs: str = JOBS_MODULE,
    proc: Path = PROC,
) -> SelfTest:
    """Time the control in fresh processes, as many as are asked for or fit, and judge it.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: of one operation on the CPU.
        budget_s: time for all of it. On a machine so slow that it ends before :data:`MIN_PROCESSES` processes, those
            are measured all the same: fewer could not be judged.
        progress: who is told how far it is.
        planted_slowdown: what must be found.
        processes: how many fresh processes.
        seed: draws the order within rounds.
        jobs: module whose ``perform`` does the job.
        proc: the kernel's file system of that name.

    Raises:
        RequestError: the budget is too short.
        ServerLostError: no worker can be started.
        RunInterruptedError: the user stopped it.
    """
    if budget_s < MIN_BUDGET_S:
        raise RequestError(f"the self-test needs a budget of {MIN_BUDGET_S:.0f} s or more, found {budget_s:g} s")
    start_s, stolen_s = time.monotonic(), steal_s(proc)
    records: list[ControlRecord] = []
    warnings: list[str] = []
    overheads, starting_s = schedule.Overheads(), 0.0
    with _stoppable() as interrupt, Fleet(lambda: ForkServer(interrupt, jobs), usable_cores()) as fleet:
        for replicate in range(processes):
            left_s = budget_s - (time.monotonic() - start_s)
            share_s = left_s / (processes - replicate) - overheads.start_s - overheads.job("")
            if replicate >= MIN_PROCESSES and left_s < overheads.start_s + overheads.job("") + schedule.MIN_CONTROL_S:
                break
            current = f"process {replicate + 1} of {processes}"
            progress.update(phase="self-test", current=current, done_s=budget_s - left_s, left_s=max(0.0, left_s))
            job = ControlJob(
                device=device,
                threads=threads,
                planted_slowdown=planted_slowdown,
                order_seed=random.Random(f"{seed}/{replicate}").getrandbits(31),
                time_budget_s=max(share_s, schedule.MIN_CONTROL_S),
            )
            began_s = time.monotonic()
            with fleet.take(processes - replicate) as server:
                overheads.saw_start(time.monotonic() - began_s)
                starting_s += time.monotonic() - began_s
                began_s = time.monotonic()
                answer = server.execute(job, TIMEOUT_S + job.time_budget_s)
                wall_s = time.monotonic() - began_s
            if answer.status is not Status.OK:
                warnings.append(f"process {replicate + 1} failed: {answer.reason}")
                continue
            overheads.saw_job("", wall_s, job.time_budget_s)
            records.append(
                ControlRecord(
                    environment_hash="",
                    unix_time_s=time.time(),
                    replicate=replicate,
                    arms=answer.arms,
                    planted_slowdown=planted_slowdown,
                    wall_s=wall_s,
                    device=device,
                    threads=threads,
                )
            )
    wall_s = time.monotonic() - start_s
    return SelfTest(
        device=device,
        threads=threads,
        num_processes=len(records),
        wall_s=wall_s,
        steal_share=_steal_share(stolen_s, steal_s(proc), wall_s),
        control=judge(records),
        outlook=foresee(records, starting_s / max(1, len(records) + len(warnings))),
        warnings=warnings,
    )


def foresee(records: Sequence[ControlRecord], start_s: float) -> list[Outlook]:
    """The smallest effect that more or fewer processes like these would show.

    Args:
        records: processes of the control; fewer than :data:`MIN_PROCESSES` hardly know the spread, and give nothing.
        start_s: what a process costs beside its job.
    """
    units = paired_units(records).get(("base", "twin"))
    if units is None or units.size < MIN_PROCESSES:
        return []
    process_s = start_s + statistics.median(record.wall_s for record in records)
    deviation = float(np.std(units, ddof=1))
    low, high = deviation_interval(deviation, units.size)
    outlook = []
    for budget_s in BUDGETS_S:
        count = int(budget_s // process_s)
        if count < MIN_PROCESSES:
            outlook.append(Outlook(budget_s, count))
            continue
        effects = (math.expm1(smallest_effect(spread, count, chance=CHANCE)) for spread in (deviation, low, high))
        outlook.append(Outlook(budget_s, count, *effects))
    return outlook


def _steal_share(before_s: float | None, after_s: float | None, wall_s: float) -> float | None:
    return None if before_s is None or after_s is None else (after_s - before_s) / (wall_s * (os.cpu_count() or 1))


@contextmanager
def _stoppable() -> Iterator[Interrupt]:
    try:
        with Interrupt() as interrupt:
            yield interrupt
    except Interrupted as signal:
        raise RunInterruptedError(f"the self-test was stopped ({signal}); nothing is kept of it") from None
