"""The pass of a sweep that checks limits: what fails costs its own check only, and a resumed run repeats nothing."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import make_sweep

from bench.analysis.divisions import Limit
from bench.analysis.interval import Estimate
from bench.analysis.levers import Agreement, LimitCheck
from bench.config import Sweep
from bench.runner.limit_checks import other_threads
from bench.runner.progress import Silent
from bench.runner.schedule import NUM_CEILING_REPLICATES
from bench.runner.sweep import run_sweep
from bench.store.log import read_run
from bench.store.schema import CaseRecord, CeilingRecord, LimitCheckRecord

PROCESSES = 2


def checked_sweep(impls: list[str]) -> Sweep:
    sweep = make_sweep(impls, 1)
    return replace(sweep, measure=sweep.measure.model_copy(update={"profile": True, "check_limits": True}))


def run(sweep: Sweep, tmp_path: Path, resume: Path | None = None) -> Path:
    return run_sweep(
        sweep, results=tmp_path / "results", command=["fake"], progress=Silent(), resume=resume, jobs="fake_jobs"
    ).folder


def checks_of(folder: Path) -> list[tuple[str, int, str]]:
    records = read_run(folder).records
    names = {record.case_id: record.case.impl for record in records if isinstance(record, CaseRecord)}
    found = [record for record in records if isinstance(record, LimitCheckRecord)]
    return sorted((names[record.case_id], record.replicate, record.reason.partition(":")[0]) for record in found)


@pytest.fixture(autouse=True)
def _few_processes_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("bench.runner.limit_checks.LOOKS", (PROCESSES,))


def test_every_profiled_case_is_checked_once_a_process_and_a_resumed_run_repeats_nothing(tmp_path: Path) -> None:
    sweep = checked_sweep(["ok", "crash@check", "crash@profile"])
    folder = run(sweep, tmp_path)
    wanted = [("crash@check", 0, "crashed"), ("crash@check", 1, "crashed"), ("ok", 0, ""), ("ok", 1, "")]
    assert checks_of(folder) == wanted
    log = folder / "measurements.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "limit_check")
    log.write_text("".join(lines[:last]))
    run(sweep, tmp_path, resume=folder)
    assert checks_of(folder) == wanted


@pytest.mark.parametrize(
    ("agreement", "looks"), [(Agreement.AGREES, 1), (Agreement.DISAGREES, 1), (Agreement.CANNOT_TELL, 3)]
)
def test_a_case_of_which_nothing_can_be_said_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreement: Agreement, looks: int
) -> None:
    monkeypatch.setattr("bench.runner.limit_checks.LOOKS", (1, 2, 3))
    shares = {Limit.HOST: Estimate(0.5, 0.4, 0.6)}
    monkeypatch.setattr(
        "bench.runner.limit_checks.checks_so_far",
        lambda records: {
            record.case_id: LimitCheck([Limit.HOST], {}, shares, [], agreement, {})
            for record in records
            if isinstance(record, LimitCheckRecord)
        },
    )
    found = checks_of(run(checked_sweep(["ok", "loop"]), tmp_path))
    assert found == [(impl, replicate, "") for impl in ("loop", "ok") for replicate in range(looks)]


def test_what_has_to_be_done_is_counted_in_one_process_a_case(tmp_path: Path) -> None:
    run(checked_sweep(["ok", "crash@check"]), tmp_path)
    jobs = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    counts = [(job["case"]["impl"], job["count"]) for job in jobs if job["job"] == "limit_check"]
    assert sorted(counts) == [("crash@check", True), ("crash@check", True), ("ok", False), ("ok", True)]


def test_ceilings_are_measured_as_often_as_a_timed_run_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runner.timing.Timing.run", lambda _: None)
    monkeypatch.setattr("bench.runner.limit_checks.LOOKS", (4,))
    records = read_run(run(checked_sweep(["ok"]), tmp_path)).records
    found = Counter(record.what for record in records if isinstance(record, CeilingRecord) and record.threads == 1)
    assert found == {
        "matmul": NUM_CEILING_REPLICATES,
        "memory": NUM_CEILING_REPLICATES,
        "cache": NUM_CEILING_REPLICATES,
    }


def test_no_limit_is_checked_unasked(tmp_path: Path) -> None:
    assert checks_of(run(make_sweep(["ok"], 1), tmp_path)) == []


def test_the_other_number_of_threads_is_half_or_two_and_never_more_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workload = make_sweep(["ok"], 1).cases[0].workload
    monkeypatch.setattr("bench.environment.usable_cores", lambda: 8)
    counts = {threads: other_threads(workload.model_copy(update={"threads": threads})) for threads in (1, 2, 3, 8)}
    assert counts == {1: 2, 2: 1, 3: 1, 8: 4}
    monkeypatch.setattr("bench.environment.usable_cores", lambda: 1)
    assert other_threads(workload.model_copy(update={"threads": 1})) is None
