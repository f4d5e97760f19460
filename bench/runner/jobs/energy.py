"""Measures the energy of a sustained loop over one case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.measure.energy.meter import measure_energy
from bench.measure.opening import open_device
from bench.runner.jobs.building import build_case
from bench.runner.jobs.failures import failed
from bench.runner.jobs.shared import make_call, open_shared
from bench.runner.protocol import Announce, Answer, EnergyJob


def measure_energy_job(job: EnergyJob, announce: Callable[[Announce], None]) -> Answer:
    """What the meter read, or the reason why it read nothing."""
    case = job.case
    announce(Announce(case_id=case.id, what="build"))
    device = open_device(case.workload.device, case.workload.threads)
    shared = open_shared(case.workload, Path(job.folder), device.torch_device)
    try:
        call = make_call(build_case(case, shared), shared)
        announce(Announce(case_id=case.id, what="energy"))
        return Answer(energy=measure_energy(call, device, job.window_s))
    except Exception as error:  # noqa: BLE001 - foreign code: what it raises is this row's reason
        return failed(error, case)
