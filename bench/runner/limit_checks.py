"""The pass that checks what limits the profiled cases, by pulling levers: after the profiles, in several processes.

How many follows a schedule that was fixed before: a case of which the levers can say neither yes nor no is looked at
again after more processes.
"""

from __future__ import annotations

import random
import time

from bench import environment
from bench.analysis.levers import LOOKS, Agreement, LimitCheck
from bench.analysis.limit_checks import checks_so_far
from bench.cases import Case, Workload
from bench.runner import schedule
from bench.runner.ceilings import ceilings_of, measure_ceilings
from bench.runner.fleet import Fleet
from bench.runner.profiling import CEILING_S
from bench.runner.protocol import LimitCheckJob
from bench.runner.servers import ForkServer
from bench.runner.session import Session, short_name
from bench.store.schema import LimitCheckRecord, ProfileRecord, Status

CASE_BUDGET_S = 1.5
OVERRUN_S = 4.0
"""How much longer a check may take for its least rounds, where calls are long."""


def check_limits(session: Session, fleet: Fleet) -> None:
    """Time every profiled case beside its variants, in as many processes as it takes to tell, :data:`LOOKS` at most.

    Like the profiles it is no part of the budget.
    """
    profiled = {record.case_id for record in session.of_kind(ProfileRecord) if record.profile is not None}
    of_profiles = [case for found in session.qualified().values() for case in found if case.id in profiled]
    known = {(record.case_id, record.replicate) for record in session.of_kind(LimitCheckRecord)}
    for case in of_profiles:
        if case.compile != "none" and (case.id, 0) not in known:
            reason = f"{Status.UNSUPPORTED}: the layer is compiled, and every variant would be compiled anew"
            session.record(LimitCheckRecord, case_id=case.id, replicate=0, reason=reason)
    cases = [case for case in of_profiles if case.compile == "none"]
    done = 0
    for look in LOOKS:
        for replicate in range(done, look):
            todo = [case for case in cases if (case.id, replicate) not in known]
            if todo:
                with fleet.take(look - replicate) as server:
                    _replicate(session, server, todo, replicate, left=len(cases) * (look - replicate - 1))
        done = look
        seen = [r for r in session.records if not (isinstance(r, LimitCheckRecord) and r.replicate >= look)]
        checks = checks_so_far(seen)
        cases = [case for case in cases if _is_open(checks.get(case.id))]


def _is_open(check: LimitCheck | str | None) -> bool:
    """Whether levers were pulled and more processes may tell what these could not."""
    return isinstance(check, LimitCheck) and check.agreement is Agreement.CANNOT_TELL and bool(check.by_levers)


def _replicate(session: Session, server: ForkServer, cases: list[Case], replicate: int, left: int) -> None:
    """One process a case; ``left`` are to come after these."""
    random.Random(f"{session.sweep.seed}/{replicate}/limits").shuffle(cases)
    _ceilings(session, server, cases, replicate)
    for number, case in enumerate(cases):
        session.update("check limits", short_name(case), 2 * CASE_BUDGET_S * (len(cases) - number + left))
        _check(session, server, case, replicate)


def other_threads(workload: Workload) -> int | None:
    """Half the threads, or two of one; None where that is no other number, or beside the point."""
    if workload.device != "cpu":
        return None
    wanted = workload.threads // 2 or 2
    return wanted if wanted <= environment.usable_cores() else None


def _check(session: Session, server: ForkServer, case: Case, replicate: int) -> None:
    start_s = time.monotonic()
    failed = session.make_files(server, case.workload, [])
    if failed is not None:
        session.record(
            LimitCheckRecord, case_id=case.id, replicate=replicate, reason=f"{failed.status}: {failed.reason}"
        )
        return
    job = LimitCheckJob(
        case=case,
        folder=str(session.scratch.folder(case.workload)),
        order_seed=random.Random(f"{session.sweep.seed}/{replicate}/{case.id}").getrandbits(31),
        time_budget_s=CASE_BUDGET_S,
        overrun_s=OVERRUN_S,
        other_threads=other_threads(case.workload),
        count=not any(record.case_id == case.id and record.work for record in session.of_kind(LimitCheckRecord)),
    )
    answer = server.execute(job, session.patience_s(case) + CASE_BUDGET_S + OVERRUN_S)
    fields = {"case_id": case.id, "replicate": replicate, "wall_s": time.monotonic() - start_s}
    if answer.status is Status.OK and answer.arms is not None:
        session.record(
            LimitCheckRecord,
            arms=answer.arms,
            work=answer.work,
            gaps=answer.gaps,
            other_threads=job.other_threads,
            **fields,
        )
    else:
        session.record(LimitCheckRecord, reason=f"{answer.status}: {answer.reason}", **fields)


def _ceilings(session: Session, server: ForkServer, cases: list[Case], replicate: int) -> None:
    """What the machine can do with the case's threads, where the timing did not come to that, and with the others."""
    if replicate >= schedule.NUM_CEILING_REPLICATES:
        return
    workloads = {case.workload.id: case.workload for case in cases}.values()
    others = [
        workload.model_copy(update={"threads": threads})
        for workload in workloads
        if (threads := other_threads(workload))
    ]
    wanted = ceilings_of([*workloads, *others])
    measure_ceilings(session, server, replicate, wanted, CEILING_S, lambda: CEILING_S * len(wanted))
