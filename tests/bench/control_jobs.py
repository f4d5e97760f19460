"""Control jobs without torch. ``CONTROL_JOBS_RATIOS`` has the true ratios of twin and slowed to base, as ``1.0,1.05``.

A process whose replicate is in ``CONTROL_JOBS_FAIL`` gives an error; it is known from its count in the trace file.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

from bench.runner.protocol import Announce, Answer, ControlJob, Job
from bench.store.schema import Arm, Status


def perform(job: Job, announce: Callable[[Announce], None]) -> Answer:
    assert isinstance(job, ControlJob)
    announce(Announce(what="self-test"))
    trace = Path(os.environ["CONTROL_JOBS_TRACE"])
    with trace.open("a") as file:
        file.write(job.model_dump_json() + "\n")
    replicate = len(trace.read_text().splitlines()) - 1
    if str(replicate) in os.environ.get("CONTROL_JOBS_FAIL", "").split(","):
        return Answer(status=Status.ERROR, reason="what a pity")
    twin, slowed = map(float, os.environ["CONTROL_JOBS_RATIOS"].split(","))
    noise = random.Random(replicate)
    common = noise.uniform(0.5, 2)  # processes differ by far more than arms do
    return Answer(
        arms={
            name: Arm(latency_s=[1e-3 * common * ratio * noise.gauss(1, 0.004) for _ in range(5)], warmup_s=[])
            for name, ratio in (("base", 1.0), ("twin", twin), ("slowed", slowed))
        }
    )
