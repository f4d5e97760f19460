"""The state of a run while it goes on: its log, what is known from it, its clock and budget, and its workers' files."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.cases import Case, Workload
from bench.config import Sweep
from bench.runner import schedule
from bench.runner.interrupt import Interrupt
from bench.runner.progress import Progress
from bench.runner.protocol import Answer, MaterialiseJob, TruthJob
from bench.runner.scratch import NoSpaceError, Scratch
from bench.runner.servers import ForkServer
from bench.runner.worker import JOBS_MODULE
from bench.store import log
from bench.store.schema import AnyRecord, CaseRecord, NoteRecord, Record, SamplesRecord, Status
from impls.registry import ENTRIES, preloads

R = TypeVar("R", bound=Record)
# A workload's files are large and made once: they get more time than one call of a layer.
FILES_PATIENCE = 5
MIN_ROUND_S = 1e-4
COMPILER = "bench.runner.jobs.compiler"


@dataclass
class Session:
    """One process's part of a run.

    Attributes:
        sweep: what to measure.
        folder: where the records go.
        environment_hash: of the environment that this process runs in.
        progress: who is told how far the run is.
        interrupt: ends every wait when the user wants to stop.
        scratch: where workloads' files lie.
        jobs: module whose ``perform`` does the jobs.
        spent_s: time of the budget that earlier sessions of a resumed run have used.
        records: everything in the log.
        outcomes: by case id, the last :class:`CaseRecord`.
    """

    sweep: Sweep
    folder: Path
    environment_hash: str
    progress: Progress
    interrupt: Interrupt
    scratch: Scratch
    jobs: str
    spent_s: float = 0.0
    records: list[AnyRecord] = field(default_factory=list)
    outcomes: dict[str, CaseRecord] = field(init=False)

    def __post_init__(self) -> None:
        self._start_s = time.monotonic()
        self.outcomes = {record.case_id: record for record in self.records if isinstance(record, CaseRecord)}

    @property
    def elapsed_s(self) -> float:
        """Seconds of the run so far, those of earlier sessions included."""
        return self.spent_s + time.monotonic() - self._start_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left; negative once it is overdrawn."""
        return self.sweep.measure.budget_s - self.elapsed_s

    @property
    def statuses(self) -> Counter[Status]:
        """How many cases ended how."""
        return Counter(record.status for record in self.outcomes.values())

    def workloads(self) -> dict[str, Workload]:
        """Every workload of the sweep by its id, in order."""
        return {case.workload.id: case.workload for case in self.sweep.cases}

    def open_cases(self) -> list[Case]:
        """The cases whose outcome is not known yet."""
        return [case for case in self.sweep.cases if case.id not in self.outcomes]

    def qualified(self) -> dict[str, list[Case]]:
        """The cases that may be timed, by workload id: of workloads whose cases are all settled."""
        unsettled = {case.workload.id for case in self.open_cases()}
        found: dict[str, list[Case]] = {}
        for case in self.sweep.cases:
            if case.workload.id not in unsettled and self.outcomes[case.id].status is Status.OK:
                found.setdefault(case.workload.id, []).append(case)
        return found

    def rough_rounds_s(self) -> dict[str, float]:
        """Rough seconds of one round of all qualified cases, by workload id."""
        found = {}
        for workload_id, cases in self.qualified().items():
            rough = [self.outcomes[case.id].qualified for case in cases]
            found[workload_id] = max(MIN_ROUND_S, sum(known.rough_latency_s for known in rough if known))
        return found

    def rough_calls_s(self, cases: Sequence[Case]) -> dict[str, float]:
        """Rough seconds of one call of qualified cases, by case id."""
        rough = {case.id: self.outcomes[case.id].qualified for case in cases}
        return {key: max(MIN_ROUND_S, known.rough_latency_s if known else 0.0) for key, known in rough.items()}

    def timed_s(self, case: Case) -> float:
        """Seconds of one call of a qualified case: the median of its processes' medians, or rough where it has none."""
        medians = [
            statistics.median(record.arms[case.id].latency_s)
            for record in self.of_kind(SamplesRecord)
            if case.id in record.arms and record.arms[case.id].latency_s
        ]
        return statistics.median(medians) if medians else self.rough_calls_s([case])[case.id]

    def missing_processes(self) -> dict[str, int]:
        """By workload: in how many processes it is still to be timed; those timed in all are left out."""
        timed = Counter(record.workload_id for record in self.of_kind(SamplesRecord))
        lacks = {key: self.sweep.measure.processes - timed[key] for key in self.qualified()}
        return {key: lack for key, lack in lacks.items() if lack > 0}

    def patience_s(self, *cases: Case) -> float:
        """How long a worker may say nothing: what the sweep allows, and more where a compiler is at work."""
        return self.sweep.measure.timeout_s + max(schedule.COMPILE_PATIENCE_S[case.compile] for case in cases)

    def new_overheads(self) -> schedule.Overheads:
        """What is not sampling, before anything of it was seen."""
        qualified = self.qualified()
        compiled = Counter(key for key, cases in qualified.items() for case in cases if case.compile != "none")
        processes = {key: len(cases) if self.sweep.measure.isolate else 1 for key, cases in qualified.items()}
        guess_s, case_s = schedule.JOB_OVERHEAD_GUESS_S, schedule.COMPILED_CASE_GUESS_S
        return schedule.Overheads(
            job_s={key: guess_s * number + case_s * compiled[key] for key, number in processes.items()},
            guess_s=guess_s * statistics.fmean(processes.values() or [1]),
        )

    def new_server(self, *preload: str) -> ForkServer:
        """A fork server of this run, not started yet, with what its implementations need and ``preload`` loaded."""
        needed = [*preloads(case.impl for case in self.sweep.cases)]
        if self.jobs == JOBS_MODULE and any(case.compile != "none" for case in self.sweep.cases):
            needed.append(COMPILER)
        return ForkServer(self.interrupt, self.jobs, [*needed, *preload])

    def of_kind(self, kind: type[R]) -> list[R]:
        """The records of one kind, in order."""
        return [record for record in self.records if isinstance(record, kind)]

    def record(self, kind: type[R], **fields: Any) -> R:
        """Write a record to the log; it is on the disk when this returns."""
        record = kind(environment_hash=self.environment_hash, unix_time_s=time.time(), **fields)
        log.append(self.folder, record)
        self.records.append(record)  # type: ignore[arg-type]  # every kind of Record is one of AnyRecord
        return record

    def settle(self, case: Case, answer: Answer) -> None:
        """Record how a case ended, and tell the user where it did not end well."""
        known = self.outcomes.get(case.id)
        self.outcomes[case.id] = self.record(
            CaseRecord,
            case=case,
            case_id=case.id,
            status=answer.status,
            reason=answer.reason,
            semantics=semantics_of(case) if answer.qualified is None and known is None else (known or answer).semantics,
            exact=(known or answer).exact,
            relative_error=answer.relative_error,
            qualified=answer.qualified if answer.status is Status.OK else None,
        )
        if answer.status not in (Status.OK, Status.UNSUPPORTED):
            self.progress.note(f"{short_name(case)}: {answer.status}: {answer.reason}")

    def note(self, event: str, text: str = "") -> None:
        """Record something about the whole run; warnings and cuts are also said to the user."""
        self.record(NoteRecord, event=event, text=text, wall_s=self.elapsed_s)
        if event in ("warning", "budget_spent"):
            self.progress.note(text)

    def update(self, phase: str, current: str, left_s: float) -> None:
        """Show the user where the run is."""
        self.progress.update(phase=phase, current=current, done_s=self.elapsed_s, left_s=max(0.0, left_s))

    def make_files(self, server: ForkServer, workload: Workload, semantics: list[str]) -> Answer | None:
        """See to it that a workload's files are there, with the truth of ``semantics``; a failure is given back."""
        measure = self.sweep.measure
        silence_s = FILES_PATIENCE * measure.timeout_s
        if not self.scratch.holds(workload):
            try:
                folder = self.scratch.reserve(workload)
            except NoSpaceError as error:
                return Answer(status=Status.ERROR, reason=str(error))
            made = server.execute(MaterialiseJob(workload=workload, folder=str(folder)), silence_s)
            if made.status is not Status.OK:
                self.scratch.drop(workload.id)
                return _because("its weights and tokens could not be made", made)
        if semantics:
            max_flops = schedule.truth_max_flops(measure.budget_s, len(self.workloads()))
            folder = self.scratch.folder(workload)
            truth = TruthJob(workload=workload, folder=str(folder), semantics=semantics, max_flops=max_flops)
            computed = server.execute(truth, silence_s)
            if computed.status is not Status.OK:
                return _because("its truth could not be computed", computed)
        return None


def semantics_of(case: Case) -> str:
    """What a case's implementation computes, as far as that is known without importing it."""
    entry = ENTRIES.get(case.impl)
    return entry.semantics if entry else "moe"


def short_name(case: Case) -> str:
    """A case in a few words, for one line."""
    return f"{case.label} · {short_workload(case.workload)}"


def short_workload(workload: Workload) -> str:
    """A workload in a few words, for one line."""
    layer = workload.layer
    capacity = "" if layer.capacity_factor is None else f" C{layer.capacity_factor:g}"
    sizes = f"E{layer.num_experts} K{layer.top_k}{capacity} T{workload.num_tokens} D{layer.d_model} F{layer.d_ff}"
    return f"{sizes} {workload.dtype} {workload.direction}"


def _because(what: str, answer: Answer) -> Answer:
    return Answer(status=answer.status, reason=f"{what}: {answer.reason}")
