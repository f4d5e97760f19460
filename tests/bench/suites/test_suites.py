from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.loading import analyse
from bench.analysis.model import Analysis
from bench.report import write_report
from bench.store.pytest_benchmark import NO_VERDICTS, read_pytest_benchmark
from bench.store.schema import CaseRecord, Status

SUITES = Path(__file__).parents[3] / "bench" / "suites"
LAYERS = Path(__file__).with_name("suite_layers.py")
TINY = (
    "--moe-experts=2,4", "--moe-top-k=1", "--moe-capacity=none,0.5", "--moe-tokens=8", "--moe-d-model=8",
    "--moe-d-ff=8", "--moe-threads=1", "--moe-device=cpu", "--benchmark-max-time=0.001", "--benchmark-min-rounds=5",
)  # fmt: skip


def run_suites(*arguments: str, folder: Path, suites: Path = SUITES) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", str(suites), "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suites")


@pytest.fixture(scope="module")
def session(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_suites(
        *TINY, "--moe-impl=loop,dense", "--benchmark-json=out.json", "--benchmark-save=base", folder=folder
    )


@pytest.fixture(scope="module")
def document(session: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    assert session.returncode == 0, session.stdout + session.stderr
    read: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return read


@pytest.fixture(scope="module")
def analysis(document: dict[str, Any], folder: Path) -> Analysis:
    assert document
    return analyse(*read_pytest_benchmark(folder / "out.json"))


def test_it_times_every_case_in_both_directions(document: dict[str, Any]) -> None:
    names = {entry["name"] for entry in document["benchmarks"]}
    assert len(names) == 2 * 2 * 2 * 2
    assert "test_train_step[loop-E4-K1-C0.5-T8-D8-F8-float32-cpu-1thread]" in names
    assert all(len(entry["stats"]["data"]) >= 5 for entry in document["benchmarks"])


def test_extra_info_holds_the_case_and_what_was_found(document: dict[str, Any]) -> None:
    for entry in document["benchmarks"]:
        info, params = entry["extra_info"], entry["params"]
        record = CaseRecord.model_validate(info["record"])
        assert record.status is Status.OK
        assert info["case_id"] == record.case.id
        assert info["tokens_per_s"] == pytest.approx(8 / entry["stats"]["median"])
        # the output at least, and in a train step the gradients
        assert record.qualified is not None
        assert info["peak_memory_bytes"] >= record.qualified.analytic_peak_bytes > 0
        assert entry["group"].startswith(f"{params['direction']}-E{params['num_experts']}-")
        if params["impl"] == "dense":
            assert info["dropped_fraction"] is None
        else:  # 8 tokens on E experts with 4 slots in all
            assert (info["dropped_fraction"] >= 0.5) == (params["capacity_factor"] == 0.5)


def test_the_file_says_what_machine_it_was_but_not_whose(document: dict[str, Any]) -> None:
    assert document["machine_info"]["node"] == document["moebench"]["run"]["machine"]
    assert json.dumps(os.uname().nodename) not in json.dumps(document)


def test_the_imported_file_has_latencies_and_no_verdict(document: dict[str, Any], analysis: Analysis) -> None:
    frame = analysis.frame.set_index("case_id")
    for entry in document["benchmarks"]:
        row = frame.loc[entry["extra_info"]["case_id"]]
        assert row["latency_s"] == pytest.approx(entry["stats"]["median"])
        assert row["num_processes"] == 1
        assert row["num_samples"] == entry["stats"]["rounds"]
    assert not analysis.control.passed
    assert [winner.impl for winner in analysis.winners] == [None] * 8
    assert not {comparison.verdict for comparison in analysis.comparisons} - {"inconclusive"}
    assert NO_VERDICTS in analysis.warnings


def test_the_imported_file_makes_a_report(analysis: Analysis, tmp_path: Path) -> None:
    page = write_report([analysis], tmp_path).read_text()
    assert "identical code was called changed" in page
    assert (tmp_path / "data.csv").read_text().count("\n") == 1 + 16


def test_cases_are_selected_grouped_and_compared_by_name(document: dict[str, Any], folder: Path) -> None:
    assert document
    again = run_suites(
        *TINY, "--moe-impl=loop,dense", "-k", "loop and E4", "--benchmark-group-by=param:num_experts,param:direction",
        "--benchmark-compare", folder=folder,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 passed, 12 deselected" in again.stdout
    assert "benchmark 'num_experts=4 direction=train': 4 tests" in again.stdout  # each now and as it was saved
    assert again.stdout.count("(NOW)") == 4
    assert "machine_info is different" not in again.stdout + again.stderr


def test_what_goes_wrong_fails_or_is_skipped_and_keeps_its_row(folder: Path) -> None:
    classes = ("Wrong", "Refuses", "BreaksLater", "ChangesLater")
    done = run_suites(
        *TINY, f"--moe-impl=loop,{','.join(f'{LAYERS}:{name}' for name in classes)}", "-k", "test_forward and E4",
        "--moe-capacity=none", "--benchmark-json=wrong.json", "-ra", folder=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 failed, 1 passed, 1 skipped" in done.stdout
    assert "a machine that was never built" in done.stdout
    assert "RuntimeError: worn out" in done.stdout
    run = read_pytest_benchmark(folder / "wrong.json")
    found = {record.case.impl.rpartition(":")[2]: record for record in run.records if isinstance(record, CaseRecord)}
    assert {name: record.status for name, record in found.items()} == {
        "loop": Status.OK,
        "Wrong": Status.WRONG_RESULT,
        "Refuses": Status.UNSUPPORTED,
        "BreaksLater": Status.ERROR,
        "ChangesLater": Status.WRONG_RESULT,
    }
    assert "tokens" in found["ChangesLater"].reason
    timed = analyse(*run).frame.set_index("status")["latency_s"]
    assert timed.notna().sum() == 1
    assert timed["ok"] > 0


def test_disabled_benchmarks_still_check_every_case(folder: Path) -> None:
    done = run_suites(*TINY, "--moe-impl=loop", "-k", "E2", "--benchmark-disable", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_bad_options_are_told_all_at_once(folder: Path) -> None:
    done = run_suites("--moe-impl=lop", "--moe-experts=0", folder=folder)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "2 faults" in done.stderr
    assert "did you mean 'loop'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_folder_alone_is_enough(tmp_path: Path) -> None:
    alone = tmp_path / "bench" / "suites"
    shutil.copytree(SUITES, alone, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    done = run_suites(*TINY, "--moe-impl=loop", "--collect-only", folder=tmp_path, suites=Path("bench/suites"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 tests collected" in done.stdout
