from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bench
from bench import cli, commands, config
from bench.cases import Case
from bench.config import Sweep, load_sweep
from bench.errors import Exit, ResultsError, RunInterruptedError
from bench.runner import sweep as runner
from bench.runner.sweep import RunOutcome
from bench.store import log
from bench.store.schema import CaseRecord, NoteRecord, RunInfo, Status

SMALL = ("--impl", "loop,einsum", "--set", "layer.capacity_factor=none", "--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def finished_run() -> Path:
    """A run in which every case was unsupported: whole, and quick to make."""
    sweep = load_sweep("smoke", {"workload.impls": ["loop", "einsum"], "workload.device": "cpu"})
    return write_run("20260101-000000-smoke-aaaa", sweep)


def write_run(run_id: str, sweep: Sweep, *, created_unix_s: float = 0.0) -> Path:
    info = RunInfo(
        run_id=run_id, machine="m", created_unix_s=created_unix_s, command=["moebench"], source="smoke",
        config=sweep.given, seed=0, git_commit=None, environment={}, environment_hash="e",
    )  # fmt: skip
    folder = log.create_run(Path("results"), info)
    for case in sweep.cases:
        log.append(folder, unsupported(case))
    log.append(folder, NoteRecord(environment_hash="e", unix_time_s=0.0, event="finished"))
    return folder


def unsupported(case: Case) -> CaseRecord:
    return CaseRecord(
        environment_hash="e", unix_time_s=0.0, case=case, case_id=case.id, status=Status.UNSUPPORTED,
        reason="not [bold]here[/bold]",
    )  # fmt: skip


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: Exit = Exit.CANNOT) -> str:
    """The message of a command line that must fail, with nothing on stdout and no traceback."""
    assert cli.main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("moebench: ")
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "smoke", "--impl", "lop"), "did you mean 'loop'?"),
        (("run", "smoke", "--impl", "mine.py:Mine"), "there is no file mine.py"),
        (("run", "smoke", "--set", "layer.top_k=99"), "top_k (99) is above num_experts (16)"),
        (("run", "smoke", "--set", "layer.capacity_factor=0"), "a number above 0"),
        (("run", "smoke", "--set", "layer.capacity_factor=nan"), "a number above 0"),
        (("run", "smoke", "--tokens", "-3"), "should be greater than or equal to 0"),
        (("run", "smoke", "--set", "layer.d_model=-8"), "should be greater than or equal to 1"),
        (("run", "smoke", "--dtype", "bf61"), "did you mean 'bf16'?"),
        (("run", "smoke", "--device", "cuda"), "cuda was asked for, but"),
        (("run", "smoke", "--device", "gpu"), "should be one of auto, cpu, cuda"),
        (("run", "smoke", "--budget", "soon"), "should be a duration"),
        (("run", "smoke", "--seed", "x"), "should be a whole number"),
        (("run", "smoke", "--set", "top_k"), "should be TABLE.KEY=VALUE"),
        (("run", "smoke", "--set", "layer.topk=2"), "did you mean 'top_k'?"),
        (("run", "smoke", "--set", "workload.dtype=fp32", "--dtype", "bf16"), "is set twice"),
        (("run", "missing.toml"), "there is no preset and no file 'missing.toml'"),
        (("run", "smoke", "quick"), "too many arguments: quick"),
        (("run", "--sed", "1"), "Did you mean --seed?"),
        (("rum",), 'Did you mean "run"?'),
        (("list", "presents"), "presets"),
        (("show",), "results holds no run"),
        (("show", "nothing"), "there is no run 'nothing'"),
        (("show", "./nothing"), "there is no such folder"),
        (("show", "--csv", "--json"), "one format at a time"),
        (("report", "nothing"), "there is no run 'nothing'"),
        (("advise", "nothing"), "there is no run 'nothing'"),
        (("advise", "--memory-limit", "2"), "should be a size with its unit"),
        (("advise", "--latency-limit", "soon"), "should be a duration"),
        (("run", "smoke", "--routing", "zipf"), "should be one of router, balanced"),
        (("run", "--resume", "latest"), "results holds no run"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(config, "why_no_cuda", lambda: "there is no GPU")
    assert message in fails(capsys, *arguments)


def test_broken_toml_names_file_line_and_column(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.toml").write_text("[layer\n")
    message = fails(capsys, "run", "broken.toml")
    assert "broken.toml has 1 fault" in message
    assert "line 1" in message


def test_results_that_cannot_be_written_stop_the_run_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results").write_text("a file is in the way")
    assert "results" in fails(capsys, "run", "smoke", *SMALL)


@pytest.mark.parametrize("broken", ["empty", "no log", "no JSON", "newer"])
def test_runs_that_cannot_be_read_say_why(capsys: pytest.CaptureFixture[str], finished_run: Path, broken: str) -> None:
    if broken == "empty":
        for file in finished_run.iterdir():
            file.unlink()
    elif broken == "no log":
        (finished_run / log.LOG_FILE).unlink()
    elif broken == "no JSON":
        (finished_run / log.RUN_FILE).write_text("{")
    else:
        info = json.loads((finished_run / log.RUN_FILE).read_text())
        (finished_run / log.RUN_FILE).write_text(json.dumps(info | {"schema_version": 99}))
    assert str(finished_run) in fails(capsys, "show", str(finished_run))


def test_a_torn_last_line_is_a_warning(capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
    with (finished_run / log.LOG_FILE).open("a") as file:
        file.write('{"kind": "no')
    assert cli.main(["show", "--csv"]) == Exit.OK
    printed = capsys.readouterr()
    assert "cut short" in printed.err
    assert printed.out.startswith("case_id,impl,")


def test_show_gives_the_same_rows_in_every_format(capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
    def shown(*arguments: str) -> str:
        assert cli.main(["show", *arguments]) == Exit.OK
        return capsys.readouterr().out

    from_csv = list(csv.DictReader(io.StringIO(shown("--csv"))))
    from_json = json.loads(shown(finished_run.name, "--json"))
    assert [row["case_id"] for row in from_csv] == [row["case_id"] for row in from_json]
    assert from_json[0]["latency_s"] is None
    assert shown("--markdown").count("\n| loop ") == len(from_csv) / 2
    # names and reasons from data are text, never markup
    assert "not [bold]here[/bold]" in shown(str(finished_run))


def test_latest_is_the_run_that_was_made_last(capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
    sweep = load_sweep("smoke", {"workload.impls": "dense", "workload.device": "cpu"})
    write_run("20250101-000000-smoke-bbbb", sweep, created_unix_s=1.0)
    cli.main(["show", "latest", "--json"])
    assert {row["impl"] for row in json.loads(capsys.readouterr().out)} == {"dense"}
    assert set(bench.load(finished_run)["impl"]) == {"loop", "einsum"}
    assert set(bench.load()["impl"]) == {"dense"}


def test_dry_run_lists_the_cases_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "smoke", *SMALL, "--set", "layer.top_k=1,5", "--dry-run"]) == Exit.OK
    printed = capsys.readouterr()
    assert printed.out.count("\nloop ") == printed.out.count("\neinsum ") == 4
    assert "top_k (5) is above num_experts (4)" in printed.out
    assert "8 cases of 4 workloads in 6 processes: " in printed.err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ({Status.OK: 3, Status.UNSUPPORTED: 2}, 0),
        ({Status.OK: 3, Status.CRASHED: 1}, 1),
        ({Status.TIMEOUT: 1}, 1),
        ({Status.OUT_OF_MEMORY: 1}, 1),
        ({Status.ERROR: 1}, 1),
        ({Status.WRONG_RESULT: 1, Status.CRASHED: 1}, 4),
    ],
)
def test_the_exit_code_of_a_run_is_its_worst_row(statuses: dict[Status, int], code: int) -> None:
    assert commands.exit_code(Counter(statuses)) == code


def test_run_prints_its_folder_last_and_quiet_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    asked: dict[str, object] = {}

    def fake(sweep: Sweep, **arguments: object) -> RunOutcome:
        asked.update(arguments, sweep=sweep)
        return RunOutcome(finished_run, Counter({Status.UNSUPPORTED: 12}))

    monkeypatch.setattr(runner, "run_sweep", fake)
    assert cli.main(["run", "smoke", *SMALL, "--quiet"]) == Exit.OK
    assert capsys.readouterr() == (f"{finished_run}\n", "")
    assert cli.main(["run", "--resume", finished_run.name]) == Exit.OK
    printed = capsys.readouterr()
    assert printed.out == f"{finished_run}\n"
    assert "rows unsupported (einsum, loop): not [bold]here[/bold]" in printed.err
    assert f"Next: moebench report {finished_run}" in printed.err
    assert asked["resume"] == finished_run
    assert isinstance(asked["sweep"], Sweep)
    assert {case.impl for case in asked["sweep"].cases} == {"loop", "einsum"}
    assert "leave out workload.seed" in fails(capsys, "run", "--resume", "latest", "--seed", "1")


@pytest.mark.parametrize(
    ("raised", "code"),
    [(RunInterruptedError("stopped; --resume goes on"), 130), (KeyboardInterrupt(), 130), (ResultsError("full"), 2)],
)
def test_what_stops_a_run_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    def fake(*_: object, **__: object) -> RunOutcome:
        raise raised

    monkeypatch.setattr(runner, "run_sweep", fake)
    assert fails(capsys, "run", "smoke", "--quiet", "--device", "cpu", code=Exit(code))


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(*_: object, **__: object) -> RunOutcome:
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "run_sweep", fake)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "smoke", "--quiet", "--device", "cpu"])


def test_list_names_what_there_is(capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
    assert cli.main(["list", "--json"]) == Exit.OK
    listed = json.loads(capsys.readouterr().out)
    assert {"loop", "dense"} <= {entry["name"] for entry in listed["impls"]}
    assert {"quick", "smoke", "tokens"} <= {entry["name"] for entry in listed["presets"]}
    assert [entry["run_id"] for entry in listed["runs"]] == [finished_run.name]
    assert cli.main(["list"]) == Exit.OK
    assert finished_run.name in capsys.readouterr().out


def test_every_preset_says_what_it_asks_and_what_to_expect(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "presets"]) == Exit.OK
    printed = " ".join(capsys.readouterr().out.split())
    for preset in config.presets().values():
        assert preset.title in printed
        assert preset.question.endswith("?") or preset.name == "smoke"
        assert preset.question in printed
        assert " ".join(preset.story.split()) in printed


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_process_ends_with_the_exit_code_and_no_traceback() -> None:
    assert command("--version").stdout.startswith("moebench ")
    failed = command("run", "smok")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("moebench: there is no preset")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen([sys.executable, "-m", "bench.cli", "list"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1
