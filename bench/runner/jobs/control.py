"""Times the self-test: a fixed piece of work, its identical twin, and the same with a planted slowdown."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure.control import control_arms
from bench.measure.device import open_device
from bench.measure.latency import sample_rounds
from bench.runner.protocol import Announce, Answer, ControlJob, TimeJob

_MIN_ROUNDS: int = TimeJob.model_fields["min_rounds"].default
_MAX_ROUNDS: int = TimeJob.model_fields["max_rounds"].default


def time_control(job: ControlJob, announce: Callable[[Announce], None]) -> Answer:
    """Sample base, twin and slowed as implementations are sampled, under the same defaults."""
    device = open_device(job.device, job.threads)
    arms = sample_rounds(
        control_arms(device, job.planted_slowdown),
        device,
        order_seed=job.order_seed,
        time_budget_s=job.time_budget_s,
        min_rounds=_MIN_ROUNDS,
        max_rounds=_MAX_ROUNDS,
        announce=lambda arm, what: announce(Announce(what=f"self-test {what} {arm}".rstrip())),
    )
    return Answer(arms=arms)
