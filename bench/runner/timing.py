"""Timing: replicate after replicate, each in the processes of a fork server of its own.

Within a replicate every workload has its turn, in a random order drawn from the sweep's seed, so that a drift of the
machine does not favour one of them. A workload whose interval is narrow enough at a declared look is done.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

from bench.analysis.statistics import half_widths
from bench.cases import Case, Workload
from bench.runner import schedule
from bench.runner.ceilings import ceilings_of, measure_ceilings
from bench.runner.fleet import Fleet
from bench.runner.isolation import one_each
from bench.runner.protocol import CONTROL_ARMS, Answer, ControlJob, TimeJob
from bench.runner.servers import ForkServer
from bench.runner.session import MIN_ROUND_S, Session, short_workload
from bench.store.schema import ControlRecord, SamplesRecord, Status

MAX_FAILURES = 3


class BudgetSpentError(Exception):
    """The next job would pass the end of the budget."""


class Timing:
    """Times all qualified cases of a run.

    Args:
        session: the run.
        fleet: where the servers come from.
        reserve_s: seconds of the budget that must be left at the end.
    """

    def __init__(self, session: Session, fleet: Fleet, reserve_s: Callable[[], float]) -> None:
        self._session = session
        self._fleet = fleet
        self._reserve_s = reserve_s
        self._measure = session.sweep.measure
        self._workloads = session.workloads()
        self._overheads = session.new_overheads()
        self._round_s = session.rough_rounds_s()
        self._first_shares: dict[str, float] = {}
        self._failures: Counter[str] = Counter()

    def run(self) -> None:
        """Time until the intervals are narrow enough or the budget is spent."""
        looks = schedule.looks(self._measure.processes)
        done = 0
        # A budget that ends within a replicate ends the run: what was measured until then is kept.
        with contextlib.suppress(BudgetSpentError):
            for look in looks:
                active = self.still_wide(done) if done else list(self._round_s)
                if not active:
                    return
                first = look == looks[0]
                available_s = self._available_s() * (schedule.FIRST_LOOK_SHARE if first else 1.0)
                deadline_s = time.monotonic() + available_s
                for replicate in range(done, look):
                    self._replicate(replicate, active, look, deadline_s)
                done = look

    def missing_processes(self) -> dict[str, int]:
        """Of the workloads that were not given up, in how many processes each was not timed yet."""
        lacks = self._session.missing_processes()
        return {key: lack for key, lack in lacks.items() if self._failures[key] == 0}

    def _available_s(self) -> float:
        return self._session.left_s - self._reserve_s()

    def still_wide(self, replicates: int | None = None) -> list[str]:
        """The workloads whose widest interval is not narrow enough yet, judged by the first ``replicates``.

        A resumed run has later ones too; looking at those early would be a look that was not declared.
        """
        samples = [
            record
            for record in self._session.of_kind(SamplesRecord)
            if replicates is None or record.replicate < replicates
        ]
        wide = []
        for workload_id, cases in self._session.qualified().items():
            # Samples of a case that has failed since no longer count.
            ids = {case.id for case in cases}
            widths = half_widths(
                [
                    record.model_copy(update={"arms": {name: arm for name, arm in record.arms.items() if name in ids}})
                    for record in samples
                    if record.workload_id == workload_id
                ]
            )
            if (
                self._failures[workload_id] < MAX_FAILURES
                and max(widths.values(), default=0) > self._measure.half_width
            ):
                wide.append(workload_id)
        return wide

    def _replicate(self, replicate: int, active: Sequence[str], look: int, deadline_s: float) -> None:
        samples = {(r.workload_id, r.replicate) for r in self._session.of_kind(SamplesRecord)}
        ready = self._session.qualified()
        todo = [key for key in active if key in ready and (key, replicate) not in samples]
        todo = [key for key in todo if self._failures[key] < MAX_FAILURES]
        if not todo:
            return
        if self._overheads.start_s > self._available_s():
            raise BudgetSpentError
        random.Random(f"{self._session.sweep.seed}/{replicate}").shuffle(todo)
        start_s = time.monotonic()
        with self._fleet.take(look - replicate) as server:
            self._overheads.saw_start(time.monotonic() - start_s)
            if replicate < schedule.NUM_CEILING_REPLICATES:
                self._ceilings(server, replicate)
            shares = schedule.shares(
                deadline_s - time.monotonic() + self._overheads.start_s,
                look - replicate,
                {key: self._round_s[key] for key in todo},
                self._measure.min_rounds,
                self._overheads,
            )
            if look > self._measure.processes:  # later looks want more processes like the first, not other ones
                shares = {key: self._first_shares.get(key) or self._earlier_share(key) for key in todo}
            else:
                self._first_shares |= shares
            self._control(server, replicate, sum(shares.values()))
            for key in todo:
                current = f"{short_workload(self._workloads[key])} · process {replicate + 1} of {look}"
                self._session.update("time", current, deadline_s - time.monotonic() + self._reserve_s())
                self._time_workload(server, replicate, self._workloads[key], ready[key], shares[key])

    def _time_workload(
        self, server: ForkServer, replicate: int, workload: Workload, cases: Sequence[Case], share_s: float
    ) -> None:
        remaining = list(cases)
        order_seed = random.Random(f"{self._session.sweep.seed}/{replicate}/{workload.id}").getrandbits(31)
        while remaining:
            if share_s + self._overheads.job(workload.id) > self._available_s():
                raise BudgetSpentError
            failed = self._session.make_files(server, workload, [])
            if failed is not None:
                self._uncharged(workload, failed)
                return
            start_s = time.monotonic()
            if self._measure.isolate:
                answer = self._one_process_each(server, remaining, order_seed, share_s)
            else:
                answer = self._one_process(server, remaining, order_seed, share_s, schedule.overrun_s(share_s))
            wall_s = time.monotonic() - start_s
            if answer.status is Status.OK and answer.arms is not None:
                self._session.record(
                    SamplesRecord,
                    workload_id=workload.id,
                    replicate=replicate,
                    arms=answer.arms,
                    order_seed=order_seed,
                    wall_s=wall_s,
                    disturbance=answer.disturbance,
                    isolated=self._measure.isolate,
                )
                self._overheads.saw_job(workload.id, wall_s, share_s)
                seen_s = sum(statistics.median(a.latency_s or [0.0]) * a.inner_calls for a in answer.arms.values())
                self._round_s[workload.id] = max(MIN_ROUND_S, seen_s)
                return
            charged = [case for case in remaining if case.id == answer.case_id]
            if not charged:
                self._uncharged(workload, answer)
                return
            reason = f"while it was timed: {answer.reason}"
            self._session.settle(charged[0], Answer(status=answer.status, reason=reason))
            remaining.remove(charged[0])

    def _one_process(
        self, server: ForkServer, cases: Sequence[Case], order_seed: int, share_s: float, overrun_s: float
    ) -> Answer:
        job = TimeJob(
            cases=list(cases),
            folder=str(self._session.scratch.folder(cases[0].workload)),
            order_seed=order_seed,
            time_budget_s=share_s,
            overrun_s=overrun_s,
            min_rounds=self._measure.min_rounds,
        )
        return server.execute(job, self._session.patience_s(*cases) + share_s)

    def _one_process_each(self, server: ForkServer, cases: Sequence[Case], order_seed: int, share_s: float) -> Answer:
        by_id = {case.id: case for case in cases}
        shares_s = schedule.divide(share_s, self._session.rough_calls_s(cases), self._measure.min_rounds)
        overrun_s = schedule.overrun_s(share_s) / len(cases)

        def ask(name: str) -> Answer:
            return self._one_process(server, [by_id[name]], order_seed, shares_s[name], overrun_s)

        return one_each(list(by_id), ask, order_seed)

    def _earlier_share(self, key: str) -> float:
        """Seconds that a workload had in the processes of an earlier session."""
        return statistics.median(r.wall_s for r in self._session.of_kind(SamplesRecord) if r.workload_id == key)

    def _uncharged(self, workload: Workload, answer: Answer) -> None:
        """A failure that is no single case's fault costs the workload this replicate."""
        self._failures[workload.id] += 1
        given_up = "; it is given up" if self._failures[workload.id] == MAX_FAILURES else ""
        name = short_workload(workload)
        self._session.note("warning", f"{name} was not timed in one process: {answer.reason}{given_up}")

    def _control(self, server: ForkServer, replicate: int, sampling_s: float) -> None:
        if any(record.replicate == replicate for record in self._session.of_kind(ControlRecord)):
            return
        share_s = schedule.control_share(sampling_s)
        if share_s > self._available_s():
            raise BudgetSpentError
        place = self._session.sweep.cases[0].workload
        start_s = time.monotonic()
        job = ControlJob(
            device=place.device,
            threads=place.threads,
            planted_slowdown=self._measure.planted_slowdown,
            order_seed=random.Random(f"{self._session.sweep.seed}/{replicate}/control").getrandbits(31),
            time_budget_s=share_s,
        )
        silence_s = self._measure.timeout_s + share_s
        if self._measure.isolate:
            part_s = share_s / len(CONTROL_ARMS)

            def ask(arm: str) -> Answer:
                return server.execute(job.model_copy(update={"arm": arm, "time_budget_s": part_s}), silence_s)

            answer = one_each(CONTROL_ARMS, ask, job.order_seed)
        else:
            answer = server.execute(job, silence_s)
        if answer.status is not Status.OK:
            self._session.note("warning", f"the self-test failed in one process: {answer.reason}")
            return
        self._session.record(
            ControlRecord,
            replicate=replicate,
            arms=answer.arms,
            planted_slowdown=self._measure.planted_slowdown,
            wall_s=time.monotonic() - start_s,
            device=place.device,
            threads=place.threads,
            isolated=self._measure.isolate,
        )

    def _ceilings(self, server: ForkServer, replicate: int) -> None:
        wanted = ceilings_of(self._workloads[key] for key in self._session.qualified())
        share_s = schedule.ceiling_share(self._measure.budget_s, len(wanted) * schedule.NUM_CEILING_REPLICATES)
        measure_ceilings(self._session, server, replicate, wanted, share_s, self._available_s)
