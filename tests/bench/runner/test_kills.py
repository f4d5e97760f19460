"""A hundred SIGKILLs of the runner, each resumed: no finished record is lost, none is doubled, none is wrong.

Some lives are ended by the clock. The others end themselves where it hurts most: in the middle of a record's write,
between a write and its sync, while a torn log is mended, while a run's folder is made.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from fake_jobs import QUALIFIED, arm
from fake_sweep import make_sweep
from forked_servers import Orphans, fork_servers

from bench.runner.progress import Silent
from bench.runner.scratch import remove_stale
from bench.runner.sweep import run_sweep
from bench.store.log import Run, find_runs, read_run
from bench.store.schema import CaseRecord, CeilingRecord, ControlRecord, EnergyRecord, NoteRecord, SamplesRecord, Status

NUM_KILLS = 100
SWEEP = make_sweep(["ok", "raise@time", "crash@qualify", "loop"], 2, processes=3)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead processes do not get here")


def until_call(number: int, call: Callable[..., object], *, halfway: bool) -> Callable[..., object]:
    """``call``, but the process dies instead of its ``number``-th; ``halfway`` writes half of the data first."""
    count = 0

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == number:
            if halfway:
                file, data = arguments
                assert isinstance(data, bytes)
                call(file, data[: len(data) // 2])
            die()
        return call(*arguments)

    return counted


def live(results: Path, resume: Path | None, chance: random.Random, whole_life_s: float) -> bool:
    """Run in a process of its own that may be killed at a random moment; True where it came to its end."""
    how = chance.choice(["clock", "fsync", "write"])
    number = 1 if chance.random() < 0.3 else chance.randint(2, 16)
    life_s = chance.uniform(0.0, 0.5) * whole_life_s
    child = os.fork()
    if child == 0:
        try:
            if how == "fsync":
                os.fsync = until_call(number, os.fsync, halfway=False)  # type: ignore[assignment]  # the same arguments
            elif how == "write":
                os.write = until_call(number, os.write, halfway=True)  # type: ignore[assignment]  # likewise
            run_sweep(SWEEP, results=results, command=["fake"], progress=Silent(), resume=resume, jobs="fake_jobs")
            os._exit(0)
        finally:
            os._exit(1)
    if how == "clock":
        time.sleep(life_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status == 0


@pytest.mark.slow
def test_a_hundred_kills_lose_no_record_and_double_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orphans: Orphans
) -> None:
    fork_servers(monkeypatch, tmp_path)
    chance = random.Random(20261122)
    began_s = time.monotonic()
    run_sweep(SWEEP, results=tmp_path / "undisturbed", command=["fake"], progress=Silent(), jobs="fake_jobs")
    whole_life_s = time.monotonic() - began_s
    kills, num_torn, killed_after = 0, 0, Counter[str]()
    for number in range(NUM_KILLS):
        results, folder, known = tmp_path / f"results-{number}", None, b""
        while not live(results, folder, chance, whole_life_s):
            kills += 1
            runs = [run.folder for run in find_runs(results) if run.info is not None]
            assert len(runs) <= 1
            if runs:
                folder = runs[0]
                log = (folder / "measurements.jsonl").read_bytes()
                whole = log[: log.rfind(b"\n") + 1]
                assert whole.startswith(known), "a finished record was lost"
                known, num_torn = whole, num_torn + (len(whole) < len(log))
                records = read_run(folder).records
                killed_after[records[-1].kind if records else "nothing"] += 1
        check(read_run(folder or find_runs(results)[0].folder))
        assert orphans.all_end()
        if kills >= NUM_KILLS:
            break
    monkeypatch.setattr("bench.runner.scratch.STALE_AFTER_S", 0.0)
    assert remove_stale(tmp_path), "killed runs leave their files"
    assert not list(tmp_path.glob("moebench-scratch-*")), "and the next one deletes them"
    assert kills >= NUM_KILLS
    assert num_torn >= 10
    assert set(killed_after) == {"nothing", "note", "case", "ceiling", "control", "samples", "energy"}


def check(run: Run) -> None:
    """The log is that of a run which nobody disturbed."""
    assert not run.warnings
    cases = [r for r in run.records if isinstance(r, CaseRecord)]
    samples = [r for r in run.records if isinstance(r, SamplesRecord)]
    controls = [r for r in run.records if isinstance(r, ControlRecord)]
    ceilings = [r for r in run.records if isinstance(r, CeilingRecord)]
    energy = [r for r in run.records if isinstance(r, EnergyRecord)]
    notes = [r for r in run.records if isinstance(r, NoteRecord)]
    ok = {case.id for case in SWEEP.cases if case.impl in ("ok", "loop")}
    # raise@time qualifies first, and fails when it is timed: that is its second record
    qualify = {case.id: 1 + (case.impl == "raise@time") for case in SWEEP.cases}
    assert Counter(r.case_id for r in cases) == qualify
    assert {r.case_id for r in {r.case_id: r for r in cases}.values() if r.status is Status.OK} == ok
    assert all(r.qualified == QUALIFIED for r in cases if r.status is Status.OK)
    workloads = {case.workload.id for case in SWEEP.cases}
    assert Counter((r.workload_id, r.replicate) for r in samples) == {(w, p): 1 for w in workloads for p in range(3)}
    assert {name for r in samples for name in r.arms} == ok
    assert all(list(r.arms.values()) == [arm(0), arm(1)] for r in samples)
    assert Counter(r.replicate for r in controls) == {0: 1, 1: 1, 2: 1}
    assert Counter((r.what, r.replicate) for r in ceilings) == {
        (what, p): 1 for what in ("matmul", "memory", "cache") for p in range(3)
    }
    # who is the first to be asked for a meter may still fail later
    measured = Counter(r.case_id for r in energy)
    assert (set(measured) >= ok, set(measured.values())) == (True, {1})
    events = [note.event for note in notes]
    assert (events.count("finished"), events[-1]) == (1, "finished")
