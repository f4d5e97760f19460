"""Two versions alive at once: both measure the same workloads in turns, so that what drifts drifts for both.

Fresh processes, one a version, are one replicate. In every round each version takes one sample, in random order; one
that does not sample sleeps in ``read``. A round gives a log-ratio, a replicate their median, and everything after that
is inference over replicates, as between the implementations of a run. On the shortest case a twin of BASE, in a third
process, takes part in the rounds: where it differs from BASE, something else than the code decides, and no verdict is
given.

Both versions read the same files: weights, tokens, forced routing. Both results are checked against the float64 truth
of the moebench that compares, and against each other, before anything is timed. What one version cannot do costs that
case only, with the reason.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Case
from bench.comparing.checking import Checker
from bench.comparing.model import Comparison
from bench.comparing.processes import VersionFailedError, VersionProcess
from bench.comparing.replicates import Row, conclude
from bench.comparing.versions import Version, open_version
from bench.config import Sweep, load_sweep
from bench.environment import machine_key
from bench.errors import RequestError, RunInterruptedError
from bench.runner import schedule
from bench.runner.interrupt import Interrupt, Interrupted
from bench.runner.lock import only_run
from bench.runner.progress import Progress
from bench.runner.protocol import VersionResult
from bench.runner.scratch import NoSpaceError, Scratch
from bench.runner.servers import ForkServer
from bench.store.schema import Status

PROCESSES = 12
WARMUP_ROUNDS = 3
MAX_ROUNDS = 200
# With more than one thread, those of the version that has just sampled spin for a while in wait of more work.
THREADS_REST_S = 0.01
# What starting a replicate takes until the first one has told: three interpreters with torch.
STARTING_S = 5.0
SIDES = (0, 1)
"""BASE and NEW."""
ARMS = (*SIDES, 2)
"""Both, and a twin of BASE."""
SIDE_OF = (0, 1, 0)


def compare_versions(
    base: str,
    new: str,
    source: str | Path,
    overrides: Mapping[str, object],
    *,
    processes: int | None = None,
    progress: Progress,
    results: Path = Path("results"),
) -> Comparison:
    """Interleave two versions over the cases of a sweep.

    Args:
        base: a git ref, a folder, a wheel, or ``FILE.py[:Class]``.
        new: the same.
        source: preset or TOML file.
        overrides: as for a run.
        processes: replicates; 12 by default.
        progress: who is told how far it is.
        results: where the lock lies that keeps two measurements apart.

    Raises:
        RequestError: there is no such version or sweep, or versions and sweep do not go together.
        RunInterruptedError: stopped by the user.
    """
    if processes is not None and processes < 2:
        raise RequestError(f"--processes should be at least 2, found {processes}")
    with Interrupt() as interrupt, Scratch() as scratch:
        try:
            versions = [open_version(text, scratch.other(name)) for text, name in ((base, "base"), (new, "new"))]
            interrupt.check()
            sweep = _sweep(versions, source, overrides)
            if sweep.measure.isolate:
                raise RequestError("--interleave keeps versions in processes of their own already: leave isolate out")
            device = sweep.cases[0].workload.device
            with only_run(results / machine_key(), device, interrupt, progress.note):
                duel = _Duel(versions, sweep, scratch, interrupt, progress, processes or PROCESSES)
                return duel.run()
        except Interrupted:
            raise RunInterruptedError("interrupted: a comparison that is not whole gives no verdict") from None


def _close_all(alive: list[VersionProcess]) -> None:
    for process in alive:
        process.close()


def _sweep(versions: Sequence[Version], source: str | Path, overrides: Mapping[str, object]) -> Sweep:
    files = [version.layer is not None for version in versions]
    if not all(files):
        sweep = load_sweep(source, overrides)
        if any(case.compile != "none" for case in sweep.cases):
            raise RequestError("--interleave compares layers as they are, not compiled: leave compile out")
        names = {case.impl for case in sweep.cases}
        if any(files) and len(names) > 1:
            raise RequestError(
                "a file is compared with one implementation of the other version: give its name to --impl"
            )
        return sweep
    if "workload.impls" in overrides:
        raise RequestError("two files say themselves what is compared: leave out --impl")
    return load_sweep(source, {**overrides, "workload.impls": "loop"})  # stands for the two, and is not built


class _Duel:
    def __init__(
        self,
        versions: Sequence[Version],
        sweep: Sweep,
        scratch: Scratch,
        interrupt: Interrupt,
        progress: Progress,
        replicates: int,
    ) -> None:
        self._versions = versions
        self._measure = sweep.measure
        self._scratch = scratch
        self._logs = scratch.other("logs")
        self._interrupt = interrupt
        self._progress = progress
        self._replicates = replicates
        self._random = random.Random(sweep.seed)
        self._start_s = time.monotonic()
        self._deadline_s = self._start_s + sweep.measure.budget_s
        num_workloads = len({case.workload.id for case in sweep.cases})
        self._max_flops = schedule.truth_max_flops(sweep.measure.budget_s, num_workloads)
        self._rows = [Row(case) for case in sweep.cases]
        self._control: list[float] = []
        self._caveats: list[str] = []
        self._starting_s = STARTING_S

    def run(self) -> Comparison:
        with ForkServer(self._interrupt) as server:
            self._checker = Checker(server, self._scratch, self._measure.timeout_s, self._max_flops)
            self._qualify()
            self._replicate()
        return conclude(self._versions, self._rows, self._control, self._caveats)

    # Both results are right, or the case is not timed.

    def _qualify(self) -> None:
        with self._processes(SIDES) as alive:
            for number, row in enumerate(self._rows):
                self._say("check", row.case, number / len(self._rows))
                if why := row.case.workload.layer.impossible:
                    self._fail_both(row, Status.UNSUPPORTED, why)
                    continue
                try:
                    self._check(row, alive)
                except NoSpaceError as error:
                    self._fail_both(row, Status.OUT_OF_MEMORY, str(error))
                except VersionFailedError as error:  # not of one version: of the files that both need
                    self._fail_both(row, error.status, error.reason)

    def _check(self, row: Row, alive: list[VersionProcess]) -> None:
        workload = row.case.workload
        folder = self._checker.files(workload)
        results = {}
        for side in SIDES:
            try:
                results[side] = self._result(row.case, alive[side], folder, self._logs / f"{side}.pt")
            except VersionFailedError as error:
                self._fail(row, side, error, alive)
        if not results:
            return
        file = self._checker.judge(workload, folder, list(results.values()))
        findings = json.loads(file.read_text())
        row.difference = findings["difference"]
        for side, checked in zip(results, findings["checked"], strict=True):
            row.error[side] = checked["relative_error"]
            if checked["fault"]:
                row.fail(side, Status.WRONG_RESULT, checked["fault"])
        if row.ok:
            try:
                known = alive[0].ask("calls")
                row.rough_s = known["sample_s"] / known["num_calls"]
            except VersionFailedError as error:
                self._fail(row, 0, error, alive)

    def _result(self, case: Case, process: VersionProcess, folder: Path, into: Path) -> VersionResult:
        known = self._open(process, case, folder)
        truth = self._checker.truth(case.workload, folder, str(known["semantics"]))
        process.ask("result", truth=truth, into=str(into))
        process.require_unchanged()
        return VersionResult(file=str(into), **known)

    # Fresh processes take turns: BASE, NEW, and on the shortest case BASE's twin.

    def _replicate(self) -> None:
        for replicate in range(self._replicates):
            rows = [row for row in self._rows if row.ok]
            if not rows:
                return
            if time.monotonic() >= self._deadline_s and replicate:
                self._caveats.append(
                    f"The budget was spent after {replicate} of {self._replicates} replicates; raise "
                    "--budget or compare fewer cases."
                )
                return
            shortest = min(rows, key=lambda row: row.rough_s)
            self._random.shuffle(rows)
            begun_s = time.monotonic()
            with self._processes(ARMS) as alive:
                for number, row in enumerate(rows):
                    self._say("time", row.case, (replicate + number / len(rows)) / self._replicates)
                    arms = ARMS if row is shortest else SIDES
                    calls = self._open_all(row, alive, arms)
                    if number == 0:
                        self._starting_s = time.monotonic() - begun_s
                    left = self._replicates - replicate
                    left_s = self._deadline_s - time.monotonic() - (left - 1) * self._starting_s
                    if calls:
                        self._time(row, alive, arms, calls, max(0.0, left_s) / (left * len(rows) - number))

    def _open_all(self, row: Row, alive: list[VersionProcess], arms: Sequence[int]) -> int:
        """Have all build the case's layer and warm up; gives the calls in a sample, 0 where one cannot."""
        num_calls, arm = 1, 0
        try:
            folder = self._checker.files(row.case.workload)
            for arm in self._order(arms):
                self._open(alive[arm], row.case, folder)
                num_calls = max(num_calls, int(alive[arm].ask("calls")["num_calls"]))
        except VersionFailedError as error:
            self._fail(row, arm, error, alive)
            return 0
        except NoSpaceError as error:
            self._fail_both(row, Status.OUT_OF_MEMORY, str(error))
            return 0
        return num_calls

    def _time(self, row: Row, alive: list[VersionProcess], arms: Sequence[int], num_calls: int, share_s: float) -> None:
        arm = 0
        samples: dict[int, list[float]] = {arm: [] for arm in arms}
        many_threads = row.case.workload.threads > 1 and row.case.workload.device == "cpu"
        rest_s = THREADS_REST_S if many_threads else 0.0
        try:
            end_s = time.monotonic() + share_s
            while (done := len(samples[0])) < WARMUP_ROUNDS + MAX_ROUNDS:
                if done >= WARMUP_ROUNDS + self._measure.min_rounds and time.monotonic() >= end_s:
                    break
                for arm in self._order(arms):
                    samples[arm].append(float(alive[arm].ask("sample", num_calls=num_calls)["latency_s"]))
                    self._interrupt.sleep(rest_s)
            for arm in arms:
                alive[arm].require_unchanged()
        except VersionFailedError as error:
            self._fail(row, arm, error, alive)
            return
        base, *others = (np.array(samples[arm][WARMUP_ROUNDS:]) for arm in arms)
        changes = [float(np.median(np.log(other) - np.log(base))) for other in others]
        row.units.append(changes[0])
        self._control += changes[1:]
        for side, found in enumerate((base, others[0])):
            row.medians[side].append(float(np.median(found)))

    def _order(self, arms: Sequence[int]) -> list[int]:
        return self._random.sample(arms, len(arms))

    def _open(self, process: VersionProcess, case: Case, folder: Path) -> dict[str, Any]:
        workload = case.workload
        return process.ask(
            "open",
            folder=str(folder),
            impl=process.version.implementation(case.impl),
            layer=workload.lasting()["layer"],
            dtype=workload.dtype,
            device=workload.device,
            direction=workload.direction,
            threads=workload.threads,
            cache=workload.cache,
        )

    @contextmanager
    def _processes(self, arms: Sequence[int]) -> Iterator[list[VersionProcess]]:
        """A process an arm, started in random order; one that died meanwhile has been replaced."""
        alive: list[VersionProcess] = []
        with ExitStack() as stack:
            # whatever is in the list when this ends is closed, also what replaced a dead one
            stack.callback(_close_all, alive)
            started = {}
            for arm in self._order(arms):
                started[arm] = self._start(arm)
                stack.callback(started[arm].close)
            alive += [started[arm] for arm in arms]
            yield alive

    def _start(self, arm: int) -> VersionProcess:
        version, log = self._versions[SIDE_OF[arm]], self._logs / f"{arm}.log"
        return VersionProcess(version, log, self._interrupt, self._measure.timeout_s)

    def _fail(self, row: Row, arm: int, error: VersionFailedError, alive: list[VersionProcess]) -> None:
        row.fail(SIDE_OF[arm], error.status, error.reason)
        if error.dead:
            alive[arm].close()
            alive[arm] = self._start(arm)

    def _fail_both(self, row: Row, status: Status, reason: str) -> None:
        for side in SIDES:
            row.fail(side, status, reason)

    def _say(self, phase: str, case: Case, share: float) -> None:
        now_s = time.monotonic()
        done_s = now_s - self._start_s
        left_s = max(0.0, self._deadline_s - now_s)
        current = f"{case.impl}, {case.workload.num_tokens} tokens ({share:.0%})"
        self._progress.update(phase=phase, current=current, done_s=done_s, left_s=left_s)
