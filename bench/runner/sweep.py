"""Runs a sweep from its first case to its last record: qualify, time, measure energy, and note the end.

The process that calls :func:`run_sweep` imports no torch, never touches CUDA and sleeps while a worker measures.
Whatever ends it, every record that was written is kept, no process is left behind, and ``resume`` goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import environment
from bench.config import Sweep
from bench.errors import RequestError, RunInterruptedError
from bench.gpus import in_use
from bench.runner.energy import EnergyPass
from bench.runner.fleet import Fleet
from bench.runner.interrupt import Interrupt, Interrupted
from bench.runner.limit_checks import check_limits
from bench.runner.lock import only_run
from bench.runner.profiling import profile_cases
from bench.runner.progress import Progress
from bench.runner.qualification import qualify_cases
from bench.runner.scratch import Scratch
from bench.runner.session import Session
from bench.runner.timing import Timing
from bench.runner.worker import JOBS_MODULE
from bench.store import log
from bench.store.schema import AnyRecord, CaseRecord, NoteRecord, RunInfo, SamplesRecord, Status

FOR_QUALIFICATION = ("torch._inductor",)
"""torch's profiler, which watches every qualification, imports this on its first use: nearly a second a case."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What came of a run.

    Attributes:
        folder: where its records are.
        statuses: how many cases ended how.
        num_not_run: cases that the budget did not reach, or not for a single time; resuming the run measures them.
    """

    folder: Path
    statuses: Counter[Status]
    num_not_run: int = 0


def run_sweep(
    sweep: Sweep,
    *,
    results: Path,
    command: list[str],
    progress: Progress,
    resume: Path | None = None,
    jobs: str = JOBS_MODULE,
) -> RunOutcome:
    """Measure a sweep, or go on with one.

    Args:
        sweep: what to measure; for ``resume``, the sweep of the run's own configuration.
        results: folder in which runs are kept.
        command: the command line, for the record, which keeps no folder's name.
        progress: who is told how far the run is.
        resume: folder of an unfinished run to go on with, instead of beginning one.
        jobs: module whose ``perform`` does the jobs.

    Raises:
        RunInterruptedError: the user stopped it; the message has the command that goes on.
        ResultsError: the results cannot be written or read.
        RequestError: another run does not end, or the run to resume is of another sweep.
        ServerLostError: no worker can be started.
    """
    described = environment.describe()
    hashed = environment.environment_hash(described)
    machine = environment.machine_key() if resume is None else resume.absolute().parent.name
    machine_folder = results / machine if resume is None else resume.absolute().parent
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        folder = resume
        try:
            for device in sorted({case.workload.device for case in sweep.cases}):
                stack.enter_context(only_run(machine_folder, device, interrupt, progress.note))
            records: list[AnyRecord] = []
            if resume is not None:
                records = _read_unfinished(resume, sweep)
                folder = resume
            else:
                info = RunInfo(
                    run_id=new_run_id(sweep.source),
                    machine=machine,
                    created_unix_s=time.time(),
                    command=[environment.without_folders(word) for word in command],
                    source=sweep.source,
                    config=_plain(sweep.given),
                    seed=sweep.seed,
                    git_commit=environment.git_commit(),
                    environment=described,
                    environment_hash=hashed,
                )
                folder = log.create_run(results, info)
            scratch = stack.enter_context(Scratch())
            spent_s = used_s(records)
            session = Session(sweep, folder, hashed, progress, interrupt, scratch, jobs, spent_s, records)
            if not any(note.event == "finished" for note in session.of_kind(NoteRecord)):
                _measure(session, resumed=resume is not None)
        except Interrupted as signal:
            if folder is None:
                raise RunInterruptedError(f"stopped ({signal}) before the run began; nothing was measured") from None
            raise RunInterruptedError(
                f"stopped ({signal}); what was measured is kept. Go on with: "
                f"moebench run --resume {shlex.quote(str(folder))}"
            ) from None
    return RunOutcome(folder, session.statuses, _num_not_run(session))


def _measure(session: Session, *, resumed: bool) -> None:
    try:
        session.note("resumed" if resumed else "started")
        if resumed:
            _warn_of_change(session)
        if any(case.workload.device != "cpu" for case in session.sweep.cases):
            for sentence in in_use():
                session.note("warning", sentence)
        energy = EnergyPass(session)
        with session.new_server(*(FOR_QUALIFICATION if session.jobs == JOBS_MODULE else ())) as server:
            qualify_cases(session, server)
            energy.probe(server)
        with Fleet(session.new_server, environment.usable_cores()) as fleet:
            timing = Timing(session, fleet, energy.reserve_s)
            timing.run()
        energy.run()
        if session.sweep.measure.profile:
            profile_cases(session)
        if session.sweep.measure.check_limits:
            with Fleet(session.new_server, environment.usable_cores()) as fleet:
                check_limits(session, fleet)
        _note_end(session, timing, energy)
    except Interrupted as signal:
        session.note("interrupted", f"stopped by {signal}")
        raise


def _note_end(session: Session, timing: Timing, energy: EnergyPass) -> None:
    """Note that all that was asked for is done; or what is not, because the budget was spent."""
    measure, undone = session.sweep.measure, []
    num_workloads, missing = len(session.qualified()), timing.missing_processes()
    if num_not_run := _num_not_run(session):
        undone.append(f"{num_not_run} of {len(session.sweep.cases)} cases were not run")
    if missing:
        fewest = measure.processes - max(missing.values())
        undone.append(
            f"{len(missing)} of {num_workloads} workloads were timed in fewer than {measure.processes} processes "
            f"(the fewest: {fewest})"
        )
    if num_open := energy.num_open():
        undone.append(f"the energy of {num_open} cases was not measured")
    if undone:
        session.note(
            "budget_spent",
            f"the budget of {measure.budget_s:g} s was spent: {', and '.join(undone)}; "
            f"moebench run --resume {session.folder.name} goes on with as much time again",
        )
        return
    wide = len(timing.still_wide())
    text = f"the interval of {wide} of {num_workloads} workloads stayed wider than ±{measure.half_width:.1%}"
    session.note("finished", text if wide else "")


def _num_not_run(session: Session) -> int:
    timed = {record.workload_id for record in session.of_kind(SamplesRecord)}
    settled = [case for case in session.sweep.cases if case.id in session.outcomes]
    right = [case for case in settled if session.outcomes[case.id].status is Status.OK]
    return len(session.open_cases()) + sum(case.workload.id not in timed for case in right)


def _read_unfinished(folder: Path, sweep: Sweep) -> list[AnyRecord]:
    """The records of a run that is to go on, its log mended."""
    log.read_info(folder)
    log.mend(folder)
    run = log.read_run(folder)
    if run.info.config != _plain(sweep.given) or run.info.seed != sweep.seed:
        raise RequestError(
            f"{folder} is a run of {run.info.source} with another configuration than the one given; "
            "--resume takes the configuration from the run, without other options"
        )
    known = {case.id for case in sweep.cases}
    strangers = [r for r in run.records if isinstance(r, CaseRecord) and r.case_id not in known]
    if strangers:
        raise RequestError(
            f"{folder} holds {len(strangers)} cases that its configuration no longer gives (moebench has "
            "changed since, or the device is another one): begin a new run"
        )
    return run.records


def _warn_of_change(session: Session) -> None:
    before = {record.environment_hash for record in session.records} - {session.environment_hash}
    if before:
        session.note(
            "warning",
            f"the environment has changed since this run began ({', '.join(sorted(before))} before, "
            f"{session.environment_hash} now): its parts may not be comparable",
        )


def used_s(records: Sequence[AnyRecord]) -> float:
    """Seconds of the budget that the sessions of a run have used: from each one's first note to its last record.

    A run whose budget was spent before all was done has its budget anew when it is resumed.
    """
    total_s = begin_s = last_s = 0.0
    for record in records:
        event = record.event if isinstance(record, NoteRecord) else ""
        if event in ("started", "resumed"):
            total_s += last_s - begin_s
            begin_s = record.unix_time_s
        last_s = record.unix_time_s
        if event == "budget_spent":
            total_s, begin_s = 0.0, last_s
    return max(0.0, total_s + last_s - begin_s)


def new_run_id(source: str) -> str:
    """A name for a run's folder that sorts by time: ``20261122-160455-quick-ab12``; the time is UTC."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(source).stem.lower()).strip("-")[:24] or "run"
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{name}-{secrets.token_hex(2)}"


def _plain(given: dict[str, object]) -> dict[str, object]:
    """The document as JSON gives it back."""
    plain: dict[str, object] = json.loads(json.dumps(given))
    return plain
