import json
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cases import Case, Workload
from bench.runner.channel import Channel, ChannelError
from bench.runner.conversation import Conversation
from bench.runner.protocol import QualifyJob
from bench.store.schema import Status
from impls.spec import LayerSpec


@settings(max_examples=200, deadline=None)
@given(garbage=st.binary(max_size=300))
def test_no_garbage_raises(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(garbage)
    talk = Conversation(Channel(ours))
    talk.hear_rest()
    talk.channel.close()
    assert talk.over
    assert talk.answer is None
    assert (talk.fault is not None) == (b"\n" in garbage)


def test_lines_arrive_whole_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        for piece in (b"one", b"\ntw", b"o\n\nrest"):
            theirs.sendall(piece)
            channel.fill()
    assert [channel.wait_for_line() for _ in range(4)] == [b"one", b"two", b"", None]
    channel.close()


def test_a_line_beyond_the_cap_is_refused_before_it_ends() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, max_line_bytes=10)
    with theirs:
        theirs.sendall(b"0123456789\n01234567890")
        channel.fill()
        assert channel.line() == b"0123456789"
        with pytest.raises(ChannelError, match="more than 10 bytes"):
            channel.line()
    channel.close()


@pytest.mark.parametrize(("impl", "status"), [("ok", Status.OK), ("raise", Status.ERROR)])
def test_a_job_can_be_repeated_by_hand(impl: str, status: Status) -> None:
    workload = Workload(layer=LayerSpec(d_model=4, d_ff=4, num_experts=2, top_k=1), num_tokens=2)
    job = QualifyJob(case=Case(impl=impl, workload=workload), folder="unused")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.runner.worker", "--jobs", "fake_jobs"],
        input=job.model_dump_json(indent=1),
        capture_output=True,
        text=True,
        check=False,
    )
    announced, answer = (json.loads(line) for line in done.stdout.splitlines())
    assert announced == {"kind": "announce", "case_id": job.case.id, "what": "build"}
    assert answer["status"] == status
    assert done.returncode == (status is not Status.OK)
