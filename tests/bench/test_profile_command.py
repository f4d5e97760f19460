"""``moebench profile``: what it prints, its exit codes and its way to the job; runs are written, not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bench import cli, config
from bench.cases import Case
from bench.config import Sweep
from bench.errors import Exit
from bench.runner import profiling
from bench.runner import sweep as runner
from bench.runner.protocol import Answer, ProfileJob
from bench.runner.sweep import RunOutcome
from bench.store import log
from bench.store.profiles import OperatorTime, Profile, StageTime, Tensors, Timeline
from bench.store.qualified import Qualified
from bench.store.schema import CaseRecord, NoteRecord, ProfileRecord, RunInfo, Status

COMMON = ("--device", "cpu", "--threads", "1", "--quiet")
QUALIFIED = Qualified(
    relative_error=0.0, worst_tensor="output", checked_tokens=1, routing=None, flops=1, moved_bytes=1, weight_bytes=1,
    prepared_bytes=0, prepare_s=0.0, first_call_s=1e-3, rough_latency_s=1e-3, allocator_peak_bytes=0, os_peak_bytes=0,
    reserved_peak_bytes=0, analytic_peak_bytes=0,
)  # fmt: skip


def stage(name: str, host_s: float, **others: Any) -> StageTime:
    fields = {"phase": "forward", "idle_s": host_s / 10, "launches": 2, "flops": 0, "moved_bytes": 0} | others
    return StageTime(stage=name, host_s=host_s, **fields)


PROFILE = Profile(
    calls=8,
    plain_s=1.6e-3,
    whole_s=2e-3,
    stages=[stage("route", 0.5e-3), stage("experts", 1.5e-3, flops=10**9, moved_bytes=2**20)],
    experts=[],
    operators=[
        OperatorTime(phase="forward", stage="experts", name="aten::mm", shapes="64x32, 32x16", calls=4, host_s=1e-3,
                     flops=10**9, moved_bytes=2**20),
        OperatorTime(phase="forward", stage="route", name="aten::topk", shapes="64x8", calls=1, host_s=3e-4),
    ],
    timeline=Timeline(
        at_s=[0.0, 1e-3], stages=["forward route", "forward experts"],
        bytes_alive={"routing": [1024, 1024], "workspace": [0, 3 * 2**20]}, existing_bytes={"weights": 1},
        peak_bytes=3 * 2**20 + 1024, peak_index=1, peak_made_by="aten::mm in experts (forward)",
        largest=[Tensors(category="workspace", shape="64x16", dtype="float32", num_bytes=4096, made_by="aten::mm")],
    ),
    traces={"perfetto": "x.trace.json.gz"},
)  # fmt: skip
ON_DEVICE = PROFILE.model_copy(
    update={"stages": [stage("experts", 0.5e-3, device_s=1.2e-3), stage("waiting", 1.5e-3, device_s=0.0)]}
)

Records = Callable[[Case], list[CaseRecord | ProfileRecord]]


def case_of(case: Case, status: Status = Status.OK, reason: str = "") -> CaseRecord:
    return CaseRecord(
        environment_hash="e", unix_time_s=0.0, case=case, case_id=case.id, status=status, reason=reason,
        qualified=QUALIFIED if status is Status.OK else None,
    )  # fmt: skip


def profile_of(case: Case, profile: Profile | None, reason: str = "") -> ProfileRecord:
    return ProfileRecord(environment_hash="e", unix_time_s=0.0, case_id=case.id, profile=profile, reason=reason)


@pytest.fixture
def finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Records], list[Sweep]]:
    """Lets every run consist of the given records a case; gives the sweeps that were asked for."""
    monkeypatch.chdir(tmp_path)
    asked: list[Sweep] = []

    def set_records(records: Records) -> list[Sweep]:
        def run(sweep: Sweep, *, results: Path, **_: object) -> RunOutcome:
            asked.append(sweep)
            info = RunInfo(
                run_id=f"run-{len(asked)}", machine="m", created_unix_s=0.0, command=["moebench"], source="profile",
                config=sweep.given, seed=0, git_commit=None, environment={}, environment_hash="e",
            )  # fmt: skip
            folder = log.create_run(results, info)
            written = [record for case in sweep.cases for record in records(case)]
            for record in (*written, NoteRecord(environment_hash="e", unix_time_s=0.0, event="finished")):
                log.append(folder, record)
            statuses = Counter(record.status for record in written if isinstance(record, CaseRecord))
            return RunOutcome(folder, statuses)

        monkeypatch.setattr(runner, "run_sweep", run)
        return asked

    return set_records


def test_every_profile_is_told_with_its_stages_operators_memory_and_traces(
    finds: Callable[[Records], list[Sweep]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = finds(lambda case: [case_of(case), profile_of(case, PROFILE)])
    assert cli.main(("profile", "loop,grouped", *COMMON, "--operators", "1")) == Exit.OK
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert Path(lines[-1]).name == "run-1"
    assert (asked[0].measure.profile, asked[0].measure.nvtx) == (True, False)
    for impl in ("loop", "grouped"):
        assert any(line.startswith(f"{impl} ·") or line.strip() == impl for line in lines)
    assert out.count("mean of 8 calls of 2.00 ms under the profiler; without it 1.60 ms (+25%)") == 2
    assert "device time" not in out
    experts = next(line.split() for line in lines if line.strip().startswith("experts"))
    assert experts[:5] == ["experts", "forward", "1.50", "ms", "75.0%"]
    assert "aten::mm" in out
    assert "1 more rows take 300 µs" in out
    assert "memory peak: 3.00 MiB at aten::mm in experts (forward): 3.00 MiB workspace, 1024 B routing" in out
    assert any(line.startswith("perfetto: ") and line.endswith("traces/x.trace.json.gz") for line in lines)


def test_no_operators_are_printed_where_none_are_wanted(
    finds: Callable[[Records], list[Sweep]], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(lambda case: [case_of(case), profile_of(case, PROFILE)])
    assert cli.main(("profile", "loop", *COMMON, "--operators", "0")) == Exit.OK
    assert "aten::topk" not in capsys.readouterr().out


def test_on_a_device_its_time_is_a_column_and_how_busy_it_was_a_note(
    finds: Callable[[Records], list[Sweep]], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(lambda case: [case_of(case), profile_of(case, ON_DEVICE)])
    assert cli.main(("profile", "loop", *COMMON)) == Exit.OK
    out = capsys.readouterr().out
    assert "device time" in out
    assert "the device works 60% of that time" in out


def test_a_profile_that_failed_is_told_with_its_reason_and_fails_the_command(
    finds: Callable[[Records], list[Sweep]], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(lambda case: [case_of(case), profile_of(case, None, "crashed: killed by SIGSEGV")])
    assert cli.main(("profile", "loop", *COMMON)) == Exit.FAILED
    printed = capsys.readouterr()
    assert "no profile of loop" in printed.err
    assert "killed by SIGSEGV" in printed.err
    assert Path(printed.out.splitlines()[-1]).name == "run-1"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.UNSUPPORTED, Exit.FAILED),  # nothing is there to be read, and it was asked for
        (Status.CRASHED, Exit.FAILED),
        (Status.WRONG_RESULT, Exit.WRONG_NUMERICS),
    ],
)
def test_where_nothing_was_profiled_the_command_says_so_and_fails(
    status: Status, code: Exit, finds: Callable[[Records], list[Sweep]], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(lambda case: [case_of(case, status, "it cannot [bold]do[/bold] this")])
    assert cli.main(("profile", "loop", *COMMON)) == code
    assert "nothing was profiled" in capsys.readouterr().err


def test_one_unsupported_case_beside_a_profile_is_no_failure(finds: Callable[[Records], list[Sweep]]) -> None:
    finds(
        lambda case: (
            [case_of(case, Status.UNSUPPORTED, "not here")]
            if case.impl == "grouped"
            else [case_of(case), profile_of(case, PROFILE)]
        )
    )
    assert cli.main(("profile", "loop,grouped", *COMMON)) == Exit.OK


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lop",), "did you mean 'loop'?"),
        (("mine.py:Mine",), "there is no file mine.py"),
        (("loop", "--nvtx"), "NVTX ranges are for NVIDIA's tools, which watch a GPU, and this sweep runs on the CPU"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_anything_starts(
    arguments: tuple[str, ...],
    message: str,
    finds: Callable[[Records], list[Sweep]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = finds(lambda _: [])
    assert cli.main(("profile", *arguments, *COMMON)) == Exit.CANNOT
    assert message in " ".join(capsys.readouterr().err.split())
    assert asked == []


def test_nvtx_reaches_the_job_on_a_gpu(
    finds: Callable[[Records], list[Sweep]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "why_no_cuda", lambda: None)
    asked = finds(lambda case: [case_of(case), profile_of(case, PROFILE)])
    assert cli.main(("profile", "loop", "--nvtx", "--device", "cuda", "--quiet")) == Exit.OK
    assert asked[0].measure.nvtx

    session, server = Mock(sweep=asked[0], folder=Path("run")), Mock()
    session.make_files.return_value = None
    session.scratch.folder.return_value = Path("files")
    session.patience_s.return_value = 1.0
    session.rough_calls_s.return_value = {asked[0].cases[0].id: 3.0}
    server.execute.return_value = Answer(profile=PROFILE)
    profiling._profile(session, server, asked[0].cases[0])
    job: ProfileJob = server.execute.call_args.args[0]
    assert job.nvtx
    assert server.execute.call_args.args[1] > 3.0 * profiling.SILENT_CALLS, "long calls may be silent for longer"
