"""The profiling pass: every timed case once more, watched, after all timing is done."""

from __future__ import annotations

from bench.cases import Case
from bench.estimate import compile_s
from bench.runner.ceilings import ceilings_of, measure_ceilings
from bench.runner.protocol import Answer, ProfileJob
from bench.runner.servers import ForkServer
from bench.runner.session import Session, short_name
from bench.store.schema import ProfileRecord, Status

TRACES = "traces"
"""Folder of the trace files, beside the log."""
CASE_BUDGET_S = 2.0
CEILING_S = 0.5
SILENT_CALLS = 60
"""A profile says nothing meanwhile: where calls are long it makes about so many, some of them slowed by the ledger."""
TRIES = 3
"""So often in all a profile is made where the machine was disturbed meanwhile; compiled layers' only once."""


def profile_cases(session: Session) -> None:
    """Give every qualified case that has none its profile, or the reason why there is none.

    It is no part of the budget: who asks for profiles wants all of them, and each takes seconds.
    """
    done = {record.case_id for record in session.of_kind(ProfileRecord)}
    cases = [case for found in session.qualified().values() for case in found if case.id not in done]
    if not cases:
        return
    with session.new_server() as server:
        # a budget that was spent on checking left no time for what limits are read from
        wanted = ceilings_of(case.workload for case in cases)
        measure_ceilings(session, server, 0, wanted, CEILING_S, lambda: CEILING_S * len(wanted))
        for number, case in enumerate(cases):
            session.update("profile", short_name(case), sum(map(_rough_s, cases[number:])))
            _profile(session, server, case)


def _rough_s(case: Case) -> float:
    """How long a profile takes, for the progress line: a compiled layer is compiled once more for it."""
    return CASE_BUDGET_S + compile_s(case)


def _profile(session: Session, server: ForkServer, case: Case) -> None:
    failed = session.make_files(server, case.workload, [])
    if failed is not None:
        session.record(ProfileRecord, case_id=case.id, reason=f"{failed.status}: {failed.reason}")
        return
    job = ProfileJob(
        case=case,
        folder=str(session.scratch.folder(case.workload)),
        traces=str(session.folder.absolute() / TRACES),
        time_budget_s=CASE_BUDGET_S,
        nvtx=session.sweep.measure.nvtx,
    )
    silence_s = session.patience_s(case) + CASE_BUDGET_S + SILENT_CALLS * session.rough_calls_s([case])[case.id]
    timed_s = session.timed_s(case) if case.workload.device == "cpu" else None
    answer = Answer(status=Status.ERROR)
    for attempt in range(TRIES if case.compile == "none" else 1):
        again = server.execute(job, silence_s)
        if again.profile is not None:
            known = again.profile.model_copy(update={"timed_s": timed_s})
            again = again.model_copy(update={"profile": known})
        if again.profile is not None or not attempt:
            answer = again  # a later one that fails takes nothing away
        if again.profile is None or not again.profile.disturbed:
            break
    if answer.status is Status.OK and answer.profile is not None:
        session.record(ProfileRecord, case_id=case.id, profile=answer.profile)
    else:
        session.record(ProfileRecord, case_id=case.id, reason=f"{answer.status}: {answer.reason}")
