"""Jobs without torch: what a case does is in its implementation's name, as ``ok`` or ``crash@time``.

Every job is noted in the file that ``FAKE_JOBS_TRACE`` names, one line each.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.runner.protocol import (
    Announce,
    Answer,
    CeilingJob,
    ControlJob,
    EnergyJob,
    Job,
    LimitCheckJob,
    MaterialiseJob,
    ProfileJob,
    QualifyJob,
    TimeJob,
    TruthJob,
)
from bench.store.levers import Work
from bench.store.profiles import Profile
from bench.store.qualified import Qualified
from bench.store.schema import Arm, EnergyReading, Status

SECONDS_A_ROUND = 1e-4


def perform(job: Job, announce: Callable[[Announce], None]) -> Answer:
    if trace := os.environ.get("FAKE_JOBS_TRACE"):
        with Path(trace).open("a") as file:
            file.write(job.model_dump_json() + "\n")
    match job:
        case MaterialiseJob():
            Path(job.folder).mkdir(parents=True, exist_ok=True)
            (Path(job.folder) / "weights").write_bytes(b"w" * 1000)
            return Answer(materialised_bytes=1000)
        case TruthJob():
            return Answer()
        case QualifyJob():
            announce(Announce(case_id=job.case.id, what="build"))
            misbehave(job.case.impl, "qualify")
            return Answer(qualified=QUALIFIED)
        case TimeJob():
            for case in job.cases:
                announce(Announce(case_id=case.id, what="rounds"))
                misbehave(case.impl, "time")
            return Answer(arms={case.id: arm(offset, case.impl) for offset, case in enumerate(job.cases)})
        case ControlJob():
            arms = {name: arm(offset) for offset, name in enumerate(("base", "twin", "slowed"))}
            return Answer(arms={name: arms[name] for name in job.arms})
        case CeilingJob():
            return Answer(per_s=[1e9], working_set_bytes=1024)
        case ProfileJob():
            announce(Announce(case_id=job.case.id, what="profile"))
            misbehave(
                job.case.impl, "second-profile" if trace and _profiles_of(job.case.impl, Path(trace)) > 1 else "profile"
            )
            return Answer(profile=PROFILE)
        case LimitCheckJob():
            announce(Announce(case_id=job.case.id, what="levers"))
            misbehave(job.case.impl, "check")
            return Answer(arms={"base": ARM}, work={"base": Work(flops=1, moved_bytes=1, existing_bytes=0)})
        case EnergyJob():
            return Answer(energy=EnergyReading(reason="not_supported: this machine has no meter"))
    raise ValueError(f"there is no fake of a {job.job} job")


ARM = Arm(latency_s=[SECONDS_A_ROUND], warmup_s=[])
PROFILE = Profile(calls=1, plain_s=SECONDS_A_ROUND, whole_s=1.1 * SECONDS_A_ROUND, stages=[], experts=[], operators=[])
QUALIFIED = Qualified(
    relative_error=0.0,
    worst_tensor="output",
    checked_tokens=1,
    routing=None,
    flops=1,
    moved_bytes=1,
    weight_bytes=1,
    prepared_bytes=0,
    prepare_s=0.0,
    first_call_s=SECONDS_A_ROUND,
    rough_latency_s=SECONDS_A_ROUND,
    allocator_peak_bytes=0,
    os_peak_bytes=0,
    reserved_peak_bytes=None,
    analytic_peak_bytes=0,
    gaps={"reserved_peak_bytes": "not_supported: only CUDA reserves"},
)


def arm(offset: int, impl: str = "") -> Arm:
    factor = random.uniform(1, 2) if impl == "noisy" else 1.0
    return Arm(latency_s=[factor * SECONDS_A_ROUND * (1 + offset + 0.01 * i) for i in range(5)], warmup_s=[])


def misbehave(impl: str, phase: str) -> None:
    name, _, when = impl.partition("@")
    if when in ("", phase) and name in MISDEEDS:
        MISDEEDS[name]()


def _profiles_of(impl: str, trace: Path) -> int:
    jobs = map(json.loads, trace.read_text().splitlines())
    return sum(job["job"] == "profile" and job["case"]["impl"] == impl for job in jobs)


def _job_socket() -> int:
    """The worker's socket: the only one that it has."""
    return next(int(fd.name) for fd in Path("/proc/self/fd").iterdir() if _is_socket(fd))


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


def _print_megabytes() -> None:
    for _ in range(200):
        sys.stdout.write("x" * 40_000 + "\n")
    sys.stdout.flush()
    subprocess.run(["head", "-c", "3000000", "/dev/zero"], check=True)


def _print_for_ever() -> None:
    while True:
        os.write(1, b"y" * 65536)


def _announce_for_ever() -> None:
    while True:
        os.write(_job_socket(), Announce(what="still here").model_dump_json().encode() + b"\n")
        time.sleep(0.01)


def _leave_a_straggler() -> None:
    straggler = subprocess.Popen(["sleep", "300"])
    Path(os.environ["FAKE_JOBS_TRACE"] + ".straggler").write_text(str(straggler.pid))


def _use_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
    bytearray(2**30)


def _raise() -> None:
    raise ValueError("what a pity")


def _write_garbage() -> None:
    os.write(_job_socket(), b"\x00\xff not json\n")
    time.sleep(300)


def _write_half_a_message() -> None:
    os.write(_job_socket(), b'{"kind": "answ')
    os._exit(0)


def _write_endless_line() -> None:
    while True:
        os.write(_job_socket(), b"z" * 65536)


def _answer_wrongly() -> None:
    os.write(_job_socket(), json.dumps({"kind": "answer", "status": Status.OK}).encode() + b"\n")
    os._exit(0)


def _close_the_socket() -> None:
    os.close(_job_socket())
    time.sleep(300)


def _fork_and_hold() -> None:
    """End without an answer, while a child that left the group keeps the socket open."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(3)
    os._exit(0)


def _ignore_everything() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(300)


MISDEEDS: dict[str, Callable[[], object]] = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill_server": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "hang": _ignore_everything,
    "exit_0": lambda: os._exit(0),
    "sys_exit_3": lambda: sys.exit(3),
    "print_megabytes": _print_megabytes,
    "print_for_ever": _print_for_ever,
    "announce_for_ever": _announce_for_ever,
    "straggler": _leave_a_straggler,
    "memory": _use_memory,
    "raise": _raise,
    "garbage": _write_garbage,
    "half_a_message": _write_half_a_message,
    "endless_line": _write_endless_line,
    "wrong_answer": _answer_wrongly,
    "close": _close_the_socket,
    "fork_and_hold": _fork_and_hold,
    "slow": lambda: time.sleep(0.3),
}
