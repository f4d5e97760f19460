"""Qualification: every case in a fresh process of its own, checked against the truth of its workload.

Every case gets one record as soon as its outcome is known; a crash, a hang or a lack of memory costs that case only.
Where the budget is too short for all, whole workloads are left out: what is timed can be compared, and the rest has no
record, so that ``--resume`` finds it open.
"""

from __future__ import annotations

import time

from bench.cases import Case
from bench.runner import schedule
from bench.runner.protocol import Answer, QualifyJob
from bench.runner.servers import ForkServer
from bench.runner.session import Session, semantics_of, short_name
from bench.store.schema import Status

# Where not even this share of the budget is enough for verdicts, more workloads without them are worth as much.
MAX_TIMING_SHARE = 0.6


def qualify_cases(session: Session, server: ForkServer) -> None:
    """Settle the cases that are not settled yet, workload by workload, as far as the budget reaches."""
    for case in session.sweep.cases:
        if (why := case.workload.layer.impossible) and case.id not in session.outcomes:
            session.settle(case, Answer(status=Status.UNSUPPORTED, reason=why))
    todo: dict[str, list[Case]] = {}
    for case in session.sweep.cases:
        if case.id not in session.outcomes:
            todo.setdefault(case.workload.id, []).append(case)
    num_open = sum(map(len, todo.values()))
    start_s, settled = time.monotonic(), 0
    for cases in todo.values():
        case_s = (time.monotonic() - start_s) / settled if settled else 0.0
        if settled and len(cases) * case_s + _least_timing_s(session) > session.left_s:
            return
        failed: Answer | None = None
        for position, case in enumerate(cases):
            if session.left_s <= 0:
                return
            more_s = (num_open - settled) * case_s
            # The rest of the budget goes to timing, most of it before the first look at the intervals.
            session.update("qualify", short_name(case), more_s + schedule.FIRST_LOOK_SHARE * (session.left_s - more_s))
            if position == 0:
                semantics = sorted({semantics_of(case) for case in cases})
                failed = session.make_files(server, case.workload, semantics)
            session.settle(case, failed or _qualify(session, server, case))
            settled += 1
            case_s = (time.monotonic() - start_s) / settled


def _least_timing_s(session: Session) -> float:
    """Seconds to be kept for timing: what the workloads settled so far, and one more like them, need for a verdict."""
    measure = session.sweep.measure
    rough_s = session.rough_rounds_s()
    rounds_s = [seconds for key, seconds in rough_s.items() if key in session.missing_processes()]
    if rough_s:
        rounds_s.append(sum(rough_s.values()) / len(rough_s))
    least_s = schedule.least_s(rounds_s, measure.processes, measure.min_rounds, session.new_overheads())
    return min(least_s, MAX_TIMING_SHARE * measure.budget_s)


def _qualify(session: Session, server: ForkServer, case: Case) -> Answer:
    job = QualifyJob(case=case, folder=str(session.scratch.folder(case.workload)))
    return server.execute(job, session.patience_s(case))
