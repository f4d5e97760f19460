import time
from pathlib import Path

import pytest

from bench.cases import Case, Workload
from bench.runner import conversation
from bench.runner.interrupt import Interrupt
from bench.runner.protocol import QualifyJob
from bench.runner.servers import ForkServer, ServerLostError, count_oom_kills
from bench.store.schema import Status
from impls.spec import LayerSpec

PATIENCE_S = 60.0
"""For what must not be found silent, however busy the machine is."""
SILENCE_S = 5.0
"""For what must."""
WORKLOAD = Workload(layer=LayerSpec(d_model=4, d_ff=4, num_experts=2, top_k=1), num_tokens=2)


def job(impl: str) -> QualifyJob:
    return QualifyJob(case=Case(impl=impl, workload=WORKLOAD), folder="unused")


@pytest.mark.parametrize(
    ("impl", "status", "words"),
    [
        ("ok", Status.OK, ""),
        ("print_megabytes", Status.OK, ""),
        ("straggler", Status.OK, ""),
        ("crash", Status.CRASHED, "SIGSEGV"),
        ("killed", Status.CRASHED, "SIGKILL"),
        ("kill_server", Status.CRASHED, "server process ended"),
        ("hang", Status.TIMEOUT, "said nothing for 5 s while at: build"),
        ("print_for_ever", Status.TIMEOUT, "said nothing"),
        ("announce_for_ever", Status.TIMEOUT, "did not get to an answer"),
        ("exit_0", Status.CRASHED, "exit code 0 and no answer"),
        ("fork_and_hold", Status.CRASHED, "exit code 0 and no answer"),
        ("sys_exit_3", Status.CRASHED, "exit code 3"),
        ("memory", Status.OUT_OF_MEMORY, "not enough memory"),
        ("raise", Status.ERROR, "ValueError: what a pity"),
        ("garbage", Status.CRASHED, "not of the protocol"),
        ("half_a_message", Status.CRASHED, "exit code 0 and no answer"),
        ("endless_line", Status.CRASHED, "sent a line of more than"),
        ("wrong_answer", Status.ERROR, "without qualified"),
    ],
)
def test_whatever_a_worker_does_becomes_an_answer_and_the_next_one_works(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch, impl: str, status: Status, words: str
) -> None:
    monkeypatch.setattr("bench.runner.servers.MAX_SILENCES", 1.5)
    answer = server.execute(job(impl), silence_s=SILENCE_S if status is Status.TIMEOUT else PATIENCE_S)
    assert (answer.status, words in answer.reason) == (status, True), answer.reason
    assert len(answer.reason) < 1000
    if status is not Status.OK:
        assert answer.case_id == ("" if impl == "announce_for_ever" else job(impl).case.id)
    assert server.execute(job("ok"), silence_s=PATIENCE_S).status is Status.OK


def test_a_worker_that_hangs_up_and_stays_is_ended(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runner.servers.EXIT_TIMEOUT_S", 0.2)
    assert server.execute(job("close"), silence_s=PATIENCE_S).status is Status.CRASHED


def test_what_a_worker_leaves_running_ends_with_it(server: ForkServer, tmp_path: Path) -> None:
    assert server.execute(job("straggler"), silence_s=PATIENCE_S).status is Status.OK
    straggler = int((tmp_path / "trace.straggler").read_text())
    assert ends(straggler)


def test_last_words_are_part_of_the_reason_and_harmless(server: ForkServer) -> None:
    reason = server.execute(job("print_for_ever"), silence_s=SILENCE_S).reason
    assert "its last words: …yyy" in reason


def test_closing_ends_the_server(interrupt: Interrupt) -> None:
    with ForkServer(interrupt, jobs="fake_jobs") as server:
        server.start()
        assert server._process is not None
        pid = server._process.pid
    assert ends(pid)


def test_a_server_that_cannot_start_says_why(interrupt: Interrupt) -> None:
    with (
        ForkServer(interrupt, jobs="no_such_module") as server,
        pytest.raises(ServerLostError, match="No module named 'no_such_module'"),
    ):
        server.start()


def test_only_a_kill_that_the_kernel_counted_is_out_of_memory() -> None:
    assert conversation.how_it_ended(9, out_of_memory=True)[0] is Status.OUT_OF_MEMORY
    assert conversation.how_it_ended(9, out_of_memory=False)[0] is Status.CRASHED
    assert conversation.how_it_ended(11, out_of_memory=True)[0] is Status.CRASHED


def test_oom_kills_are_read_from_the_kernel(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 7\noom_kill 3\n")
    assert (count_oom_kills(vmstat), count_oom_kills(tmp_path / "absent")) == (3, 0)


def ends(pid: int) -> bool:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_server_imports_what_is_asked_for_before_it_forks(interrupt: Interrupt) -> None:
    with (
        ForkServer(interrupt, jobs="fake_jobs", preload=["no_such_package"]) as server,
        pytest.raises(ServerLostError, match="No module named 'no_such_package'"),
    ):
        server.start()
