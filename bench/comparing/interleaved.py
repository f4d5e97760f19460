"""Two versions alive at once: both measure the same workloads in turns, so that what drifts drifts for both.

A pair of fresh processes, one a version, is one replicate. In every round each version takes one sample, in random
order; the one that does not sample sleeps in ``read``. A round gives a log-ratio, a replicate their median, and
everything after that is inference over replicates, as between the implementations of a run.

Both versions read the same files: weights, tokens, forced routing. Both results are checked against the float64 truth
of the moebench that compares, and against each other, before anything is timed. What one version cannot do costs that
case only, with the reason.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from bench.cases import Case, Workload
from bench.comparing.model import Comparison
from bench.comparing.processes import VersionFailedError, VersionProcess
from bench.comparing.replicates import Row, conclude
from bench.comparing.versions import Version, open_version
from bench.config import Sweep, load_sweep
from bench.environment import machine_key
from bench.errors import MoebenchError, RequestError, RunInterruptedError
from bench.runner import schedule
from bench.runner.interrupt import Interrupt, Interrupted
from bench.runner.lock import only_run
from bench.runner.progress import Progress
from bench.runner.protocol import MaterialiseJob, TruthJob
from bench.runner.scratch import NoSpaceError, Scratch
from bench.runner.servers import ForkServer
from bench.store.schema import Status

PROCESSES = 12
WARMUP_ROUNDS = 3
MAX_ROUNDS = 200
REFEREE_TIMEOUT_S = 600.0
# With more than one thread, those of the version that has just sampled spin for a while in wait of more work.
THREADS_REST_S = 0.01
# What starting a pair takes until the first one has told: two interpreters with torch.
STARTING_S = 5.0
NAMES = ("BASE", "NEW")


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
            sweep = _sweep(versions, source, overrides)
            device = sweep.cases[0].workload.device
            with only_run(results / machine_key(), device, interrupt, progress.note):
                duel = _Duel(versions, sweep, scratch, interrupt, progress, processes or PROCESSES)
                return duel.run()
        except Interrupted:
            raise RunInterruptedError("interrupted: a comparison that is not whole gives no verdict") from None


def _close_all(pair: list[VersionProcess]) -> None:
    for process in pair:
        process.close()


def _sweep(versions: Sequence[Version], source: str | Path, overrides: Mapping[str, object]) -> Sweep:
    files = [version.layer is not None for version in versions]
    if not all(files):
        sweep = load_sweep(source, overrides)
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
        processes: int,
    ) -> None:
        self._versions = versions
        self._measure = sweep.measure
        self._scratch = scratch
        self._logs = scratch.other("logs")
        self._interrupt = interrupt
        self._progress = progress
        self._processes = processes
        self._random = random.Random(sweep.seed)
        self._start_s = time.monotonic()
        self._deadline_s = self._start_s + sweep.measure.budget_s
        num_workloads = len({case.workload.id for case in sweep.cases})
        self._max_flops = schedule.truth_max_flops(sweep.measure.budget_s, num_workloads)
        self._rows = [Row(case) for case in sweep.cases]
        self._caveats: list[str] = []
        self._starting_s = STARTING_S

    def run(self) -> Comparison:
        with ForkServer(self._interrupt) as self._server:
            self._qualify()
            self._replicate()
        return conclude(self._versions, self._rows, self._caveats)

    # Both results are right, or the case is not timed.

    def _qualify(self) -> None:
        with self._pair() as pair:
            for number, row in enumerate(self._rows):
                self._say("check", row.case, number / len(self._rows))
                if why := row.case.workload.layer.impossible:
                    for side in (0, 1):
                        row.fail(side, Status.UNSUPPORTED, why)
                    continue
                self._check(row, pair)

    def _check(self, row: Row, pair: list[VersionProcess]) -> None:
        workload = row.case.workload
        try:
            folder = self._files(workload)
        except NoSpaceError as error:
            self._fail_both(row, Status.OUT_OF_MEMORY, str(error))
            return
        except VersionFailedError as error:
            self._fail_both(row, error.status, error.reason)
            return
        results = []
        for side in (0, 1):
            try:
                known = self._open(pair[side], row.case, folder)
                semantics = str(known["semantics"])
                self._make_truth(workload, folder, semantics)
                into = self._logs / f"{side}.pt"
                pair[side].ask("result", folder=str(folder), truth=f"truth-{quote(semantics, safe='')}", into=str(into))
                results.append((side, {"file": str(into), **known}))
            except VersionFailedError as error:
                self._fail(row, side, error, pair)
        if not results:
            return
        findings = self._referee(folder, [result for _, result in results])
        row.difference = findings["difference"]
        for (side, _), checked in zip(results, findings["checked"], strict=True):
            row.error[side] = checked["relative_error"]
            if checked["fault"]:
                row.fail(side, Status.WRONG_RESULT, checked["fault"])

    def _files(self, workload: Workload) -> Path:
        if self._scratch.holds(workload):
            return self._scratch.folder(workload)
        folder = self._scratch.reserve(workload)
        answer = self._server.execute(MaterialiseJob(workload=workload, folder=str(folder)), self._measure.timeout_s)
        if answer.status is not Status.OK:
            raise VersionFailedError(answer.status, answer.reason, dead=False)
        return folder

    def _make_truth(self, workload: Workload, folder: Path, semantics: str) -> None:
        job = TruthJob(workload=workload, folder=str(folder), semantics=[semantics], max_flops=self._max_flops)
        answer = self._server.execute(job, max(self._measure.timeout_s, REFEREE_TIMEOUT_S))
        if answer.status is not Status.OK:
            raise VersionFailedError(answer.status, f"its truth could not be computed: {answer.reason}", dead=False)

    def _referee(self, folder: Path, results: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bench.comparing.referee"],
            input=json.dumps({"folder": str(folder), "results": results}).encode(),
            capture_output=True,
            timeout=REFEREE_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            raise MoebenchError(f"the results could not be checked: {words[-1] if words else 'no reason given'}")
        findings: dict[str, Any] = json.loads(done.stdout)
        return findings

    # Fresh pairs of processes take turns.

    def _replicate(self) -> None:
        for replicate in range(self._processes):
            rows = [row for row in self._rows if row.ok]
            if not rows:
                return
            if time.monotonic() >= self._deadline_s and replicate:
                self._caveats.append(
                    f"The budget was spent after {replicate} of {self._processes} pairs of processes; raise "
                    "--budget or compare fewer cases."
                )
                return
            self._random.shuffle(rows)
            begun_s = time.monotonic()
            with self._pair() as pair:
                for number, row in enumerate(rows):
                    self._say("time", row.case, (replicate + number / len(rows)) / self._processes)
                    calls = self._open_both(row, pair)
                    if number == 0:
                        self._starting_s = time.monotonic() - begun_s
                    left = self._processes - replicate
                    left_s = self._deadline_s - time.monotonic() - (left - 1) * self._starting_s
                    if calls:
                        self._time(row, pair, calls, max(0.0, left_s) / (left * len(rows) - number))

    def _open_both(self, row: Row, pair: list[VersionProcess]) -> int:
        """Have both build the case's layer and warm up; gives the calls in a sample, 0 where one cannot."""
        num_calls, side = 1, 0
        try:
            folder = self._files(row.case.workload)
            for side in self._order():
                self._open(pair[side], row.case, folder)
                num_calls = max(num_calls, int(pair[side].ask("calls")["num_calls"]))
        except VersionFailedError as error:
            self._fail(row, side, error, pair)
            return 0
        except NoSpaceError as error:
            self._fail_both(row, Status.OUT_OF_MEMORY, str(error))
            return 0
        return num_calls

    def _time(self, row: Row, pair: list[VersionProcess], num_calls: int, share_s: float) -> None:
        side = 0
        samples: list[list[float]] = [[], []]
        many_threads = row.case.workload.threads > 1 and row.case.workload.device == "cpu"
        rest_s = THREADS_REST_S if many_threads else 0.0
        try:
            end_s = time.monotonic() + share_s
            while (done := len(samples[0])) < WARMUP_ROUNDS + MAX_ROUNDS:
                if done >= WARMUP_ROUNDS + self._measure.min_rounds and time.monotonic() >= end_s:
                    break
                for side in self._order():
                    samples[side].append(float(pair[side].ask("sample", num_calls=num_calls)["latency_s"]))
                    self._interrupt.sleep(rest_s)
        except VersionFailedError as error:
            self._fail(row, side, error, pair)
            return
        base, new = (np.array(found[WARMUP_ROUNDS:]) for found in samples)
        row.units.append(float(np.median(np.log(new) - np.log(base))))
        for side, found in enumerate((base, new)):
            row.medians[side].append(float(np.median(found)))

    def _order(self) -> list[int]:
        return self._random.sample((0, 1), 2)

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
    def _pair(self) -> Iterator[list[VersionProcess]]:
        """Both versions' processes, started in random order; a process that died meanwhile has been replaced."""
        pair: list[VersionProcess] = []
        with ExitStack() as stack:
            # whatever is in the list when this ends is closed, also what replaced a dead one
            stack.callback(_close_all, pair)
            started = {side: self._start(side) for side in self._order()}
            pair += [started[side] for side in (0, 1)]
            yield pair

    def _start(self, side: int) -> VersionProcess:
        return VersionProcess(
            self._versions[side], self._logs / f"{side}.log", self._interrupt, self._measure.timeout_s
        )

    def _fail(self, row: Row, side: int, error: VersionFailedError, pair: list[VersionProcess]) -> None:
        row.fail(side, error.status, error.reason)
        if error.dead:
            pair[side].close()
            pair[side] = self._start(side)

    def _fail_both(self, row: Row, status: Status, reason: str) -> None:
        for side in (0, 1):
            row.fail(side, status, reason)

    def _say(self, phase: str, case: Case, share: float) -> None:
        now_s = time.monotonic()
        done_s = now_s - self._start_s
        left_s = max(0.0, self._deadline_s - now_s)
        current = f"{case.impl}, {case.workload.num_tokens} tokens ({share:.0%})"
        self._progress.update(phase=phase, current=current, done_s=done_s, left_s=left_s)
