import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_jobs import arm
from fake_sweep import make_sweep
from forked_servers import fork_servers

from bench.config import Sweep
from bench.errors import RequestError, ResultsError
from bench.runner.fleet import Fleet
from bench.runner.interrupt import Interrupt
from bench.runner.progress import Silent
from bench.runner.scratch import Scratch
from bench.runner.session import Session
from bench.runner.sweep import RunOutcome, new_run_id, run_sweep, used_s
from bench.runner.timing import Timing
from bench.store.log import Run, find_runs, read_run
from bench.store.schema import (
    CaseRecord,
    CeilingRecord,
    ControlRecord,
    EnergyRecord,
    NoteRecord,
    SamplesRecord,
    Status,
)

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def scratch_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    parent = tmp_path / "scratch"
    parent.mkdir()
    monkeypatch.setenv("TMPDIR", str(parent))
    monkeypatch.setattr("tempfile.tempdir", None)
    return parent


@pytest.fixture
def _quick_servers(monkeypatch: pytest.MonkeyPatch, scratch_parent: Path) -> None:
    """Servers that start in no time: for what depends on how much of a budget is left."""
    fork_servers(monkeypatch, scratch_parent)


def run(sweep: Sweep, tmp_path: Path, resume: Path | None = None) -> RunOutcome:
    return run_sweep(
        sweep, results=tmp_path / "results", command=["fake"], progress=Silent(), resume=resume, jobs="fake_jobs"
    )


def events(run: Run) -> list[str]:
    return [record.event for record in run.records if isinstance(record, NoteRecord)]


def of_kind(run: Run, kind: type) -> list:  # type: ignore[type-arg]  # whatever kind is asked for
    return [record for record in run.records if isinstance(record, kind)]


def test_a_sweep_leaves_every_record_and_nothing_else(tmp_path: Path, scratch_parent: Path) -> None:
    sweep = make_sweep(["ok", "loop"])
    outcome = run(sweep, tmp_path)
    read = read_run(outcome.folder)
    assert outcome.statuses == {Status.OK: 4}
    assert events(read) == ["started", "finished"]
    assert not read.warnings
    assert Counter(r.case_id for r in of_kind(read, CaseRecord)) == {case.id: 1 for case in sweep.cases}
    samples = of_kind(read, SamplesRecord)
    assert sorted((r.workload_id, r.replicate) for r in samples) == sorted(
        (key, replicate) for key in {case.workload.id for case in sweep.cases} for replicate in range(3)
    )
    assert [r.replicate for r in samples] == sorted(r.replicate for r in samples), "replicate-major"
    assert [r.replicate for r in of_kind(read, ControlRecord)] == [0, 1, 2]
    assert Counter(r.what for r in of_kind(read, CeilingRecord)) == {"matmul": 3, "memory": 3, "cache": 3}
    assert {r.reason for r in of_kind(read, EnergyRecord)} == {"not_supported: this machine has no meter"}
    assert len(of_kind(read, EnergyRecord)) == 4
    assert not list(scratch_parent.iterdir())
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["measurements.jsonl", "run.json"]


def test_the_runner_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['x', sys.argv[1], '', 'ok']; "
        "import runpy; runpy.run_module('fake_sweep', run_name='__main__'); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_cases_cost_their_own_rows_only(tmp_path: Path) -> None:
    impls = ["ok", "crash@qualify", "exit_0@time", "raise@time", "garbage@qualify"]
    read = read_run(run(make_sweep(impls, 1), tmp_path).folder)
    last = {record.case.impl: record for record in of_kind(read, CaseRecord)}
    assert {impl: record.status for impl, record in last.items()} == {
        "ok": Status.OK,
        "crash@qualify": Status.CRASHED,
        "exit_0@time": Status.CRASHED,
        "raise@time": Status.ERROR,
        "garbage@qualify": Status.CRASHED,
    }
    assert last["exit_0@time"].reason.startswith("while it was timed: ")
    assert [set(r.arms) for r in of_kind(read, SamplesRecord)] == [{last["ok"].case_id}] * 3


@pytest.mark.usefixtures("_quick_servers")
def test_a_case_that_hangs_times_out(tmp_path: Path) -> None:
    outcome = run(
        make_sweep(["ok", "hang@qualify", "hang@time"], 1, timeout_s=8.0, budget_s=60.0, processes=10), tmp_path
    )
    assert outcome.statuses == {Status.OK: 1, Status.TIMEOUT: 2}


def test_impossible_combinations_are_rows_and_are_never_run(tmp_path: Path) -> None:
    outcome = run(make_sweep(["ok"], top_k=3), tmp_path)
    assert outcome.statuses == {Status.UNSUPPORTED: 2}
    assert not (tmp_path / "trace").exists()


def test_wide_intervals_get_more_processes_at_declared_looks_only(tmp_path: Path) -> None:
    narrow = read_run(run(make_sweep(["ok"], 1, processes=2, half_width=0.9), tmp_path).folder)
    assert len(of_kind(narrow, SamplesRecord)) == 2
    wide = read_run(run(make_sweep(["ok", "noisy"], 1, processes=2, half_width=1e-6), tmp_path).folder)
    assert len(of_kind(wide, SamplesRecord)) == 6


@pytest.mark.usefixtures("_quick_servers")
def test_the_requested_time_stays_within_the_budget(tmp_path: Path) -> None:
    for budget_s in (20.0, 200.0):
        run(make_sweep(["ok", "loop"], 3, budget_s=budget_s), tmp_path)
        asked = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
        total_s = sum(job.get("time_budget_s", 0.0) for job in asked)
        # These jobs do not use their time, so what they leave is given to the next replicates: 1 + 1/2 + 1/3.
        assert total_s <= budget_s * (1 + 1 / 2 + 1 / 3)
        assert total_s >= 0.5 * budget_s
        (tmp_path / "trace").unlink()


@pytest.mark.usefixtures("_quick_servers")
def test_a_spent_budget_ends_the_run_with_a_note(tmp_path: Path) -> None:
    """Every process takes 1.2 seconds, so twenty cannot fit, whatever the machine."""
    outcome = run(make_sweep(["slow@time", "loop"], 4, processes=20, budget_s=6), tmp_path)
    read = read_run(outcome.folder)
    assert events(read) == ["started", "budget_spent"]
    assert max(record.replicate for record in of_kind(read, SamplesRecord)) < 19
    note = of_kind(read, NoteRecord)[-1]
    assert "fewer than 20 processes" in note.text
    assert f"moebench run --resume {outcome.folder.name}" in note.text
    assert outcome.num_not_run == 0


@pytest.mark.usefixtures("_quick_servers")
def test_workloads_that_the_budget_does_not_reach_stay_open_until_it_is_renewed(tmp_path: Path) -> None:
    sweep = make_sweep(["slow@qualify", "ok"], 6, budget_s=3.0, processes=2)
    outcome = run(sweep, tmp_path)
    first = read_run(outcome.folder)
    assert events(first) == ["started", "budget_spent"]
    assert set(outcome.statuses) == {Status.OK}, "what was never started has not failed"
    assert 0 < outcome.num_not_run <= 12
    assert all(len(r.arms) == 2 for r in of_kind(first, SamplesRecord)), "workloads are timed whole"
    assert f"{outcome.num_not_run} of 12 cases were not run" in of_kind(first, NoteRecord)[-1].text
    for _ in range(20):
        if (outcome := run(sweep, tmp_path, resume=outcome.folder)).num_not_run == 0:
            break
    last = read_run(outcome.folder)
    assert last.records[: len(first.records)] == first.records
    assert events(last)[-1] == "finished"
    assert outcome.statuses == {Status.OK: 12}
    assert Counter(r.case_id for r in of_kind(last, CaseRecord)) == {case.id: 1 for case in sweep.cases}
    assert Counter((r.workload_id, r.replicate) for r in of_kind(last, SamplesRecord)) == {
        (case.workload.id, replicate): 1 for case in sweep.cases for replicate in range(2)
    }


def test_a_workload_is_timed_only_once_all_its_cases_are_settled(tmp_path: Path) -> None:
    """Else a case that is qualified after a resume would have no place in the rounds that were timed before."""
    # the first case alone takes longer than the budget: it is settled, if anything is, and its workload is not timed
    sweep = make_sweep(["slow@qualify", "slow@qualify"], 1, budget_s=0.2, processes=2)
    sweep = replace(sweep, cases=[*sweep.cases[:1], *make_sweep(["ok", "loop", "grouped"], 1).cases])
    outcome = run(sweep, tmp_path)
    assert outcome.num_not_run == 4
    assert not of_kind(read_run(outcome.folder), SamplesRecord)
    finished = replace(sweep, measure=sweep.measure.model_copy(update={"budget_s": 60.0}))
    read = read_run(run(finished, tmp_path, resume=outcome.folder).folder)
    assert [len(r.arms) for r in of_kind(read, SamplesRecord)] == [4, 4]


def test_a_resumed_run_is_looked_at_where_it_was_declared(tmp_path: Path) -> None:
    """Replicates beyond a look do not count at it, though they are there already."""
    sweep = make_sweep(["ok", "noisy"], 1, processes=2, half_width=1e-6)
    folder = run(sweep, tmp_path).folder
    session = Session(
        sweep, folder, "", Silent(), Interrupt(), Scratch(), "fake_jobs", records=read_run(folder).records
    )
    quiet = [
        r.model_copy(update={"arms": dict.fromkeys(r.arms, arm(0))}) for r in of_kind(read_run(folder), SamplesRecord)
    ]
    session.records = [r for r in session.records if not isinstance(r, SamplesRecord) or r.replicate >= 2] + quiet[:2]
    timing = Timing(session, Fleet(session.new_server, 1), lambda: 0.0)
    assert timing.still_wide() == [sweep.cases[0].workload.id]
    assert timing.still_wide(2) == []


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    sweep = make_sweep(["ok"])
    folder = run(sweep, tmp_path).folder
    before = (folder / "measurements.jsonl").read_bytes()
    assert run(sweep, tmp_path, resume=folder).statuses == {Status.OK: 2}
    assert (folder / "measurements.jsonl").read_bytes() == before


def test_another_sweep_cannot_resume_a_run(tmp_path: Path) -> None:
    folder = run(make_sweep(["ok"]), tmp_path).folder
    with pytest.raises(RequestError, match="another configuration"):
        run(make_sweep(["ok", "loop"]), tmp_path, resume=folder)


def test_results_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(ResultsError, match="choose another folder with --results"):
        run(make_sweep(["ok"]), tmp_path)


def test_the_record_of_the_command_names_no_folder(tmp_path: Path) -> None:
    command = ["moebench", "run", "/home/ada/sweep.toml", "--results=/home/ada/out", "--impl", "/home/ada/my.py:Mine"]
    outcome = run_sweep(
        make_sweep(["ok"], 1), results=tmp_path, command=command, progress=Silent(), resume=None, jobs="fake_jobs"
    )
    words = read_run(outcome.folder).info.command
    assert "ada" not in " ".join(words)
    assert words[-1] == "…/my.py:Mine"


def test_run_ids_sort_by_time_and_are_plain() -> None:
    assert new_run_id("My Sweeps/Big one!.toml").split("-", 2)[2].startswith("big-one-")


def test_used_time_leaves_out_the_pause_before_a_resume() -> None:
    def note(event: str, at_s: float) -> NoteRecord:
        return NoteRecord.model_validate({"environment_hash": "", "unix_time_s": at_s, "event": event})

    assert used_s([]) == 0
    assert used_s([note("started", 100), note("warning", 130), note("resumed", 1000), note("warning", 1005)]) == 35
    spent = [note("started", 100), note("budget_spent", 130)]
    assert used_s(spent) == 0, "the budget is renewed"
    assert used_s([*spent, note("resumed", 1000), note("warning", 1005)]) == 5


def start(tmp_path: Path, impls: str, resume: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "fake_sweep.py"), str(tmp_path / "results"), resume, impls]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers_of(tmp_path: Path) -> list[int]:
    """Processes that were started with this test's environment."""
    found = []
    mark = f"FAKE_JOBS_TRACE={tmp_path}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def none_left(tmp_path: Path, seconds: float = 60) -> bool:
    deadline_s = time.monotonic() + seconds
    while workers_of(tmp_path):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
def test_kills_of_whole_programs_lose_no_row_and_double_none(tmp_path: Path) -> None:
    """A few with the real programs; ``test_kills`` has a hundred."""
    chance = random.Random(20261122)
    impls = "ok,slow@time,crash@qualify,loop"
    resume, kills = "", 0
    known: list[bytes] = []
    for _ in range(60):
        process = start(tmp_path, impls, resume)
        try:
            out, err = process.communicate(timeout=chance.uniform(0.4, 1.6) if kills < 5 else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, err
            assert out.strip() == resume or not resume
            break
        assert none_left(tmp_path)
        runs = find_runs(tmp_path / "results")
        if runs and runs[0].info is not None:
            resume = str(runs[0].folder)
            now = [line for line in (runs[0].folder / "measurements.jsonl").read_bytes().split(b"\n")[:-1] if line]
            assert now[: len(known)] == known, "a finished record was lost"
            known = now
    folder = find_runs(tmp_path / "results")[0].folder
    read = read_run(folder)
    assert events(read)[-1] == "finished"
    assert kills >= 3
    assert not read.warnings
    sweep = make_sweep(impls.split(","))
    assert Counter(r.case_id for r in of_kind(read, CaseRecord)) == {case.id: 1 for case in sweep.cases}
    assert set(Counter((r.workload_id, r.replicate) for r in of_kind(read, SamplesRecord)).values()) == {1}
    assert len(of_kind(read, SamplesRecord)) == 6
    assert Counter(r.replicate for r in of_kind(read, ControlRecord)) == {0: 1, 1: 1, 2: 1}
    assert Counter(r.case_id for r in of_kind(read, EnergyRecord)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_its_message_says_how_to_go_on(
    tmp_path: Path, scratch_parent: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "ok,hang@qualify")
    wait_for(tmp_path / "trace", '"hang@qualify"')
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = find_runs(tmp_path / "results")[0].folder
    assert f"moebench run --resume {folder}" in err
    assert events(read_run(folder)) == ["started", "interrupted"]
    assert none_left(tmp_path)
    assert not list(scratch_parent.iterdir())


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    first = start(tmp_path, "slow@qualify,slow@time")
    wait_for(tmp_path / "trace", "qualify")
    second = start(tmp_path, "ok")
    assert first.wait(120) == 0
    assert second.wait(120) == 0
    first.communicate()
    second.communicate()
    runs = [read_run(found.folder).records for found in find_runs(tmp_path / "results")]
    spans = sorted((records[0].unix_time_s, records[-1].unix_time_s) for records in runs)
    assert spans[0][1] <= spans[1][0]


def wait_for(path: Path, text: str) -> None:
    deadline_s = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline_s, f"{text} did not appear in {path}"
        time.sleep(0.02)
