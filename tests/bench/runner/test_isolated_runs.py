"""Runs with ``isolate``: a process for every implementation, and everything else as in any run."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_jobs import arm
from fake_sweep import make_sweep
from forked_servers import Orphans, fork_servers

from bench.config import Sweep
from bench.runner.isolation import one_each, together
from bench.runner.progress import Silent
from bench.runner.protocol import Answer
from bench.runner.sweep import run_sweep
from bench.store.log import Run, read_run
from bench.store.schema import CaseRecord, ControlRecord, Disturbance, NoteRecord, SamplesRecord, Status

Measure = Callable[..., Path]


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orphans: Orphans) -> Measure:
    fork_servers(monkeypatch, tmp_path)

    def run(sweep: Sweep, resume: Path | None = None) -> Path:
        outcome = run_sweep(
            sweep, results=tmp_path / "results", command=["fake"], progress=Silent(), resume=resume, jobs="fake_jobs"
        )
        assert orphans.all_end()
        return outcome.folder

    return run


def jobs(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    return [job for job in told if job["job"] == kind]


def samples_of(run: Run) -> list[SamplesRecord]:
    return [record for record in run.records if isinstance(record, SamplesRecord)]


def test_every_implementation_and_every_arm_of_the_control_has_its_own_process(
    tmp_path: Path, measure: Measure
) -> None:
    sweep = make_sweep(["ok", "loop", "grouped"], isolate=True)
    run = read_run(measure(sweep))
    ids = {case.id for case in sweep.cases}
    timed = [[case["impl"] for case in job["cases"]] for job in jobs(tmp_path, "time")]
    assert all(len(impls) == 1 for impls in timed)
    assert len(timed) == 3 * len(ids)
    turns = [tuple(impls[0] for impls in timed[start : start + 3]) for start in range(0, len(timed), 3)]
    assert all(sorted(turn) == ["grouped", "loop", "ok"] for turn in turns), "each once before any again"
    assert len(set(turns)) > 1, "in an order that changes"
    assert Counter(job["arm"] for job in jobs(tmp_path, "control")) == {"base": 3, "twin": 3, "slowed": 3}
    samples = samples_of(run)
    assert len(samples) == 6
    assert all(record.isolated and set(record.arms) <= ids and len(record.arms) == 3 for record in samples)
    assert [record.isolated for record in run.records if isinstance(record, ControlRecord)] == [True] * 3


def test_a_case_that_dies_costs_itself_and_the_others_are_timed_together(measure: Measure) -> None:
    run = read_run(measure(make_sweep(["ok", "crash@time", "loop", "exit_0@time"], 1, isolate=True)))
    last = {record.case_id: record for record in run.records if isinstance(record, CaseRecord)}
    assert {record.case.impl: record.status for record in last.values()} == {
        "ok": Status.OK,
        "crash@time": Status.CRASHED,
        "loop": Status.OK,
        "exit_0@time": Status.CRASHED,
    }
    ok = {key for key, record in last.items() if record.status is Status.OK}
    assert [set(record.arms) for record in samples_of(run)] == [ok] * 3


def test_a_spent_budget_and_a_resume_give_each_turn_once(measure: Measure) -> None:
    sweep = make_sweep(["slow@time", "ok"], 3, processes=4, budget_s=1.5, isolate=True)
    folder = measure(sweep)
    first = read_run(folder).records
    assert [record.event for record in first if isinstance(record, NoteRecord)][-1] == "budget_spent"
    longer = replace(sweep, measure=sweep.measure.model_copy(update={"budget_s": 600.0}))
    whole = read_run(measure(longer, folder))
    assert whole.records[: len(first)] == first
    workloads = {case.workload.id for case in sweep.cases}
    assert Counter((record.workload_id, record.replicate) for record in samples_of(whole)) == {
        (workload, replicate): 1 for workload in workloads for replicate in range(4)
    }


def test_the_stop_rule_looks_at_the_medians_of_processes(measure: Measure) -> None:
    narrow = make_sweep(["ok", "loop"], 1, processes=2, half_width=0.9, isolate=True)
    assert len(samples_of(read_run(measure(narrow)))) == 2
    wide = make_sweep(["ok", "noisy"], 1, processes=2, half_width=1e-6, isolate=True)
    assert len(samples_of(read_run(measure(wide)))) == 6


def test_one_answer_of_many_processes() -> None:
    asked = []

    def ask(name: str) -> Answer:
        asked.append(name)
        disturbance = Disturbance(steal_s=0.5, involuntary_switches=2, gpu={"clock_before": 1.0 + len(asked)})
        return Answer(arms={name: arm(len(asked))}, disturbance=disturbance)

    answer = one_each(["a", "b", "c"], ask, order_seed=1)
    assert list(answer.arms or {}) == ["a", "b", "c"]
    assert sorted(asked) == ["a", "b", "c"]
    assert answer.disturbance.steal_s == 1.5
    assert answer.disturbance.involuntary_switches == 6
    assert answer.disturbance.gpu == {"clock_before": 2.0}
    failed = one_each(["a", "b"], lambda name: Answer(status=Status.ERROR, reason="no", case_id=name), order_seed=1)
    assert (failed.status, failed.reason) == (Status.ERROR, "no")


def test_what_happened_in_several_processes() -> None:
    first = Disturbance(load_1min=1.0, cpu_pressure_s=0.25, gpu={"sm_before": 1.0, "sm_after": 2.0, "slow_s": 0.1})
    last = Disturbance(load_1min=2.0, cpu_pressure_s=0.25, gpu={"sm_before": 3.0, "sm_after": 4.0, "slow_s": 0.2})
    whole = together([first, last])
    assert whole.gpu == {"sm_before": 1.0, "sm_after": 4.0, "slow_s": pytest.approx(0.3)}
    assert (whole.load_1min, whole.cpu_pressure_s) == (2.0, 0.5)
    assert (whole.steal_s, whole.involuntary_switches) == (None, None), "what one of them does not know"
