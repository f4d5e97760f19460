"""What a SIGKILL leaves: no process, no shared memory, no semaphore; and no file once the next run has begun.

One real run, whose layer stops where it holds mapped weights, shared memory and a semaphore. The worker is killed at
the first workload, its fork server at the second, the runner itself at the third. Other programs have things of their
own in ``/dev/shm``, so ours are found by what our processes had open or mapped.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bench.runner.scratch import PREFIX, Scratch
from bench.store.log import find_runs, read_run
from bench.store.schema import CaseRecord, Status

SHARED = Path("/dev/shm")
LIMIT_S = 120.0
TORCHS_OWN = "torchinductor_"
"""torch's cache of compiled kernels, which it keeps from one program to the next."""
LAYER = """
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing

from impls.loop import Loop


class Holds(Loop):
    def compute(self, x_TD, routing):
        held = torch.zeros(100_000).share_memory_(), torch.multiprocessing.get_context("fork").Semaphore()
        Path(os.environ["HELD"], str(x_TD.shape[0])).write_text(str(os.getpid()))
        time.sleep(600)
        return held
"""
SWEEP = ("--impl", "layer.py:Holds", "--device", "cpu", "--threads", "1", "--tokens", "8,16,24")
LAYER_OPTIONS = ("layer.num_experts=4", "layer.top_k=2", "layer.capacity_factor=none", "measure.timeout=10m")


def until(happened: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def holds(marker: Path) -> bool:
    return marker.is_file() and marker.read_text().isdigit()


def ours(mark: str) -> list[psutil.Process]:
    """The living processes that were started with this test's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HELD") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # another's, or it has just ended
            continue
    return found


def held_by(process: psutil.Process, places: tuple[Path, ...]) -> set[Path]:
    """Files below ``places`` that a process has open or mapped, also those that have no name any more."""
    proc = Path(f"/proc/{process.pid}")
    named = {re.sub(r" \(deleted\)$", "", line.split(maxsplit=5)[5]) for line in _lines(proc / "maps") if "/" in line}
    for descriptor in (proc / "fd").iterdir():
        try:
            named.add(re.sub(r" \(deleted\)$", "", str(descriptor.readlink())))
        except OSError:  # closed meanwhile
            continue
    return {Path(name) for name in named if any(Path(name).is_relative_to(place) for place in places)}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layer.py").write_text(LAYER)
    (tmp_path / "held").mkdir()
    yield place
    for process in ours(str(tmp_path / "held")):  # where the test failed
        process.kill()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir() or sys.platform != "linux", reason="shared memory has files on Linux")
def test_kills_leave_no_process_no_shared_memory_and_no_file(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, mark = tmp_path / "held", str(tmp_path / "held")
    settings = [word for option in LAYER_OPTIONS for word in ("--set", option)]
    runner = subprocess.Popen(
        [sys.executable, "-P", "-m", "bench.cli", "run", "smoke", "--quiet", "--budget", "30m", *SWEEP, *settings],
        env={**os.environ, "TMPDIR": str(place), "HELD": mark, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    known: set[Path] = set()
    for num_tokens, whom in ((8, "worker"), (16, "server"), (24, "runner")):
        marker = held / str(num_tokens)
        until(lambda marker=marker: runner.poll() is not None or holds(marker), f"no worker got to {num_tokens} tokens")  # type: ignore[misc]  # bound early
        assert runner.poll() is None, runner.communicate()[1]
        worker = psutil.Process(int(marker.read_text()))
        files = held_by(worker, (SHARED, place))
        assert any(SHARED in file.parents for file in files), "it holds shared memory"
        assert any(file.suffix == ".bin" for file in files), "and the mapped weights"
        known |= files
        victim = {"worker": worker, "server": worker.parent(), "runner": psutil.Process(runner.pid)}[whom]
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
        until(lambda worker=worker: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "it lives on")  # type: ignore[misc]  # bound early
    _, told = runner.communicate(timeout=LIMIT_S)
    assert runner.returncode == -signal.SIGKILL, told
    until(lambda: not ours(mark), "a process was left")
    assert [file for file in known if SHARED in file.parents and file.exists()] == []
    records = read_run(find_runs(tmp_path / "results")[0].folder).records
    assert [record.status for record in records if isinstance(record, CaseRecord)] == [Status.CRASHED] * 2

    monkeypatch.setattr("bench.runner.scratch.STALE_AFTER_S", 0.0)
    assert len(list(place.glob(f"{PREFIX}*"))) == 1, "one folder is left by the last kill"
    with Scratch():
        assert len(list(place.glob(f"{PREFIX}*"))) == 1, "which is the next one's to delete"
    assert [path.name for path in place.iterdir() if not path.name.startswith(TORCHS_OWN)] == []
