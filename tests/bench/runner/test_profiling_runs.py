"""The profiling pass of a sweep: what fails costs its own profile only, and a resumed run profiles nothing twice."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from fake_jobs import PROFILE, arm
from fake_sweep import make_sweep

from bench.analysis import load
from bench.config import Sweep
from bench.runner.profiling import TRIES
from bench.runner.progress import Silent
from bench.runner.sweep import run_sweep
from bench.store.log import read_run
from bench.store.profiles import Profile
from bench.store.schema import CaseRecord, CeilingRecord, ProfileRecord, Status


def profiled_sweep(impls: list[str]) -> Sweep:
    sweep = make_sweep(impls, 1)
    return replace(sweep, measure=sweep.measure.model_copy(update={"profile": True}))


def run(sweep: Sweep, tmp_path: Path, resume: Path | None = None) -> Path:
    return run_sweep(
        sweep, results=tmp_path / "results", command=["fake"], progress=Silent(), resume=resume, jobs="fake_jobs"
    ).folder


def profiles_of(folder: Path) -> dict[str, ProfileRecord]:
    records = read_run(folder).records
    names = {record.case_id: record.case.impl for record in records if isinstance(record, CaseRecord)}
    found = [record for record in records if isinstance(record, ProfileRecord)]
    assert len({record.case_id for record in found}) == len(found), "none twice"
    return {names[record.case_id]: record for record in found}


def as_made(profile: Profile | None) -> Profile | None:
    """As the job made it, before the runner added what it knows of the case."""
    return profile and profile.model_copy(update={"timed_s": None})


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_what_fails_costs_its_own_profile_only(tmp_path: Path) -> None:
    folder = run(profiled_sweep(["ok", "crash@profile", "raise@profile", "crash@qualify"]), tmp_path)
    found = profiles_of(folder)
    assert as_made(found["ok"].profile) == PROFILE
    assert found["crash@profile"].reason.startswith("crashed: ")
    assert "what a pity" in found["raise@profile"].reason
    assert set(found) == {"ok", "crash@profile", "raise@profile"}, "what does not run is not profiled"
    analysis = load(folder)
    assert len(analysis.profiles) == 1
    assert len(analysis.not_profiled) == 2
    timed = {record.case.impl: record.status for record in read_run(folder).records if isinstance(record, CaseRecord)}
    assert timed["crash@profile"] is Status.OK


@pytest.mark.parametrize(("disturbed", "tries"), [(False, 1), (True, TRIES)], ids=["quiet", "disturbed"])
def test_a_profile_of_a_disturbed_machine_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbed: bool, tries: int
) -> None:
    monkeypatch.setattr("bench.store.profiles.Profile.disturbed", "it was noisy" if disturbed else "")
    found = profiles_of(run(profiled_sweep(["ok"]), tmp_path))
    assert as_made(found["ok"].profile) == PROFILE
    jobs = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert sum(job["job"] == "profile" for job in jobs) == tries


def test_a_second_try_that_fails_takes_the_first_away_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.store.profiles.Profile.disturbed", "it was noisy")
    found = profiles_of(run(profiled_sweep(["crash@second-profile"]), tmp_path))
    assert as_made(found["crash@second-profile"].profile) == PROFILE


@pytest.mark.parametrize(
    ("whole_s", "events", "timed_s", "disturbed"),
    [
        (1.4, 0, None, ""),
        (2.0, 0, None, "profiled calls took 2.00 times the plain ones'"),
        (2.0, 200_000, None, ""),
        (0.7, 200_000, None, "profiled calls took 0.70 times the plain ones'"),
        (1.0, 0, 0.7, ""),
        (1.0, 0, 0.25, "calls took 4.00 times as long as when the case was timed"),
    ],
    ids=["slowed", "slowed much", "slowed much by many events", "quicker than plain", "as timed", "not as timed"],
)
def test_a_profile_is_disturbed_where_more_time_passed_than_a_profiler_takes(
    whole_s: float, events: int, timed_s: float | None, disturbed: str
) -> None:
    times = {"plain_s": 1.0, "whole_s": whole_s, "events": events, "timed_s": timed_s}
    assert PROFILE.model_copy(update=times).disturbed == disturbed


def test_a_profile_knows_what_the_case_took_when_it_was_timed(tmp_path: Path) -> None:
    found = profiles_of(run(profiled_sweep(["ok"]), tmp_path))["ok"].profile
    assert found is not None
    assert found.timed_s == statistics.median(arm(0).latency_s)


def test_limits_have_ceilings_though_nothing_was_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runner.timing.Timing.run", lambda _: None)
    folder = run(profiled_sweep(["ok"]), tmp_path)
    found = [record.what for record in read_run(folder).records if isinstance(record, CeilingRecord)]
    assert sorted(found) == ["cache", "matmul", "memory"]


def test_no_profile_is_made_unasked(tmp_path: Path) -> None:
    assert profiles_of(run(make_sweep(["ok"], 1), tmp_path)) == {}


def test_a_resumed_run_profiles_only_what_lacks_a_profile(tmp_path: Path) -> None:
    sweep = profiled_sweep(["ok", "loop"])
    folder = run(sweep, tmp_path)
    log = folder / "measurements.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "profile")
    log.write_text("".join(lines[:last]))
    (tmp_path / "trace").unlink()
    run(sweep, tmp_path, resume=folder)
    jobs = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert [job["case"]["impl"] for job in jobs if job["job"] == "profile"] == ["loop"]
    assert set(profiles_of(folder)) == {"ok", "loop"}
