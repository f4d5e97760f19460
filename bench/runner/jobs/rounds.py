"""Times the cases of one workload in interleaved rounds, on shared weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.cases import Case
from bench.measure.device import Call, Device, open_device
from bench.measure.disturbance import watch
from bench.measure.latency import ArmError, sample_rounds
from bench.runner.jobs.building import build_case
from bench.runner.jobs.failures import failed
from bench.runner.jobs.shared import Shared, make_call, open_shared
from bench.runner.protocol import Announce, Answer, TimeJob
from bench.store.schema import Status


def time_cases(job: TimeJob, announce: Callable[[Announce], None]) -> Answer:
    """The samples of every case, or which case failed and how: the others can then be timed without it."""
    workload = job.cases[0].workload
    assert all(case.workload == workload for case in job.cases), "a job times the cases of one workload"
    device = open_device(workload.device, workload.threads)
    shared = open_shared(workload, Path(job.folder), device.torch_device)
    arms: dict[str, Call] = {}
    for case in job.cases:
        announce(Announce(case_id=case.id, what="build"))
        try:
            arms[case.id] = _arm(case, shared, device)
        except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this row's reason
            return failed(error, case)
    try:
        with watch(device) as watched:
            samples = sample_rounds(
                arms,
                device,
                order_seed=job.order_seed,
                time_budget_s=job.time_budget_s,
                overrun_s=job.overrun_s,
                min_rounds=job.min_rounds,
                max_rounds=job.max_rounds,
                cold=workload.cache == "cold",
                announce=lambda arm, what: announce(Announce(case_id=arm, what=what)),
            )
    except ArmError as error:
        return failed(error.__cause__ or error, next(case for case in job.cases if case.id == error.arm))
    if changed := shared.changed():
        reason = f"{changed} changed during the rounds, though at no case's first call; nothing of it can be trusted"
        return Answer(status=Status.ERROR, reason=reason)
    return Answer(arms=samples, disturbance=watched.disturbance)


def _arm(case: Case, shared: Shared, device: Device) -> Call:
    """The call of one case, made once to see that it leaves what all share as it was."""
    call = make_call(build_case(case, shared), shared)
    call()
    device.synchronize()
    shared.require_unchanged()
    return call
