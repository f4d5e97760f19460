"""The self-test against fork servers whose jobs have known ratios, and the doctor that prints it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import selftest
from bench.analysis.comparisons import MIN_PROCESSES
from bench.analysis.statistics import smallest_effect
from bench.cli import main
from bench.errors import RequestError
from bench.runner.progress import Silent
from bench.runner.protocol import ControlJob
from bench.selftest import BUDGETS_S, PROCESSES, SelfTest, foresee
from bench.store.schema import Arm, ControlRecord

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The jobs that were done, one a line."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("CONTROL_JOBS_TRACE", str(tmp_path / "trace"))
    monkeypatch.setenv("CONTROL_JOBS_RATIOS", "1.0,1.05")
    return tmp_path / "trace"


def run(budget_s: float = 30.0) -> SelfTest:
    return selftest.run_self_test("cpu", 1, budget_s=budget_s, progress=Silent(), jobs="control_jobs")


def records(deviation: float, num_processes: int = 12, wall_s: float = 2.0) -> list[ControlRecord]:
    """Processes whose log-ratios of twin to base have exactly this standard deviation, but for what few differ by."""
    pattern = [1.0, -1.0] * num_processes
    scale = deviation * ((num_processes - 1) / num_processes) ** 0.5
    return [
        ControlRecord(
            environment_hash="",
            unix_time_s=0.0,
            replicate=replicate,
            arms={
                "base": Arm(latency_s=[1.0], warmup_s=[]),
                "twin": Arm(latency_s=[math.exp(scale * sign)], warmup_s=[]),
                "slowed": Arm(latency_s=[1.05], warmup_s=[]),
            },
            planted_slowdown=0.05,
            wall_s=wall_s,
        )
        for replicate, sign in enumerate(pattern[:num_processes])
    ]


def test_a_sound_machine_passes_in_fresh_processes_with_orders_of_their_own(trace: Path) -> None:
    found = run()
    assert found.failure == ""
    assert found.num_processes == PROCESSES
    jobs = [ControlJob.model_validate_json(line) for line in trace.read_text().splitlines()]
    assert len({job.order_seed for job in jobs}) == PROCESSES
    assert all(job.time_budget_s >= 0.4 for job in jobs)
    assert found.control.twin is not None
    assert found.control.twin.low < 1 < found.control.twin.high
    assert [outlook.budget_s for outlook in found.outlook] == list(BUDGETS_S)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [("1.0,1.0", "planted slowdown of 5.00 % was not found"), ("1.03,1.05", "identical code differed by")],
)
def test_a_machine_that_misleads_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, ratios: str, words: str
) -> None:
    monkeypatch.setenv("CONTROL_JOBS_RATIOS", ratios)
    assert words in run().failure


def test_processes_that_fail_cost_themselves_only_until_too_few_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_JOBS_FAIL", "0,5")
    found = run()
    assert (found.num_processes, found.failure) == (PROCESSES - 2, "")
    assert found.warnings == ["process 1 failed: what a pity", "process 6 failed: what a pity"]


def test_too_few_processes_are_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_JOBS_FAIL", ",".join(map(str, range(7))))
    found = run()
    assert found.num_processes == PROCESSES - 7
    assert f"a verdict needs {MIN_PROCESSES}; process 1 failed: what a pity" in found.failure
    assert found.outlook == []


def test_a_budget_that_no_self_test_fits_into_is_refused() -> None:
    with pytest.raises(RequestError, match="10 s or more"):
        run(budget_s=9.0)


def test_the_outlook_is_the_power_of_the_t_test_for_the_processes_that_fit() -> None:
    outlook = {entry.budget_s: entry for entry in foresee(records(0.01), start_s=1.0)}
    assert [entry.num_processes for entry in outlook.values()] == [20, 100, 600]
    assert outlook[60.0].effect == pytest.approx(math.expm1(smallest_effect(0.01, 20, chance=0.9)), rel=1e-6)
    for entry in outlook.values():
        assert entry.effect_low is not None
        assert entry.effect is not None
        assert entry.effect_high is not None
        assert 0 < entry.effect_low < entry.effect < entry.effect_high


def test_a_time_that_holds_too_few_processes_promises_nothing() -> None:
    slow = foresee(records(0.01, wall_s=19.0), start_s=1.0)
    assert (slow[0].num_processes, slow[0].effect) == (3, None)
    assert slow[1].effect is not None
    assert foresee(records(0.01, num_processes=5), start_s=1.0) == []


@pytest.fixture
def fake_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.selftest.run_self_test.__kwdefaults__", {**KNOWN_DEFAULTS, "jobs": "control_jobs"})


KNOWN_DEFAULTS = selftest.run_self_test.__kwdefaults__ or {}


@pytest.mark.usefixtures("fake_self_test")
def test_the_doctor_prints_what_it_found_and_talks_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--budget", "20s", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    for words in (
        "What can be measured here:", "What would disturb it:", "What it can show (12 fresh processes",
        "passed   identical code", "passed   planted slowdown of 5.00 %", "noise floor: ±", "1m 00s,", "30m 00s,",
    ):  # fmt: skip
        assert words in printed.out
    assert "process 1 of 12" in printed.err
    assert "process 1 of 12" not in printed.out


@pytest.mark.usefixtures("fake_self_test")
def test_a_failed_self_test_is_exit_code_1_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTROL_JOBS_RATIOS", "1.0,1.0")
    assert main(["doctor", "--budget", "20s", "--json", "--device", "cpu"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert "was not found" in document["self_test"]["failure"]
    assert not document["self_test"]["control"]["passed"]
    assert main(["doctor", "--budget", "20s", "--device", "cpu"]) == 1
    assert "failed   The control failed" in capsys.readouterr().out


def test_the_doctor_without_its_self_test(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    assert main(["doctor", "--no-self-test", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["self_test"] is None
    assert {entry["name"] for entry in document["capabilities"]} >= {"timer", "CPU energy", "GPU"}
    assert {entry["name"] for entry in document["disturbances"]} >= {"load", "cores", "names"}
    assert not trace.exists()


@pytest.mark.parametrize("budget", ["soon", "3s"])
def test_a_budget_that_cannot_be_honoured_is_exit_code_2(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--budget", budget, "--device", "cpu"]) == 2
    assert budget.rstrip("s") in capsys.readouterr().err


def test_the_parent_of_a_self_test_loads_no_torch() -> None:
    program = "import sys, bench.doctor, bench.selftest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False, timeout=60).returncode == 0
