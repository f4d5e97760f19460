"""Times the self-test: a fixed piece of work, its identical twin, and the same with a planted slowdown."""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.measure.control import control_arms
from bench.measure.latency import sample_rounds
from bench.measure.opening import open_device
from bench.runner.protocol import Announce, Answer, ControlJob, TimeJob

_MIN_ROUNDS: int = TimeJob.model_fields["min_rounds"].default
# A first call, three to choose inner loops, and the rounds: what every arm runs, however slow it is.
_LEAST_CALLS = 1 + 3 + _MIN_ROUNDS
_MAX_ROUNDS: int = TimeJob.model_fields["max_rounds"].default


def time_control(job: ControlJob, announce: Callable[[Announce], None]) -> Answer:
    """Sample base, twin and slowed as implementations are sampled, under the same defaults.

    Their work is cut to what fits the time budget, so that the self-test of a crowded machine does not eat the run's.
    Where each has a process of its own, all take the largest: processes that chose for themselves could choose
    differently. There, the time is bounded instead.
    """
    device = open_device(job.device, job.threads)
    longest_call_s = job.time_budget_s / (3 * _LEAST_CALLS) if job.arm is None else math.inf
    calls = control_arms(device, job.planted_slowdown, longest_call_s)
    arms = sample_rounds(
        {arm: calls[arm] for arm in job.arms},
        device,
        order_seed=job.order_seed,
        time_budget_s=job.time_budget_s,
        overrun_s=None if job.arm is None else job.time_budget_s,
        min_rounds=_MIN_ROUNDS,
        max_rounds=_MAX_ROUNDS,
        announce=lambda arm, what: announce(Announce(what=f"self-test {what} {arm}".rstrip())),
    )
    return Answer(arms=arms)
