"""Measures one of the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure.ceilings import measure_ceiling
from bench.measure.opening import open_device
from bench.runner.protocol import Announce, Answer, CeilingJob


def measure_ceiling_job(job: CeilingJob, announce: Callable[[Announce], None]) -> Answer:
    """The ceiling ``job.what`` and the size of the buffer or matrices that reached it."""
    announce(Announce(what=f"{job.what} ceiling"))
    device = open_device(job.device, job.threads)
    per_s, working_set_bytes = measure_ceiling(job.what, device, job.dtype, job.time_budget_s)
    return Answer(per_s=per_s, working_set_bytes=working_set_bytes)
