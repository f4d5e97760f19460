"""What a worker can be asked to do: one file a kind of job, behind :func:`perform`.

Nothing here prints; whatever is known at the end is in the answer.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.runner.jobs.ceiling import measure_ceiling_job
from bench.runner.jobs.conform import conform
from bench.runner.jobs.control import time_control
from bench.runner.jobs.energy import measure_energy_job
from bench.runner.jobs.failures import failed
from bench.runner.jobs.limits import check_limit
from bench.runner.jobs.materialise import materialise
from bench.runner.jobs.profile import profile_case
from bench.runner.jobs.qualify import qualify
from bench.runner.jobs.referee import judge_results
from bench.runner.jobs.rounds import time_cases
from bench.runner.jobs.truth import compute_truth
from bench.runner.protocol import (
    Announce,
    Answer,
    CeilingJob,
    ConformJob,
    ControlJob,
    EnergyJob,
    Job,
    LimitCheckJob,
    MaterialiseJob,
    ProfileJob,
    QualifyJob,
    RefereeJob,
    TimeJob,
    TruthJob,
)

__all__ = ["perform"]


def perform(job: Job, announce: Callable[[Announce], None]) -> Answer:
    """Do one job.

    Args:
        job: what to do.
        announce: told what is about to run, before it runs.

    Returns:
        The answer, also where the job failed: its status and reason then say how.
    """
    try:
        match job:
            case MaterialiseJob():
                return materialise(job, announce)
            case TruthJob():
                return compute_truth(job, announce)
            case QualifyJob():
                return qualify(job, announce)
            case TimeJob():
                return time_cases(job, announce)
            case ControlJob():
                return time_control(job, announce)
            case CeilingJob():
                return measure_ceiling_job(job, announce)
            case ConformJob():
                return conform(job, announce)
            case EnergyJob():
                return measure_energy_job(job, announce)
            case ProfileJob():
                return profile_case(job, announce)
            case LimitCheckJob():
                return check_limit(job, announce)
            case RefereeJob():
                return judge_results(job, announce)
    except Exception as error:  # noqa: BLE001 - implementations are foreign code: what they raise is the row's reason
        return failed(error)
