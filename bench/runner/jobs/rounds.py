"""Times the cases of one workload in interleaved rounds, on shared weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bench.measure.device import Call, Device
from bench.measure.disturbance import watch
from bench.measure.latency import ArmError, sample_rounds
from bench.measure.opening import open_device
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
            arms[case.id] = call = make_call(build_case(case, shared), shared)
            if case.compile != "none":
                announce(Announce(case_id=case.id, what="compile"))
                call()  # here, where it takes none of the time for samples
                device.synchronize()
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
        return _charged(changed, arms, shared, device)
    return Answer(arms=samples, disturbance=watched.disturbance)


def _charged(changed: str, arms: Mapping[str, Call], shared: Shared, device: Device) -> Answer:
    """Who changed what all share: the first that does it again. The samples of this process are lost either way."""
    for case_id, call in arms.items():
        shared.restore()
        call()
        device.synchronize()
        if again := shared.changed():
            reason = f"it changed {again} in place, which all implementations of the workload share"
            return Answer(status=Status.WRONG_RESULT, reason=reason, case_id=case_id)
    reason = f"{changed} changed during the rounds, and no case does it again; nothing of it can be trusted"
    return Answer(status=Status.ERROR, reason=reason)
