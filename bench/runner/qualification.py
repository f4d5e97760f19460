"""Qualification: every case in a fresh process of its own, checked against the truth of its workload.

Every case gets one record as soon as its outcome is known; a crash, a hang or a lack of memory costs that case only.
"""

from __future__ import annotations

import time

from bench.cases import Case
from bench.runner.protocol import Answer, QualifyJob
from bench.runner.schedule import FIRST_LOOK_SHARE
from bench.runner.servers import ForkServer
from bench.runner.session import Session, semantics_of, short_name
from bench.store.schema import Status

# Cases that are not qualified by this share of the budget are given up, so that the others can be timed.
QUALIFY_SHARE = 0.6


def qualify_cases(session: Session) -> None:
    """Settle every case of the sweep that is not settled yet."""
    for case in session.sweep.cases:
        if (why := case.workload.layer.impossible) and case.id not in session.outcomes:
            session.settle(case, Answer(status=Status.UNSUPPORTED, reason=why))
    open_cases = [case for case in session.sweep.cases if case.id not in session.outcomes]
    if not open_cases:
        return
    workloads: dict[str, list[Case]] = {}
    for case in open_cases:
        workloads.setdefault(case.workload.id, []).append(case)
    started_s, settled, given_up = time.monotonic(), 0, 0
    with session.new_server() as server:
        for cases in workloads.values():
            failed: Answer | None = None
            for position, case in enumerate(cases):
                if session.elapsed_s >= QUALIFY_SHARE * session.sweep.measure.budget_s:
                    session.settle(case, _out_of_time(session))
                    given_up += 1
                    continue
                spent_s = time.monotonic() - started_s
                more_s = spent_s / settled * (len(open_cases) - settled) if settled else 0.0
                # The rest of the budget goes to timing, most of it before the first look at the intervals.
                session.update("qualify", short_name(case), more_s + FIRST_LOOK_SHARE * (session.left_s - more_s))
                if position == 0:
                    semantics = sorted({semantics_of(case) for case in cases})
                    failed = session.make_files(server, case.workload, semantics)
                session.settle(case, failed or _qualify(session, server, case))
                settled += 1
    if given_up:
        session.note(
            "budget_spent",
            f"{given_up} of {len(open_cases)} cases were not checked: {QUALIFY_SHARE:.0%} of the budget "
            f"({session.sweep.measure.budget_s:g} s) were spent; raise --budget or shorten the sweep",
        )


def _qualify(session: Session, server: ForkServer, case: Case) -> Answer:
    job = QualifyJob(case=case, folder=str(session.scratch.folder(case.workload)))
    return server.execute(job, session.sweep.measure.timeout_s)


def _out_of_time(session: Session) -> Answer:
    budget_s = session.sweep.measure.budget_s
    return Answer(
        status=Status.TIMEOUT,
        reason=f"not started: {QUALIFY_SHARE:.0%} of the run's budget ({budget_s:g} s) went to the cases before it; "
        "raise --budget or shorten the sweep",
    )
